"""Makes docs/celery-runbooks.1, the manual page, from the help: `./inv docs` writes it, and a test
compares it.
"""

from collections.abc import Iterable, Iterator

from lab.verb_help import Flag, shared_flags, verbs_by_purpose
from runbooks import __version__
from runbooks.core.errors import EXIT_CODES

_PROGRAM = "celery-runbooks"


def page() -> str:
    """The whole page, in the language of man(7)."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield f'.TH CELERY-RUNBOOKS 1 "" "{_PROGRAM} {__version__}" "User Commands"'
    yield ".SH NAME"
    yield _text(f"{_PROGRAM} - puts broken Celery fleets on Redis right")
    yield ".SH SYNOPSIS"
    yield f".B {_text(_PROGRAM)}"
    yield ".I VERB"
    yield "[options]"
    yield ".SH DESCRIPTION"
    yield _text(
        "Diagnoses Celery fleets with evidence, shows what it would change, changes it without"
        " losing a message, proves that it worked, and takes it back."
    )
    for heading, verbs in verbs_by_purpose():
        yield f".SH {heading.upper()}"
        for verb in verbs:
            yield ".SS " + _text(verb.usage)
            yield _text(verb.purpose)
            yield from _flags(verb.flags)
            yield ".PP"
            yield _text("Also: " + "; ".join(verb.shared) + ".")
    yield ".SH OPTIONS OF MANY VERBS"
    yield from _flags(shared_flags())
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES.items():
        yield from (".TP", f".B {int(code)}", _text(meaning))


def _flags(flags: Iterable[Flag]) -> Iterator[str]:
    for flag in flags:
        yield from (".TP", f".B {_text(flag.typed)}", _text(flag.meaning))


def _text(text: str) -> str:
    """A text in which roff takes nothing for a command, and copied dashes and quotes are those that
    a shell reads.
    """
    escaped = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    )
    return f"\\&{escaped}" if escaped.startswith(".") else escaped
