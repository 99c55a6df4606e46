"""Makes docs/findings.md from the catalogue of findings: `./inv docs` writes it, and a test
compares it.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

from lab.faults.rows import Row, load
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
    for subject, entries in groupby(
        catalogue().values(), key=lambda one: one.code.partition(".")[0]
    ):
        parts += [f"## {subject}\n", *(section for one in entries for section in _section(one))]
    return "\n".join([*parts, *_tried(list(load().values()))])


def _section(one: Explanation) -> Iterator[str]:
    yield f"### {one.code}\n"
    yield f"**{one.title}** {one.meaning}\n"
    yield f"- *How it is detected:* {one.known_by}"
    yield f"- *What to do:* {one.to_do}"
    yield f"- *Keep in mind:* {one.not_meant}\n"


def _tried(rows: Sequence[Row]) -> Iterator[str]:
    """What `./inv matrix` tried, a table of each kind."""
    if not rows:
        return
    well = sum(row.well for row in rows)
    yield _TRIED.format(well=well, all=len(rows))
    for title, kind in _KINDS.items():
        lines = [_line(row) for row in rows if _kind(row) == kind]
        if lines:
            yield f"### {title}\n"
            yield (
                "| injected | by | reported first | beside it | below it | notes | looking took |"
                " commit, date |"
            )
            yield "|---|---|---|---|---|---|---|---|"
            yield "\n".join(lines) + "\n"
    tried = {code for row in rows for code in row.expected}
    untried = [code for code in catalogue() if code not in tried]
    if untried:
        yield "### Not tried yet\n\n| finding |\n|---|"
        yield "\n".join(f"| `{code}` |" for code in untried) + "\n"


_TRIED = """\
## What was tried

`./inv matrix` makes each of these states on a healthy fleet of real processes or hosts, looks, undoes it, and checks
that nothing is found any more. The cause has to come first, and of two faults both have to be reported: that holds for
{well} of {all} rows. A ✗ marks the others. The look is `inv diagnose`, unless the row names another verb. A plan prints
no codes: its row checks that the plan says what the finding says.
"""
_KINDS = {"Healthy: nothing may be found": 0, "One fault": 1, "Two faults at once": 2}


def _kind(row: Row) -> int:
    return len(row.expected)


def _line(row: Row) -> str:
    first, *beside = row.reported or ["nothing"]
    besides = [code for code in beside if code not in row.notes]
    mark = "" if row.well else "✗ "
    found = row.trouble or first
    codes = (", ".join(some) for some in (besides, row.folded, row.notes))
    cells = (
        row.name,
        row.how,
        mark + found,
        *codes,
        f"{row.seconds} s",
        f"{row.commit}, {row.date}",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
