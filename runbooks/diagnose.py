"""`inv diagnose`: look at everything, change nothing, and name each fault with its evidence."""

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode
from runbooks.core.model import Severity
from runbooks.core.needs import Needs
from runbooks.diagnosis.judge import can_be_fixed
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap


def diagnose(session: Session) -> ExitCode:
    """Exit code 1 where an error or a warning was found, 4 where a host or the broker does not answer."""
    snapshot = session.observe(Needs.EVERYTHING | Needs.PROBES)
    findings = session.diagnose(snapshot)
    if can_be_fixed(findings):
        session.reporter.next_step("What would put it right", Command("remediate", "--dry-run"))
    unreachable = start_recap(session, snapshot).exit_code
    faults = any(finding.severity is not Severity.INFO for finding in findings)
    return unreachable or (ExitCode.FINDINGS if faults else ExitCode.OK)
