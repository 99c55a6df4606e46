"""`inv diagnose`: look at everything, change nothing, and name each fault with its evidence."""

import re
from collections.abc import Sequence

from runbooks.core.errors import ExitCode
from runbooks.core.model import Finding, Severity
from runbooks.engine.context import Session
from runbooks.engine.recap import start_recap
from runbooks.steps.step import Needs


def diagnose(session: Session) -> ExitCode:
    """Exit code 1 where an error or a warning was found, 4 where a host or the broker does not answer."""
    snapshot = session.observe(Needs.EVERYTHING | Needs.PROBES)
    findings = session.diagnose(snapshot)
    if can_be_mended(findings):
        session.reporter.next_step("What would put it right", "inv remediate --dry-run")
    unreachable = start_recap(session, snapshot).exit_code
    faults = any(finding.severity is not Severity.INFO for finding in findings)
    return unreachable or (ExitCode.FINDINGS if faults else ExitCode.OK)


def can_be_mended(findings: Sequence[Finding]) -> bool:
    """Whether a remediation would have something to do, and would not refuse to begin.

    Of a blocked host no other finding counts: it is named in the subject, alone or after the service.
    """
    blocks = [block for finding in findings for block in finding.blocks]
    if any(not block.host for block in blocks):
        return False
    hosts = {block.host for block in blocks if not block.service}
    return any(finding.remedy and not hosts & set(re.split("[@ ,]+", finding.subject)) for finding in findings)
