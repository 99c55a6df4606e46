r"""How a shell understands `. FILE`, if that shows without running it.

Assignments are read, with or without `export`, with quotes and `\` as in the shell. A value that
has to be expanded (`$HOME`, a command) is not known. A line that does something else may set any
variable that is not assigned after it. If such a statement may continue over several lines, or end
the file, nothing about the file is known.

**Source:** POSIX.1-2017, Shell Command Language, 2.2 Quoting, 2.3 Token Recognition, 2.6 Word
Expansions, 2.9.1 Simple Commands; as dash 0.5.12 and bash 5.2 read them.
"""

import re

from runbooks.core.envfile.reading import NAME, Assignment, Place, Reading, end_of, place

_INERT = r"[^\n'\"\\`$(){}#]*"
_EXPANSION = (
    rf"\$(?:{NAME.pattern}|[0-9@*#?$!-]|\{{{NAME.pattern}(?::?[-+]{_INERT})?\}}|\({_INERT}\))"
    rf"|`{_INERT}`"
)
_DOLLAR = r"\$(?![A-Za-z0-9_@*#?$!({\[\\`'-])"  # a literal dollar
_DOUBLE = rf'"(?:[^"\\$`]|\\.|{_DOLLAR}|{_EXPANSION})*"'
_PIECE = re.compile(
    rf"""(?P<plain>[^ \t\n|&;<>()$`\\"']+|{_DOLLAR}(?!"))|(?P<single>'[^']*')"""
    rf"|(?P<double>{_DOUBLE})|\\(?P<escaped>.)"
    rf"|(?P<expansion>{_EXPANSION})",
    re.DOTALL,
)
_EXPANDS = re.compile(rf"\\.|(?P<expansion>{_EXPANSION})", re.DOTALL)
_ESCAPED_IN_DOUBLE = re.compile(r'\\([$`"\\\n])')
_CLOSED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_BETWEEN = re.compile(r"(?:[ \t\n]|\\\n|#[^\n]*)*")
_LINE = re.compile(r"[^\n]*")
_BLANK = re.compile(r"(?:[ \t]|\\\n)*")
_EXPORT = re.compile(r"export(?:\\\n)*[ \t](?:[ \t]|\\\n)*")
_ASSIGN = re.compile(rf"({NAME.pattern})=")
_NAME_ALONE = re.compile(rf"{NAME.pattern}(?=[ \t\n;]|\Z)")
_STATEMENT_END = re.compile(r"(?:[ \t]|\\\n)*(?:\n|;(?!;)|(?<=[ \t\n])#[^\n]*|\Z)")
_HARMLESS = re.compile(
    r"(?:set[ \t]+[-+]a|umask[ \t]+[0-7]+|ulimit(?:[ \t]+[-\w]+)+|:|true)(?=[ \t]*(?:\n|;|\Z))"
)
_COMMAND = (
    r"""[ \t]*(?=[^\s;&|])(?:[^\n'"\\`$(){}<>#;&|]|>>?&?[ \t]*(?=[\w/.])|'[^'\n]*'"""
    rf"""|"(?:[^"\\`$\n]|{_EXPANSION})*\""""
    rf"|{_EXPANSION})+"
)
_ONE_LINE = re.compile(rf"{_COMMAND}(?:(?:&&|\|\|?|;|&){_COMMAND})*[;&]?[ \t]*(?=\n|\Z)")
_NOT_PLAIN = re.compile(
    r"(?:^|[\s;&|<>])(?:!|\[\[|alias|break|builtin|case|command|continue|declare|do|done|elif|else|esac|eval|exec|exit|fi"
    r"|for|function|if|local|readonly|return|select|set|shopt|then|time|trap|typeset|unalias|until|while)(?:[\s;&|<>]|$)"
)
"""A line with such a word may continue, end the file, or change what later lines mean."""
_SHELLS_OWN = re.compile(
    "BASHOPTS|BASHPID|EUID|FUNCNAME|GROUPS|HISTCMD|IFS|LINENO|OPTIND|PPID|RANDOM|SECONDS|SHELLOPTS|UID|_"
)
"""Variables that a file cannot set in some shells, or that a shell sets itself."""


def read(text: str) -> Reading:
    """The file as a shell understands it."""
    if (at := text.find("\0")) >= 0:
        fault = place(text, at, "shells disagree about a NUL byte")
        return Reading(text, (), fault=fault, refused=True)
    assignments: list[Assignment] = []
    values: dict[str, str] = {}
    unknown: dict[str, Place] = {}
    opaque = None
    lost = False
    at = 0
    while (at := end_of(_BETWEEN, text, at)) < len(text):
        found, end, understood = _statement(text, at)
        if not understood and not lost:
            if text[end : end + 1] in ("'", '"') and not _CLOSED.match(text, end):
                why = "this quote is never closed, which is an error in a shell"
                return Reading(text, assignments, fault=place(text, end, why), refused=True)
            lost = _goes_on(text, at)
            what = "what the file does from here on" if lost else "what this line does"
            opaque = place(text, at, f"{what} shows only in the shell")
            values = {}
            unknown = {}
        assignments += found
        for one in found if not lost else ():
            values.pop(one.name, None)
            unknown.pop(one.name, None)
            if one.value is None:
                why = f"the value of {one.name} shows only in the shell"
                unknown[one.name] = place(text, one.begin, why)
            else:
                values[one.name] = one.value
        at = end if understood else end_of(_LINE, text, at)
    return Reading(text, assignments, values, unknown, opaque)


def _goes_on(text: str, at: int) -> bool:
    """Whether a statement may continue on the next line, or keep later lines from running."""
    line = _ONE_LINE.match(text, at)
    return line is None or _NOT_PLAIN.search(line[0]) is not None


def _statement(text: str, at: int) -> tuple[list[Assignment], int, bool]:
    """The assignments of a statement, where it ends, and True; if it is something else, False."""
    begin = at
    export = _EXPORT.match(text, at)
    harmless = _HARMLESS.match(text, at)
    lead = export or harmless
    words = []
    if lead:
        at = lead.end()
    while not harmless:
        if name := _ASSIGN.match(text, at):
            value, at = _word(text, name.end(), exported=bool(export))
            if _SHELLS_OWN.fullmatch(name[1]):
                value = None
            words.append((name[1], value, name.end(), at))
        elif export and (alone := _NAME_ALONE.match(text, at)):
            at = alone.end()
        else:
            break
        if (after := end_of(_BLANK, text, at)) == at:
            break
        at = after
    end = _STATEMENT_END.match(text, at)
    if not end or not (words or lead):
        return [], at, False
    line_begin, line_end = _lines(text, begin, end.end())
    is_alone = False
    if len(words) == 1:
        around = text[line_begin:begin] + text[words[0][3] : line_end]
        is_alone = not around.strip(" \t\n")
    return [Assignment(*word, line_begin, line_end, is_alone) for word in words], end.end(), True


def _lines(text: str, begin: int, end: int) -> tuple[int, int]:
    """Where the lines of a statement begin and end, including the line feed."""
    if text[end - 1 : end] != "\n":
        after = text.find("\n", end)
        end = len(text) if after < 0 else after + 1
    return text.rfind("\n", 0, begin) + 1, end


def _word(text: str, at: int, *, exported: bool) -> tuple[str | None, int]:
    """The value of a word, None if it has to be expanded, and where it ends."""
    parts: list[str | None] = []
    while piece := _PIECE.match(text, at):
        parts.append(_unquoted(piece, exported=exported))
        at = piece.end()
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None, at
    return "".join(known), at


def _unquoted(piece: re.Match[str], *, exported: bool) -> str | None:
    match piece.lastgroup:
        case "plain":
            expands = "~*?[{" if exported else "~"
            if any(character in piece[0] for character in expands):
                return None
            return piece[0]
        case "single":
            return piece[0][1:-1]
        case "double":
            inner = piece[0][1:-1]
            if any(found["expansion"] for found in _EXPANDS.finditer(inner)):
                return None
            return _ESCAPED_IN_DOUBLE.sub(lambda found: found[1].strip("\n"), inner)
        case "escaped":
            return piece["escaped"].strip("\n")
    return None
