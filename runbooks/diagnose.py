"""`inv diagnose`: look at everything, change nothing, and name each fault with its evidence."""

from runbooks.core.errors import ExitCode
from runbooks.core.model import Severity
from runbooks.engine.recap import start_recap
from runbooks.engine.session import Session
from runbooks.steps.step import Needs


def diagnose(session: Session) -> ExitCode:
    """Exit code 1 where an error or a warning was found, 4 where a host or the broker does not answer."""
    snapshot = session.observe(Needs.EVERYTHING | Needs.PROBES)
    findings = session.diagnose(snapshot)
    unreachable = start_recap(session, snapshot).exit_code
    faults = any(finding.severity is not Severity.INFO for finding in findings)
    return unreachable or (ExitCode.FINDINGS if faults else ExitCode.OK)
