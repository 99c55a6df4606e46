"""The cheap look at a message agrees with the full judgement of the same bytes."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbooks.broker.messages.fast_parse import glance, outlines
from runbooks.broker.messages.parse import Malformed, Message, parse
from tests.unit.broker.messages.test_parse import JUNK, PATHS, SPECIAL, changed


def assert_sound(raw: bytes) -> bool:
    """If the glance answers, the full judgement is a message with the same fields; True if it
    answered.
    """
    assert_outlined(raw)
    headers = glance(raw)
    if headers is None:
        return False
    message = parse(raw)
    assert isinstance(message, Message), raw
    assert (message.task, message.id, message.retries) == (
        headers.task,
        headers.id,
        headers.retries or 0,
    ), raw
    return True


def assert_outlined(raw: bytes) -> None:
    """If there is an outline, the full judgement agrees, or the item is malformed."""
    [outline] = outlines([raw])
    message = parse(raw)
    if outline is not None and not isinstance(message, Malformed):
        assert isinstance(message, Message), raw
        assert (message.task, message.id, message.retries) == (
            outline.task,
            outline.id,
            outline.retries or 0,
        ), raw
        assert (message.eta_at, message.expires_at) == (outline.eta_at, outline.expires_at), raw


def test_most_of_what_celery_makes_is_read_at_a_glance(envelopes: list[bytes]) -> None:
    plain = [raw for raw in envelopes if b"gzip" not in raw]
    assert len(plain) == 3
    assert all(map(assert_sound, plain))
    assert [glance(raw) for raw in envelopes if b"gzip" in raw] == [None]
    assert None not in outlines(envelopes), "compressed or not"


def test_no_changed_byte_makes_a_malformed_message_pass(envelopes: list[bytes]) -> None:
    draw = random.Random(3)
    answered = 0
    for raw in envelopes:
        for at in range(len(raw)):
            for byte in (
                *draw.sample(range(256), 2),
                *draw.sample(b'"\\{}[],:01.-eE\x00\t\n/=', 2),
            ):
                answered += assert_sound(raw[:at] + bytes([byte]) + raw[at + draw.randrange(2) :])
            if draw.random() < 0.3:
                assert_sound(raw[:at])
                assert_sound(raw[:at] + raw[at + draw.randrange(1, 9) :])
    assert answered > 100


def test_headers_that_an_application_added_are_not_a_reason_to_look_longer(
    envelopes: list[bytes],
) -> None:
    raw = envelopes[-1].replace(
        b'"lang": "py"', b'"lang": "py", "traceparent": "00-1-2", "baggage": {"a": [1]}'
    )
    assert raw != envelopes[-1]
    assert assert_sound(raw)


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_any_one_damaged_member_is_judged_alike(
    path: tuple[str, ...], envelopes: list[bytes]
) -> None:
    for value in [*JUNK, *SPECIAL.get(path[-1], [])]:
        for raw in envelopes:
            assert_sound(changed(raw, path, value))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_several_damaged_members_are_judged_alike(
    data: st.DataObject, envelopes: list[bytes]
) -> None:
    raw = data.draw(st.sampled_from(envelopes))
    for path in data.draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3)):
        raw = changed(raw, path, data.draw(st.sampled_from([*JUNK, *SPECIAL.get(path[-1], [])])))
    assert_sound(raw)


@pytest.mark.parametrize(
    "value",
    ["1" * 5000, "[" * 1200 + "]" * 1200, '{"a":' * 1200 + "1" + "}" * 1200, "01", "1.", "-", "+1", ".5", "1e", "tru",
     '{"__type__": "nope", "__value__": 1}', r'{"\u005f_type__": "nope", "__value__": 1}', '"\\x"', '"\t"', '"\\u12"',
     '"\x7f"', '"\\ud800"', "[1,]", "{,}", '{"a" 1}', "'a'", "1e999", "-0", "NaN", "1 2"],
)  # fmt: skip
def test_a_member_that_no_one_asks_for_is_checked_all_the_same(
    value: Any, envelopes: list[bytes]
) -> None:
    for known in (
        b'"lang": "py"',
        b'"delivery_mode": 2',
        b'"stamps": {}',
        b'"retries": 0',
        b'"priority": 0',
    ):
        for replaced in (
            known.split(b":")[0] + b": ",
            known + b', "other": ',
            known + b', "__type__": ',
        ):
            for raw in envelopes:
                assert_sound(raw.replace(known, replaced + value.encode()))
