"""`inv explain CODE`: the meaning of a finding, its evidence, what to do, and what it is not."""

import difflib
import re
import shlex

from msgspec.structs import asdict

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.reporter import Reporter
from runbooks.core.views import Explanation
from runbooks.diagnosis.codes import catalogue

_NEAREST = 3
_COMMAND = re.compile(r"`inv ([^`]+)`")


def explain(reporter: Reporter, code: str | None) -> ExitCode:
    """Explain one code, or list all; contact no host.

    Raises UsageError for an unknown code; it names the nearest.
    """
    known = catalogue()
    if code is None:
        reporter.table("codes", [{"code": one.code, "title": one.title} for one in known.values()])
    elif code in known:
        reporter.view(_with_commands(known[code]))
    else:
        near = _near(code, known)
        advice = f"list all codes: {Command('explain')}"
        if near:
            advice = f"did you mean {' or '.join(near)}? {advice}"
        raise UsageError(f"there is no finding {code!r}", advice)
    return ExitCode.OK


def _near(code: str, known: dict[str, Explanation]) -> list[str]:
    """Return the nearest codes: those with the same last part, else by spelling."""
    last = code.rpartition(".")[2]
    same = [one for one in known if one.rpartition(".")[2] == last]
    return (same or difflib.get_close_matches(code, known, n=_NEAREST))[:_NEAREST]


def _with_commands(one: Explanation) -> Explanation:
    """Return the explanation with its commands as the operator types them."""
    texts = {name: _COMMAND.sub(_typed, text) for name, text in asdict(one).items()}
    return Explanation(**texts)


def _typed(found: re.Match[str]) -> str:
    return str(Command(*shlex.split(found[1])))
