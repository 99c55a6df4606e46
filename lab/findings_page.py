"""Makes docs/findings.md from the catalogue of findings: `./inv docs` writes it, and a test compares it."""

from collections.abc import Iterator
from itertools import groupby

from runbooks.core.views import Explanation
from runbooks.diagnosis.codes import catalogue

_HEAD = """\
<!-- Made by `./inv docs` from runbooks/diagnosis/catalogue/: change the texts there. -->
# Findings

`inv diagnose`, `inv verify`, `inv remediate` and `inv monitor` name what they find by a code. The codes are stable:
they are in the JSON (`code`) and in the metrics. `inv explain CODE` prints what this page says.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for subject, entries in groupby(catalogue().values(), key=lambda one: one.code.partition(".")[0]):
        parts += [f"## {subject}\n", *(section for one in entries for section in _section(one))]
    return "\n".join(parts)


def _section(one: Explanation) -> Iterator[str]:
    yield f"### {one.code}\n"
    yield f"**{one.title}** {one.meaning}\n"
    yield f"- *How it is known:* {one.known_by}\n- *What to do:* {one.to_do}\n- *What it is not:* {one.not_meant}\n"
