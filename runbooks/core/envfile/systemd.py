r"""What systemd makes of an `EnvironmentFile=`.

A name ends at `=`; blanks around either do not count. A value may begin with quoted parts, over
several lines too; `\` takes the next character as it is, or makes a line go on. Nothing is
expanded. What has no valid name is ignored, and so is `export X=1`, whose name is `export X`.

**Source:** systemd 252 `env-file.c: parse_env_file_internal, load_env_file_push`, `fileio.c:
read_full_stream_full`, `env-util.c: env_assignment_is_valid`, `utf8.c: utf8_encoded_valid_unichar`;
since 254 a comment ends with its line.
"""

import re

from msgspec.structs import replace

from runbooks.core.envfile.reading import NAME, Assignment, Place, Reading, end_of, place

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
"""What systemd does not take for UTF-8: a byte that is none (a surrogate here), and what never is a
character.
"""


def read(text: str) -> Reading:
    if (at := text.find("\0")) >= 0:
        why = "systemd refuses a file with a NUL byte, and starts nothing with it"
        return Reading(text, _pairs(text, _COMMENT)[0], fault=place(text, at, why), refused=True)
    now = _read(text, _COMMENT)
    before = _read(text, _COMMENT_BEFORE_254) if _GOES_ON.search(text) else now  # a comment may
    if now == before:
        return now
    differ = [
        name
        for name in {**now.values, **before.values}
        if now.values.get(name) != before.values.get(name)
    ]
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


_BY_VERSION = r" (that depends on its version: before 254 a comment that ends in \ goes on)"


def _unknown(text: str, found: Assignment | None) -> Place:
    assert found
    return place(
        text, found.line_begin, f"what systemd has for {found.name} is not known{_BY_VERSION}"
    )


def _read(text: str, comment: re.Pattern[str]) -> Reading:
    assignments, open_quote = _pairs(text, comment)
    bad = next(
        filter(None, (_NOT_TEXT.search(text, one.line_begin, one.end) for one in assignments)), None
    )
    if bad:
        why = f"systemd refuses the file, and starts nothing with it: {_shown(bad[0])} is not UTF-8"
        return Reading(text, assignments, fault=place(text, bad.start(), why), refused=True)
    why = "this quote is never closed, so systemd takes all that follows for the value"
    fault = None if open_quote is None else place(text, open_quote, why)
    values = {
        one.name: one.value
        for one in assignments
        if one.value is not None and NAME.fullmatch(one.name)
    }
    return Reading(text, assignments, values, fault=fault)


def _shown(character: str) -> str:
    code = ord(character)
    return f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"


def _pairs(text: str, comment: re.Pattern[str]) -> tuple[list[Assignment], int | None]:
    """Every name with its value, also where the name is none; and where a quote opens that is never
    closed.
    """
    pairs, at = [], end_of(_BLANK, text, 0)
    while at < len(text):
        is_comment = text[at] in "#;"
        end = end_of(comment if is_comment else _KEY, text, at)
        if not is_comment and text.startswith("=", end):
            name, line_begin = (
                text[at:end].rstrip(" \t"),
                max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1,
            )
            value, begin, value_end, end, open_quote = _value(text, end + 1)
            line_end = end_of(_LINE_END, text, end)
            pairs.append(Assignment(name, value, begin, value_end, line_begin, line_end))
            if open_quote is not None:
                return pairs, open_quote
        at = end_of(_BLANK, text, end)
    return pairs, None


def _value(text: str, at: int) -> tuple[str, int, int, int, int | None]:
    """The value that is written from `at` on; where that begins and ends, and the line after it; an
    open quote.
    """
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
    return _ESCAPED.sub(
        lambda found: found[1] if found[1] in '"\\`$' else found[0] if found[1] != "\n" else "",
        inner,
    )
