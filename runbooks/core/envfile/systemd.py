r"""How systemd understands an `EnvironmentFile=`.

A name ends at `=`; blanks around name and value do not count. A value may begin with quoted parts,
which may span lines. `\` makes the next character literal, or continues a line. Nothing is
expanded. Lines without a valid name are ignored, such as `export X=1`, whose name is `export X`.

**Source:** systemd 252 `env-file.c: parse_env_file_internal, load_env_file_push`, `fileio.c:
read_full_stream_full`, `env-util.c: env_assignment_is_valid`, `utf8.c: utf8_encoded_valid_unichar`;
since 254 a comment ends with its line.
"""

import re

from msgspec.structs import replace

from runbooks.core.envfile.reading import Assignment, Place, Reading, end_of, place

_BLANK = re.compile(r"[ \t\r\n]*")
_SPACE = re.compile(r"[ \t]*")
_LINE_END = re.compile(r"\r?\n?")
_COMMENT = re.compile(r"[#;][^\r\n]*")
_COMMENT_BEFORE_254 = re.compile(r"[#;](?:\\.|[^\\\r\n])*\\?", re.DOTALL)
_GOES_ON = re.compile(r"\\[\r\n]")
_KEY = re.compile(r"[^\r\n][^=\r\n]*")
_PART = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_QUOTED = re.compile(rf"(?:[ \t]*(?:{_PART.pattern}))*", re.DOTALL)
_BARE = re.compile(r"(?:\\.|[^\\\r\n])*\\?", re.DOTALL)
_TOKEN = re.compile(r"\\.?|[ \t]+|[^\\ \t]+", re.DOTALL)
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_NEVER_CHARACTERS = "".join(
    chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17)
)
_NOT_TEXT = re.compile(f"[\udc80-\udcff\ufdd0-\ufdef{_NEVER_CHARACTERS}]")
"""What systemd does not accept as UTF-8: an invalid byte (a surrogate here), or a noncharacter."""
_BY_VERSION = r" (that depends on its version: before 254 a comment that ends in \ continues)"


def read(text: str) -> Reading:
    """The file as systemd understands it."""
    if (at := text.find("\0")) >= 0:
        why = "systemd refuses a file with a NUL byte and starts nothing"
        return Reading(text, _pairs(text, _COMMENT)[0], fault=place(text, at, why), refused=True)
    now = _read(text, _COMMENT)
    before = now
    if _GOES_ON.search(text):  # maybe a comment
        before = _read(text, _COMMENT_BEFORE_254)
    if now == before:
        return now
    names = {**now.values, **before.values}
    differ = [name for name in names if now.values.get(name) != before.values.get(name)]
    fault = now.fault or before.fault
    if fault and now.fault != before.fault:
        fault = replace(fault, what=fault.what + _BY_VERSION)
    return replace(
        now,
        values={name: value for name, value in now.values.items() if name not in differ},
        unknown={name: _unknown(text, now.last(name) or before.last(name)) for name in differ},
        fault=fault,
        refused=now.refused or before.refused,
    )


def _unknown(text: str, found: Assignment | None) -> Place:
    assert found
    why = f"the value of {found.name} for systemd is not known{_BY_VERSION}"
    return place(text, found.line_begin, why)


def _read(text: str, comment: re.Pattern[str]) -> Reading:
    assignments, open_quote = _pairs(text, comment)
    for one in assignments:
        if bad := _NOT_TEXT.search(text, one.line_begin, one.end):
            why = f"systemd refuses the file and starts nothing: {_shown(bad[0])} is not UTF-8"
            return Reading(text, assignments, fault=place(text, bad.start(), why), refused=True)
    reading = Reading(text, assignments)
    if open_quote is not None:
        why = "this quote is never closed, so systemd takes the rest of the file as the value"
        reading = Reading(text, assignments, fault=place(text, open_quote, why))
    return replace(reading, values=reading.likely)


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02x}"
    return f"U+{code:04X}"


def _pairs(text: str, comment: re.Pattern[str]) -> tuple[list[Assignment], int | None]:
    """Every name, valid or not, with its value; and the place of a quote that is never closed."""
    pairs = []
    at = end_of(_BLANK, text, 0)
    while at < len(text):
        is_comment = text[at] in "#;"
        end = end_of(comment if is_comment else _KEY, text, at)
        if not is_comment and text.startswith("=", end):
            name = text[at:end].rstrip(" \t")
            line_begin = max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1
            value, begin, value_end, end, open_quote = _value(text, end + 1)
            line_end = end_of(_LINE_END, text, end)
            pairs.append(Assignment(name, value, begin, value_end, line_begin, line_end))
            if open_quote is not None:
                return pairs, open_quote
        at = end_of(_BLANK, text, end)
    return pairs, None


def _value(text: str, at: int) -> tuple[str, int, int, int, int | None]:
    """The value at `at`, where its text begins and ends, where its line ends, and an open quote."""
    quoted_end = end_of(_QUOTED, text, at)
    bare_begin = end_of(_SPACE, text, quoted_end)
    parts = [_unquoted(part[0][0], part[0][1:-1]) for part in _PART.finditer(text, at, quoted_end)]
    if text[bare_begin : bare_begin + 1] in ("'", '"'):
        value = "".join((*parts, _unquoted(text[bare_begin], text[bare_begin + 1 :])))
        return value, end_of(_SPACE, text, at), len(text), len(text), bare_begin
    line_end = end_of(_BARE, text, bare_begin)
    tokens = _TOKEN.findall(text, bare_begin, line_end)
    if tokens and not tokens[-1].strip(" \t"):
        tokens.pop()
    end = bare_begin + len("".join(tokens)) if tokens else quoted_end
    bare = (_ESCAPED.sub(lambda found: found[1].strip("\r\n"), token) for token in tokens)
    return "".join((*parts, *bare)), min(end_of(_SPACE, text, at), end), end, line_end, None


def _unquoted(quote: str, inner: str) -> str:
    if quote == "'":
        return inner
    return _ESCAPED.sub(_unescaped, inner)


def _unescaped(found: re.Match[str]) -> str:
    if found[1] in '"\\`$':
        return found[1]
    if found[1] == "\n":
        return ""
    return found[0]
