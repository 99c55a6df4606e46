"""`inv clean-queues`: take out what the inventory's rules select, and what would kill a worker; lose nothing."""

from runbooks.core.errors import ExitCode
from runbooks.engine.session import Session
from runbooks.engine.walk import walk
from runbooks.steps.step import Needs


def clean_queues(session: Session) -> ExitCode:
    """The messages go into the run's archive; every other one stays in its place."""
    session.require_consent_possible()
    return walk(session, (session.queues(),), session.observe(Needs.QUEUES))
