r"""How Compose understands an `env_file:`, unless that says `format: raw`.

A value may be in quotes and span several lines. Escapes count in `"`; `$` expands except in `'`.
The result of an expansion depends on where Compose runs, so it is not known. The next statement
begins after a closing quote. A name alone takes its value from the environment of Compose, if that
has one.

**Source:** compose-go 2.0.2 to 2.11 (Compose 2.24 and later) `dotenv/parser.go`,
`dotenv/godotenv.go`, `template/template.go`; Go's `strconv.UnquoteChar`, `unicode.IsSpace`. That an
engine refuses a variable without a name and one with a NUL byte: tried with 20.10.
"""

import re
import shlex
from collections.abc import Iterable

from runbooks.core.envfile.reading import (
    BOM,
    GO_SPACE,
    NOT_UTF8,
    Assignment,
    Reading,
    end_of,
    place,
    settled,
)

_BLANKS = "\t\v\f\r \x85\xa0"
_BETWEEN = re.compile(rf"(?:[{GO_SPACE}]|#[^\n]*)*")
_BLANK = re.compile(rf"[{_BLANKS}]*")
_EXPORT = re.compile(rf"export(?=[\t\n\f\r ])[{_BLANKS}]*")
_KEY = re.compile(rf"[\w.\-\[\]{_BLANKS}]*")
_QUOTED = {
    quote: re.compile(rf"{quote}(?:\\.|[^{quote}\\])*{quote}", re.DOTALL) for quote in ("'", '"')
}
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_LINE = re.compile(r"[^\n]*\n?")
_ESCAPED = re.compile(r'\\(?:0(?P<octal>[0-9]{0,3})|(?P<letter>[abcfnrtv$"\\]))')
_MEANING = {
    "a": "\a",
    "b": "\b",
    "c": r"\c",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "$": "$$",
}
_NAME = r"[_a-z][_a-z0-9]*"
_DOLLAR = re.compile(
    rf"\$(?:(?P<itself>\$)|(?P<expansion>{_NAME}|\{{{_NAME}(?::?[-+?].*)?\}})|(?P<invalid>\{{))",
    re.IGNORECASE,
)


class _Refused(Exception):
    """Compose, or the engine, refuses the file."""

    def __init__(self, at: int, why: str) -> None:
        self.at = at
        self.why = why


def read(text: str) -> Reading:
    """The file as Compose understands it."""
    assignments: list[Assignment] = []
    at = end_of(_BETWEEN, text, len(BOM) if text.startswith(BOM) else 0)
    try:
        while at < len(text):
            found, at = _statement(text, at)
            if found:
                assignments.append(found)
            at = end_of(_BETWEEN, text, at)
        _require_no_nul(assignments)
    except _Refused as refused:
        fault = place(
            text, refused.at, f"Compose refuses the file and starts nothing: {refused.why}"
        )
        return Reading(text, assignments, fault=fault, refused=True)
    return settled(text, assignments, "depends on where Compose runs")


def _require_no_nul(assignments: Iterable[Assignment]) -> None:
    """Check the values that count; a value that is overwritten does not reach the engine."""
    for last in {one.name: one for one in assignments}.values():
        if "\0" in (last.value or ""):
            raise _Refused(last.begin, "this value contains a NUL byte")


def written(value: str) -> str:
    """The written form of a value: bare or in `'`; in `"` if it contains `'` or a backslash."""
    if re.search(r"['\\]", value):
        return '"' + re.sub(r'["\\$]', r"\\\g<0>", value) + '"'
    return shlex.quote(value)


def _statement(text: str, begin: int) -> tuple[Assignment | None, int]:
    """The assignment that begins here, None for an `export` alone, and where it ends."""
    at = end_of(_EXPORT, text, begin)
    end = end_of(_KEY, text, at)
    name = text[at:end].rstrip(_BLANKS)
    sign = text[end : end + 1]
    if sign not in ("=", ":", "\n", ""):
        raise _Refused(end, "a name cannot contain this character")
    if " " in name:
        raise _Refused(at + name.index(" "), "the name contains a blank")
    if sign == "\n" and not name:
        return None, end
    if sign == "\n":
        return _assignment(text, begin, name, None, end, end), end
    if not (name and sign):
        raise _Refused(at, "Compose takes this as the value of a variable without a name")
    value, value_begin, value_end = _value(text, end_of(_BLANK, text, end + 1))
    return _assignment(text, begin, name, value, value_begin, value_end), value_end


def _assignment(
    text: str, begin: int, name: str, value: str | None, value_begin: int, value_end: int
) -> Assignment:
    line_begin = text.rfind("\n", 0, begin) + 1
    line_end = end_of(_LINE, text, value_end)
    alone = not (text[line_begin:begin] + text[value_end:line_end]).strip(GO_SPACE)
    return Assignment(name, value, value_begin, value_end, line_begin, line_end, alone)


def _value(text: str, at: int) -> tuple[str | None, int, int]:
    """The value that is written here (None: only Compose knows), where it begins and ends."""
    quote = text[at : at + 1]
    if quote not in _QUOTED:
        bare = _LINE.match(text, at)[0].partition(" #")[0].rstrip(GO_SPACE)  # type: ignore[index] # it always matches
        return _expanded(bare, at), at, at + len(bare)
    end = end_of(_QUOTED[quote], text, at)
    if end == at:
        raise _Refused(at, "this quote is never closed")
    inner = _PAIR.sub(lambda pair: quote if pair[1] == quote else pair[0], text[at + 1 : end - 1])
    if quote == "'":
        return _as_text(inner), at, end
    return _expanded(_ESCAPED.sub(_unescaped, inner), at), at, end


def _unescaped(found: re.Match[str]) -> str:
    octal = found["octal"]
    if octal is not None and re.fullmatch("[0-3][0-7][0-7]", octal):
        return chr(int(octal, 8))
    if octal is not None:
        return f"\\{octal}"
    return _MEANING.get(found["letter"], found["letter"])


def _expanded(template: str, at: int) -> str | None:
    for found in _DOLLAR.finditer(template):
        if found["invalid"]:
            raise _Refused(at, "this contains a ${ that does not begin an expansion")
        if found["expansion"]:
            return None
    return _as_text(_DOLLAR.sub("$", template))


def _as_text(value: str) -> str:
    """The text that reaches the engine, as JSON."""
    return NOT_UTF8.sub("\ufffd", value)
