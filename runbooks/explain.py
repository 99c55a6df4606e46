"""`inv explain CODE`: what a finding means, how it is known, what to do about it, and what it is
not.
"""

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


def explain(reporter: Reporter, code: str | None) -> ExitCode:
    """Explain one code; without one list all of them. Asks nobody.

    Raises UsageError where there is no such code, and names the nearest.
    """
    known = catalogue()
    if code is None:
        reporter.table("codes", [{"code": one.code, "title": one.title} for one in known.values()])
    elif code in known:
        reporter.view(_with_commands(known[code]))
    else:
        near = _near(code, known)
        advice = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"there is no finding {code!r}", f"{advice}{Command('explain')} lists all")
    return ExitCode.OK


def _near(code: str, known: dict[str, Explanation]) -> list[str]:
    """The nearest codes, by all of the code or by its last part."""
    last = code.rpartition(".")[2]
    same = [one for one in known if one.rpartition(".")[2] == last]
    return (same or difflib.get_close_matches(code, known, n=_NEAREST))[:_NEAREST]


def _with_commands(one: Explanation) -> Explanation:
    """The explanation with its commands as the operator types them."""
    texts = {
        name: re.sub(r"`inv ([^`]+)`", lambda found: str(Command(*shlex.split(found[1]))), text)
        for name, text in asdict(one).items()
    }
    return Explanation(**texts)
