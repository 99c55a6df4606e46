"""What `verify` tested, as CI reads it."""

from xml.etree import ElementTree

import pytest

from runbooks.core.reporter import Check
from runbooks.reports.junit import junit

CHECKS = (
    Check("hosts answer", True, "1 of 1"),
    Check("nodes answer", False, "0 of 1"),
    Check("more", None, "unseen"),
)


def test_what_holds_passes_what_does_not_fails_and_what_was_not_seen_is_skipped() -> None:
    (suite,) = ElementTree.fromstring(junit("shop", CHECKS, 1_750_000_000.0))
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == [
        "3",
        "1",
        "0",
        "1",
    ]
    assert suite.get("timestamp") == "2025-06-15T15:06:40+00:00"
    assert [case.get("name") for case in suite] == ["hosts answer", "nodes answer", "more"]
    assert [(part.tag, part.get("message") or part.text) for case in suite for part in case] == [
        ("system-out", "1 of 1"),
        ("failure", "0 of 1"),
        ("skipped", "unseen"),
    ]


@pytest.mark.parametrize(
    "text",
    ["<x/>", "]]>", "\x00\x1b[2J\n", "\ud800\ufffe\uffff", "redis://u:hunter22@h/0", "\"'&amp;"],
)
def test_whatever_a_check_says_is_text_and_no_secret(text: str) -> None:
    (suite,) = ElementTree.fromstring(junit(text, [Check(text, False, text)], 0.0))
    assert "hunter22" not in "".join(value for one in suite.iter() for value in one.attrib.values())
    assert [one.tag for one in suite.iter()] == ["testsuite", "testcase", "failure"]
