"""`inv install-units` and `inv install-cron`: files from `templates/`, exactly as rendered."""

from runbooks.core.errors import ExitCode
from runbooks.core.needs import Needs
from runbooks.diagnosis.files import units_of_others
from runbooks.engine.context import Session
from runbooks.engine.main_loop import walk


def install_units(session: Session) -> ExitCode:
    """A unit or conf file for each worker and for beat; nothing is started, and what the inventory
    lost is removed.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.FILES | Needs.SERVICES)
    blocking = list(units_of_others(session.fleet, snapshot))
    return walk(session, session.units_installed(), snapshot, blocking=blocking)


def install_cron(session: Session) -> ExitCode:
    """The application's cron entries, for cron or as timers, and the rotation of its logs."""
    session.require_consent_possible()
    snapshot = session.observe(Needs.FILES | Needs.SERVICES)
    blocking = list(units_of_others(session.fleet, snapshot))
    return walk(session, session.cron_installed(), snapshot, blocking=blocking)
