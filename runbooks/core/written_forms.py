"""How programs write a text: in Python, JSON, a shell, a URL, HTML, base64, also nested."""

import base64
import re
from collections.abc import Iterator
from functools import lru_cache

_BASE64_LEAST = 8
"""Fewer letters would also be found in unrelated texts."""
_BACKSLASH = r"(?:\\|(?i:%(?:25){0,9}5c)|&(?:amp;){0,9}#92;)"
"""Each level of nested quotes adds some. Repetition is bounded: no hostile log can stall this."""
_TOGETHER = r"""["\\]*'['"\\]*|."""
"""Quotes and backslashes around a single quote, which a shell writes as '"'"' or '\\''."""
_CUT_LEAST = 5
"""So many letters of a text that is cut off are enough to recognize it."""
_CUT_MOST = 60
"""No more letters are compared."""
_ENDS = r"(?:\.\.\.|\u2026)"
_BROKEN = r"""(?:[\\%&'"][\w\\%&#'"]{0,40})?"""
"""An escape that is cut off as well."""
_NAMED = {"&": "amp", "<": "lt", ">": "gt", '"': "quot"}
_LETTERS = {"\n": "n", "\t": "t", "\r": "r", "\b": "b", "\f": "f"}


@lru_cache(maxsize=1024)
def written(text: str) -> re.Pattern[str]:
    """A pattern that finds the text and all its written forms, escaped any number of times."""
    return re.compile("".join(map(_written, re.findall(_TOGETHER, text, re.DOTALL))))


@lru_cache(maxsize=1024)
def begun(text: str) -> re.Pattern[str]:
    """A pattern that finds the beginning of the text before an ellipsis."""
    first = text[:_CUT_LEAST]
    further = text[_CUT_LEAST:_CUT_MOST]
    pattern = "".join(f"(?:{_written(one)}" for one in further) + ")?" * len(further)
    return re.compile("".join(map(_written, first)) + pattern + rf"{_BROKEN}(?={_ENDS})")


def beginning(text: str) -> str:
    """The first letters of a text, which are there even if it is cut off."""
    return re.match(r"\w*", text[:_CUT_LEAST], re.ASCII)[0]  # type: ignore[index]


is_cut = re.compile(_ENDS).search


def _written(part: str) -> str:
    """A pattern for a character, or for mixed quotes, which are matched as a whole."""
    if "'" not in part:
        return _character(part)
    quote = "|".join((_stands_for("'"), _stands_for('"')))
    return f"(?>(?:{_BACKSLASH}{{0,999}}(?:{quote})){{1,999}}){_BACKSLASH}{{0,999}}"


def _character(one: str) -> str:
    if one.isascii() and (one.isalnum() or one == "_"):
        return one
    if one == "\\":
        return f"{_BACKSLASH}{{1,99}}"
    return f"{_BACKSLASH}{{0,99}}{_stands_for(one)}"


def _stands_for(one: str) -> str:
    """A pattern for the character and its written forms."""
    code = f"{ord(one):x}"
    in_bytes = one.encode(errors="surrogateescape")
    in_utf16 = re.findall("....", one.encode("utf-16-be", errors="surrogatepass").hex())
    ways = [
        "".join(f"%(?:25){{0,9}}{byte:02x}" for byte in in_bytes),
        "".join(f"{_BACKSLASH}{{1,99}}x{byte:02x}" for byte in in_bytes),
        "".join(f"{_BACKSLASH}{{1,99}}u{unit}" for unit in in_utf16),
        f"{_BACKSLASH}{{1,99}}(?:x{code:0>2}|U{code:0>8})",
        f"&(?:amp;){{0,9}}#(?:0{{0,9}}{ord(one)}|x0{{0,9}}{code});",
    ]
    if one in _NAMED:
        ways.append(f"&(?:amp;){{0,9}}{_NAMED[one]};")
    if one in _LETTERS:
        ways.append(f"{_BACKSLASH}{{1,99}}{_LETTERS[one]}")
    if one == " ":
        ways.append(r"(?:\+|%(?:25){0,9}2b)")
    return f"(?:{re.escape(one)}|(?i:{'|'.join(ways)}))"


def longest_word(text: str) -> str:
    """The longest part of the text that all its written forms contain, except base64; "": none."""
    return max(re.findall(r"[A-Za-z0-9_]+", text), key=len, default="")


def in_base64(text: str) -> Iterator[str]:
    """The base64 letters that do not depend on the neighbouring text, for all three alignments."""
    raw = text.encode(errors="surrogateescape")
    for before in range(3):
        begin = (before * 8 + 5) // 6
        letters = (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found = encode(b"\0" * before + raw).decode()[begin:letters]
            if len(found) >= _BASE64_LEAST:
                yield found
