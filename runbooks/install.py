"""`inv install-units` and `inv install-cron`: files from `templates/`, exactly as rendered."""

from runbooks.core.errors import ExitCode
from runbooks.core.needs import Needs
from runbooks.diagnosis.files import units_of_others
from runbooks.engine.context import Session
from runbooks.engine.main_loop import walk


def install_units(session: Session) -> ExitCode:
    """One systemd unit per worker, and beat's; nothing is started, and what the inventory no longer has is removed."""
    session.require_consent_possible()
    snapshot = session.observe(Needs.FILES | Needs.SERVICES)
    blocking = list(units_of_others(session.fleet, snapshot))
    return walk(session, session.units_installed(), snapshot, blocking=blocking)


def install_cron(session: Session) -> ExitCode:
    """The application's cron file, and the rotation of its logs."""
    session.require_consent_possible()
    snapshot = session.observe(Needs.FILES)
    blocking = list(units_of_others(session.fleet, snapshot))
    return walk(session, session.cron_installed(), snapshot, blocking=blocking)
