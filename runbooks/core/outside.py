"""Text from outside (names, errors, log lines, output of programs) is shown as plain text.

Some characters are commands for a terminal; others move text or are invisible. They are shown in
Python's form: `\\x1b`, `\\u202e`. A line break is shown as `\\n`, so nothing from outside looks
like a line of this tool; a text of several lines is split before it is shown.
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
    """The text with every invisible character escaped, including line breaks."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSHOWN.sub(_escaped, text)


def as_lines(lines: Iterable[str]) -> str:
    """A text of these lines; line breaks inside a line are escaped."""
    return "\n".join(map(on_one_line, lines))


def without_lone_surrogates(text: str) -> str:
    """The text with every half character escaped, so that UTF-8 can encode it."""
    if text.isascii():
        return text
    return _LONE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
