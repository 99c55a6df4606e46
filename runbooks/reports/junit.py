"""The expectations that `verify` tested, as a JUnit file for CI systems.

**Source:** the JUnit XML format as Jenkins and GitLab read it: `testsuite` with `tests`,
`failures`, `skipped` and `timestamp`; `testcase` with `classname` and `name`, and `failure` or
`skipped` in it.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, tostring

from runbooks.core.command import plain
from runbooks.core.outside import on_one_line
from runbooks.core.redaction import redact
from runbooks.core.reporter import Check

_NOT_IN_XML = re.compile("[\ufffe\uffff]")
"""**Source:** XML 1.0, production 2 (Char); what else it lacks `on_one_line` escapes."""


def junit(application: str, checks: Sequence[Check], at: float) -> bytes:
    """Return the whole file; a check whose result is not known counts as skipped."""
    suite = Element("testsuite")
    suite.attrib |= {
        "name": f"celery-runbooks verify {_shown(application)}",
        "tests": str(len(checks)),
        "failures": str(sum(check.ok is False for check in checks)),
        "errors": "0",
        "skipped": str(sum(check.ok is None for check in checks)),
        "timestamp": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
    }
    for check in checks:
        case = SubElement(suite, "testcase", classname=_shown(application), name=_shown(check.what))
        if check.ok is False:
            SubElement(case, "failure", message=_shown(check.seen))
        elif check.ok is None:
            SubElement(case, "skipped", message=_shown(check.seen))
        else:
            SubElement(case, "system-out").text = _shown(check.seen)
    suites = Element("testsuites")
    suites.append(suite)
    file: bytes = tostring(suites, encoding="utf-8", xml_declaration=True)
    return file


def _shown(text: str) -> str:
    return _NOT_IN_XML.sub(lambda found: ascii(found[0])[1:-1], on_one_line(redact(plain(text))))
