"""`inv install-units` and `inv install-cron`: install files rendered from `templates/`."""

from runbooks.core.errors import ExitCode
from runbooks.core.needs import Needs
from runbooks.diagnosis.files import units_of_others
from runbooks.engine.context import Session
from runbooks.engine.main_loop import walk


def install_units(session: Session) -> ExitCode:
    """Install a unit or conf file for each worker and beat, and remove those no longer expected.

    Nothing is started.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.FILES | Needs.SERVICES)
    blocking = list(units_of_others(session.fleet, snapshot))
    return walk(session, session.units_installed(), snapshot, blocking=blocking)


def install_cron(session: Session) -> ExitCode:
    """Install the application's cron entries, as crontab or timers, and its log rotation."""
    session.require_consent_possible()
    snapshot = session.observe(Needs.FILES | Needs.SERVICES)
    blocking = list(units_of_others(session.fleet, snapshot))
    return walk(session, session.cron_installed(), snapshot, blocking=blocking)
