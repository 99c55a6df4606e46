"""The selection language: rules are read and written alike, and all mistakes are reported."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbooks.cli.verbs.selection import IN_QUEUES
from runbooks.core.errors import UsageError
from runbooks.core.model import Rule
from runbooks.core.rules import QueueRule, destination, fits, from_flags, literal, parse, text

NAMES = st.text("abcxyz._-*?é'\" $", min_size=1, max_size=8).map(str.strip).filter(bool)
FLAGS = st.fixed_dictionaries(
    {"queue": st.lists(NAMES, min_size=1, max_size=3)},
    optional={
        "task": st.lists(NAMES, min_size=1, max_size=3),
        "content_type": st.lists(NAMES, min_size=1, max_size=2),
        "compression": st.lists(NAMES, min_size=1, max_size=2),
        "eta_overdue": st.from_regex(r"[0-9]{1,4}(\.[0-9])?[smhd]", fullmatch=True),
        "retries": st.integers(0, 99).map(">{}".format),
        "expired": st.just(True),
        "unregistered": st.just(True),
        "duplicate": st.sampled_from(["keep=newest", "keep=oldest"]),
        "keep_newest": st.integers(1, 9).map(str),
        "id": st.lists(NAMES, min_size=1, max_size=3),
        "arg": st.lists(
            st.text(max_size=6)
            | st.sampled_from(["1", "1.0", "true", '{"b": 1, "a": [2]}', "k=v", "k=7"])
        ),
        "with_workflows": st.just(True),
        "requeue_to": st.sampled_from(["high", "high:0", "a:b:9"]),
        "reason": NAMES,
    },
).filter(lambda flags: not {"duplicate", "keep_newest"} <= flags.keys())


@given(flags=FLAGS)
def test_a_rule_is_shown_as_flags_that_say_the_same_rule(flags: dict[str, Any]) -> None:
    rule = from_flags(flags)
    assert rule is not None
    assert parse(text(rule)) == rule


@given(flags=FLAGS)
def test_the_inventory_and_the_command_line_say_the_same(flags: dict[str, Any]) -> None:
    assert QueueRule.model_validate(flags).rule() == from_flags(flags)


def test_every_key_of_the_inventory_is_a_flag() -> None:
    assert set(QueueRule.model_fields) == set(IN_QUEUES)


def test_a_rule_reads_as_an_operator_would_type_it() -> None:
    rule = Rule(
        "gave up", "low*,daemon", "integrations.*", 3600, 2, ids=("a", "b"), args=("7", 'serial="x y"'),
        requeue_to="high:0",
    )  # fmt: skip
    assert (
        text(rule)
        == "--queue 'low*,daemon' --task 'integrations.*' --eta-overdue 1h --retries '>2' --id a,b"
        " --arg 7 --arg 'serial=\"x y\"' --requeue-to high:0 --reason 'gave up'"
    )


def test_a_rule_without_a_reason_gives_itself_as_the_reason() -> None:
    rule = from_flags({"task": ["mail.*"], "expired": True})
    assert rule is not None
    assert rule.reason == "--task 'mail.*' --expired" == text(rule)


def test_no_flag_at_all_is_not_a_rule() -> None:
    assert from_flags({"queue": [], "task": None, "expired": False}) is None


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"retries": "2"}, "--retries: write it as '>N', e.g. '>2'"),
        ({"retries": ">2", "task": [""]}, "--task: must not be empty"),
        ({"eta_overdue": "soon"}, "--eta-overdue: expected seconds"),
        ({"duplicate": "newest"}, "--duplicate: write it as keep=newest or keep=oldest"),
        ({"id": ["a,,b"]}, "--id: must not be empty"),
        (
            {"queue": ["q"], "requeue_to": "high:12"},
            "--requeue-to: write it as QUEUE or QUEUE:PRIORITY",
        ),
        ({"requeue_to": "high"}, "it does not say which messages: name at least a queue"),
        ({"with_workflows": True}, "it does not say which messages"),
        ({"reason": "r"}, "it does not say which messages"),
        ({"malformed": True, "task": ["a"]}, "malformed items are not messages"),
        ({"malformed": True, "requeue_to": "high"}, "malformed items are not messages"),
        (
            {"unacked": True, "duplicate": "keep=newest"},
            "unacked messages have no order, so no duplicate",
        ),
        (
            {"unacked": True, "keep_newest": "9"},
            "unacked messages have no order, so none is the newest",
        ),
        ({"duplicate": "keep=newest", "keep_newest": "9"}, "exclude each other"),
        ({"keep_newest": "0"}, "--keep-newest: "),
        ({"keep_newest": True}, "--keep-newest: write it as a number, 1 or more"),
    ],
)
def test_what_means_nothing_is_refused_in_words_that_help(
    flags: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=r".+") as caught:
        from_flags(flags)
    assert problem in caught.value.problem


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        from_flags({"retries": "2", "eta_overdue": "x", "id": [""]})
    assert [line.split(":")[0] for line in caught.value.problem.splitlines()] == [
        "--eta-overdue",
        "--retries",
        "--id",
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("7", "7"), ("true", "true"), ("1.0", "1.0"), ('"7"', '"7"'), ("abc", '"abc"'), ("", '""'), (7, "7"),
        ('{"b":1, "a":2}', '{"a":2,"b":1}'), ("id=7", "id=7"), ("id=x", 'id="x"'), ("id=a=b", 'id="a=b"'),
        ('"id=7"', '"id=7"'), (None, "null"),
    ],
)  # fmt: skip
def test_an_argument_is_json_or_is_taken_as_it_is(written: object, meant: str) -> None:
    assert QueueRule.model_validate({"arg": [written]}).arg == (meant,)


def test_patterns_are_a_shells_and_separated_by_commas() -> None:
    assert fits("a.*,b", "a.x")
    assert fits("a.*,b", "b")
    assert not fits("a.*,b", "bb")
    assert literal("low*,high,d?") == ("high",)


@pytest.mark.parametrize(
    ("written", "meant"), [("q", ("q", None)), ("q:0", ("q", 0)), ("a:b", ("a:b", None))]
)
def test_a_destination_is_a_queue_or_a_queue_and_a_priority(
    written: str, meant: tuple[str, int | None]
) -> None:
    assert destination(written) == meant
