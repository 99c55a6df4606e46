"""Text from outside (names, errors, log lines, what hosts and programs say) is shown as text,
whatever it holds.

A terminal takes some characters for commands, and some make it show others elsewhere, or nothing at
all. They are shown as Python writes them: `\\x1b`, `\\u202e`. A line break is shown as `\\n`, so
nothing from outside looks like a line of ours; where a text of several lines is told, whoever tells
it parts it first.
"""

import re
from collections.abc import Iterable

_UNSHOWN = re.compile(
    "[\x00-\x08\n-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""**Source:** Unicode 15: Cc (without the tab), Zl, Zp, Cs, and Default_Ignorable_Code_Point (bidi,
zero width).
"""

_LONE = re.compile("[\ud800-\udfff]")


def on_one_line(text: str) -> str:
    """The text with everything escaped that is no visible character, line breaks too."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSHOWN.sub(_escaped, text)


def as_lines(lines: Iterable[str]) -> str:
    """A text of these lines: a line break inside one of them ends none."""
    return "\n".join(map(on_one_line, lines))


def without_lone_surrogates(text: str) -> str:
    """The text as UTF-8 can have it: half a character, which no encoding has, is escaped."""
    return text if text.isascii() else _LONE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
