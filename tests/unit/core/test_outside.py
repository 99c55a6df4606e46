"""Whatever a text from outside holds, it is shown as text, on one line."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbooks.core.outside import as_lines, on_one_line, without_lone_surrogates


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "a\tb plain \u20ac gr\xfc\xdfe \u65e5\u672c",
            "a\tb plain \u20ac gr\xfc\xdfe \u65e5\u672c",
        ),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\nok     FORGED\r", r"a\nok     FORGED\r"),
        ("\x9b31m\x85\u2028", r"\x9b31m\x85\u2028"),
        ("user\u202e\u2066txt", r"user\u202e\u2066txt"),
        ("ad\u200bmin\u200d\ufeff\xad", r"ad\u200bmin\u200d\ufeff\xad"),
        ("\U000e0041\ufe0f\u3164", r"\U000e0041\ufe0f\u3164"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_is_not_a_visible_character_is_escaped(text: str, shown: str) -> None:
    assert on_one_line(text) == shown


@given(st.text())
def test_what_is_shown_is_one_line_that_every_terminal_prints(text: str) -> None:
    shown = on_one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not [
        c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\t"
    ]
    assert not [
        c
        for c in shown
        if unicodedata.bidirectional(c)
        in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    ]
    assert len(as_lines([text, text]).split("\n")) == 2


@given(st.text(st.characters(codec=None)))
def test_what_json_gets_is_in_every_encoding_of_unicode(text: str) -> None:
    shown = without_lone_surrogates(text)
    shown.encode()
    assert json.loads(json.dumps(shown)) == shown
