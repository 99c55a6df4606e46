"""A text as programs write it: in Python, JSON, a shell, a URL, HTML, base64, and one inside of
another.
"""

import base64
import re
from collections.abc import Iterator
from functools import lru_cache

_BASE64_LEAST = 8
"""Letters. Fewer of them would be found in texts that have nothing to do with it."""

_CUT_LEAST = 5
_CUT_MOST = 60
_ENDS = r"(?:\.\.\.|\u2026)"
_NAMED = {"&": "amp", "<": "lt", ">": "gt", '"': "quot"}
_LETTERS = {"\n": "n", "\t": "t", "\r": "r", "\b": "b", "\f": "f"}


@lru_cache(maxsize=1024)
def written(text: str) -> re.Pattern[str]:
    """Finds the text itself and each way in which it is written otherwise, escaped however often."""
    return re.compile("".join(map(_written, re.findall(_TOGETHER, text, re.DOTALL))))


@lru_cache(maxsize=1024)
def begun(text: str) -> re.Pattern[str]:
    """Finds a text that is cut off: its beginning, before an ellipsis."""
    first, further = text[:_CUT_LEAST], text[_CUT_LEAST:_CUT_MOST]
    pattern = "".join(f"(?:{_written(one)}" for one in further) + ")?" * len(further)
    return re.compile("".join(map(_written, first)) + pattern + rf"(?={_ENDS})")


def beginning(text: str) -> str:
    """What stands wherever a text is cut off: the letters that it begins with, a few of them."""
    return re.match(r"\w*", text[:_CUT_LEAST], re.ASCII)[0]  # type: ignore[index]


is_cut = re.compile(_ENDS).search


_BACKSLASH = r"(?:\\|(?i:%(?:25){0,9}5c)|&(?:amp;){0,9}#92;)"
"""Each level of quotes in quotes adds some. All repetition is bounded: a hostile log must not take
for ever.
"""


_TOGETHER = r"""["\\]*'['"\\]*|."""
"""Quotes and backslashes beside a single quote: a shell ends its quotes for one, as '"'"' or '\\''."""


def _written(part: str) -> str:
    """A character, or what is matched as a whole, once: where quotes mix there are many ways to
    read each of them.
    """
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
    """The character, or what is written for it."""
    code, in_bytes = f"{ord(one):x}", one.encode(errors="surrogateescape")
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
    """The part of the text that stands in every way to write it, but for base64; "" where there is
    none.
    """
    return max(re.findall(r"[A-Za-z0-9_]+", text), key=len, default="")


def in_base64(text: str) -> Iterator[str]:
    """What of it is the same whatever stands before and after it, at each of the three alignments."""
    raw = text.encode(errors="surrogateescape")
    for before in range(3):
        begin = (before * 8 + 5) // 6
        letters = (before + len(raw)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found = encode(b"\0" * before + raw).decode()[begin:letters]
            if len(found) >= _BASE64_LEAST:
                yield found
