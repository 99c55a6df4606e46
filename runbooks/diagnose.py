"""`inv diagnose`: look at everything, change nothing, and name each fault with its evidence."""

import time
from collections.abc import Iterator

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode
from runbooks.core.fleet import Found
from runbooks.core.model import Severity
from runbooks.core.needs import Needs
from runbooks.core.rules import duration
from runbooks.diagnosis.judge import can_be_fixed
from runbooks.engine.chosen import chosen
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap


def diagnose(session: Session, patterns: str | None = None, *, budget: str) -> ExitCode:
    """Exit code 1 where an error or a warning was found, 4 where a host or the broker does not answer.

    With `patterns` the whole fleet is looked at, and what is wrong with other workers and beats alone is left out.
    Messages are read for the duration of the `budget`, then a sample of what is left.
    """
    services = chosen(session.fleet, patterns) if patterns is not None else None
    needs = Needs.EVERYTHING | Needs.PROBES | Needs.SCHEDULE
    read_until = time.monotonic() + duration("--budget", budget)
    snapshot = session.observe(needs, read_until=read_until, without_broker=True)
    findings = session.diagnose(snapshot, services=services)
    if session.fleet.found:
        session.reporter.message(*_not_looked_at(session.fleet.found))
    elif can_be_fixed(findings):
        session.reporter.next_step("What would put it right", Command("remediate", "--dry-run"))
    unreachable = start_recap(session, snapshot).exit_code
    faults = any(finding.severity is not Severity.INFO for finding in findings)
    return unreachable or (ExitCode.FINDINGS if faults else ExitCode.OK)


_ONLY_BY_INVENTORY = {
    "hosts, their processes, services, files and logs": "the hosts, with celery_directory and celery_python",
    "the application's tasks, routes, schedule and settings": "celery_app, on a host that has the application",
    "which workers and queues should be there": "celery_workers or celery_nodes, and celery_queues",
    "results": "celery_result_backend",
}
"""What the broker does not show, and what makes it known."""


def _not_looked_at(found: Found) -> Iterator[str]:
    """Say what a look at the broker alone leaves out, a line each."""
    yield f"Not looked at; an inventory makes it known ({Command('init')} writes an example), and changes need one:"
    for what, known_by in _ONLY_BY_INVENTORY.items():
        yield f"  {what}: {known_by}"
    for db in found.other_dbs:
        yield f"  db {db}, which Celery uses, too: --broker with /{db} at its end"
    for prefix in found.other_prefixes:
        yield f"  queues under the key prefix {prefix!r}: celery_broker_options: {{global_keyprefix: {prefix!r}}}"
