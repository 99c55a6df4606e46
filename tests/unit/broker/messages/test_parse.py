"""Items that would kill a worker are distinguished from those that it survives, as the installed
Celery does.
"""

import base64
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runbooks.broker.messages.parse import Malformed, Message, Unreadable, parse
from runbooks.core.model import Form
from tests.unit.broker.conftest import Send, listed
from tests.unit.broker.messages.oracle import Oracle


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def worker(url: str, client: "redis.Redis", quiet: None) -> Oracle:
    return Oracle(url, client)


def encoded(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


ABSENT = object()
JUNK: list[Any] = [ABSENT, None, 0, 5, 1.5, True, "", "x", "abc", [], [1], {}, {"a": 1}, "\ud800", float("nan"),
                   {"__type__": "bytes", "__value__": "x"}, {"__type__": "nope", "__value__": 1},
                   {"__type__": "decimal", "__value__": "x"}, {"__type__": [], "__value__": 1}]  # fmt: skip
PAYLOADS: list[Any] = [
    None, 5, "abc", "args", [], [1, 2], [[], {}, {}], [[], {}, {}, 1], ["args", 1], {}, {"args": []},
    {"args": [], "kwargs": 5}, {"args": [1], "kwargs": {}, "task": "old", "id": "1"}, {"task": "old", "id": "1"},
]  # fmt: skip
BODIES = [*map(encoded, PAYLOADS), "A", "!!!!", "AAAA=", "é"]
PATHS = [("body",), ("content-type",), ("content-encoding",), ("headers",), ("properties",),
         *(("headers", name) for name in ("task", "id", "eta", "expires", "timelimit", "compression", "retries",
                                          "argsrepr", "shadow", "ignore_result", "lang")),
         *(("properties", name) for name in ("delivery_tag", "delivery_info", "body_encoding", "priority")),
         ("properties", "delivery_info", "exchange"), ("properties", "delivery_info", "routing_key")]  # fmt: skip
SPECIAL: dict[str, list[Any]] = {
    "body": BODIES,
    "content-type": [
        "application/x-python-serialize",
        "application/data",
        "application/text",
        "text/plain",
        "application/json",
    ],
    "content-encoding": ["utf-16", "binary", "nope"],
    "body_encoding": ["BASE64", "utf-8", "rot13"],
    "compression": ["gzip", "nope", "application/x-bz2"],
    "eta": ["junk", "2020-01-01T00:00:00", "2020-01-01T00:00:00+02:00"],
    "expires": ["junk", "2020-01-01T00:00:00"],
    "timelimit": [[1, 2], [1], [None, None]],
}


def changed(raw: bytes, path: tuple[str, ...], value: Any) -> bytes:
    """The envelope with one member set to a value, or without it; unchanged if the path is missing."""
    envelope = json.loads(raw)
    place = envelope
    for name in path[:-1]:
        place = place.get(name)
        if not isinstance(place, dict):
            return raw
    if value is ABSENT:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return json.dumps(envelope).encode()


def assert_agree(raw: bytes, worker: Oracle) -> None:
    ours, death = parse(raw), worker.raises(raw)
    assert isinstance(ours, Malformed) == (death is not None), (ours, death, raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"null",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b"nan",
        b"[" * 3000,
        b'{"properties": {}}',
        b"true",
    ],
)
def test_what_is_not_an_envelope_kills_the_worker_that_pops_it(raw: bytes, worker: Oracle) -> None:
    assert isinstance(parse(raw), Malformed)
    assert_agree(raw, worker)


def test_every_message_that_celery_makes_is_read_and_survived(
    envelopes: list[bytes], worker: Oracle
) -> None:
    for raw in envelopes:
        assert isinstance(parse(raw), Message)
        assert worker.raises(raw) is None


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_any_one_damaged_member_is_judged_as_the_worker_judges_it(
    path: tuple[str, ...], envelopes: list[bytes], worker: Oracle
) -> None:
    for value in [*JUNK, *SPECIAL.get(path[-1], [])]:
        assert_agree(changed(envelopes[-1], path, value), worker)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_of_envelopes_damaged_in_several_places_none_that_kills_is_overlooked_and_none_that_runs_is_condemned(
    data: st.DataObject, envelopes: list[bytes], worker: Oracle
) -> None:
    raw = data.draw(st.sampled_from(envelopes))
    for path in data.draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3)):
        raw = changed(raw, path, data.draw(st.sampled_from([*JUNK, *SPECIAL.get(path[-1], [])])))
    if data.draw(st.integers(0, 9)) == 0:
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    # Of two faults one may make Celery discard the message before it would die of the other.
    if isinstance(parse(raw), Malformed):
        assert not worker.runs(raw)
    else:
        assert_agree(raw, worker)


def test_a_message_shows_its_task_times_retries_and_arguments(
    send: Send, client: "redis.Redis"
) -> None:
    eta = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    task_id = send("mail.send", "work", 7, kwargs={"to": "a"}, eta=eta, expires=eta, retries=3)
    message = parse(listed(client, "work")[0])
    assert isinstance(message, Message)
    assert (message.id, message.task, message.retries) == (task_id, "mail.send", 3)
    assert message.eta_at == message.expires_at == eta.timestamp()
    assert message.args == "(7,) {'to': 'a'}"
    assert message.delivery_tag


def test_an_eta_without_a_zone_is_utc_and_an_unreadable_one_is_none(envelopes: list[bytes]) -> None:
    def eta(text: Any) -> float | None:
        message = parse(changed(envelopes[-1], ("headers", "eta"), text))
        assert isinstance(message, Message)
        return message.eta_at

    assert eta("2026-01-01T00:00:00") == datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert eta("2026-01-01T00:00:00+02:00") == datetime(2025, 12, 31, 22, tzinfo=UTC).timestamp()
    assert eta("tomorrow") is None
    assert eta(5) is None


@pytest.mark.parametrize("compression", [None, "gzip", "bzip2", "lzma"])
def test_a_protocol_1_message_is_read_from_its_json_body(
    app: Celery, send: Send, client: "redis.Redis", compression: str | None
) -> None:
    app.conf.task_protocol = 1
    app.amqp.__dict__.pop("create_task_message", None)
    task_id = send("old.task", "work", 1, retries=2, countdown=60, compression=compression)
    [raw] = listed(client, "work")
    assert "task" not in json.loads(raw)["headers"]
    message = parse(raw)
    assert isinstance(message, Message)
    assert (message.id, message.task, message.retries) == (task_id, "old.task", 2)
    assert message.eta_at is not None


def test_a_pickled_protocol_1_message_is_unreadable_and_a_pickled_protocol_2_message_is_read(
    app: Celery, send: Send, client: "redis.Redis"
) -> None:
    send("new.task", "work", serializer="pickle")
    new = parse(listed(client, "work")[0])
    assert isinstance(new, Message)
    assert new.task == "new.task"
    app.conf.task_protocol = 1
    app.amqp.__dict__.pop("create_task_message", None)
    send("old.task", "work", serializer="pickle")
    old = parse(listed(client, "work")[0])
    assert isinstance(old, Unreadable)
    assert "application/x-python-serialize" in old.why


def test_long_arguments_are_cut(send: Send, client: "redis.Redis") -> None:
    send("mail.send", "work", "x" * 500)
    message = parse(listed(client, "work")[0])
    assert isinstance(message, Message)
    assert len(message.args) == 120


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({}, Form()),
        ({"content-type": "application/x-python-serialize", "content-encoding": "binary"},
         Form("application/x-python-serialize", "binary")),
        ({"headers": {"task": "a.b", "id": "1", "compression": "zstd"}}, Form(compression="zstd")),
        ({"headers": {}}, Form(protocol=0)),
    ],
)  # fmt: skip
def test_how_a_message_is_written_is_reported(changes: dict[str, Any], form: Form) -> None:
    body = base64.b64encode(b"{}" if changes.get("headers") == {} else b"[[], {}, {}]").decode()
    properties = {
        "delivery_tag": "t",
        "delivery_info": {"exchange": "", "routing_key": "q"},
        "body_encoding": "base64",
    }
    envelope = {
        "body": body, "content-type": "application/json", "content-encoding": "utf-8",
        "headers": {"task": "a.b", "id": "1"}, "properties": properties,
    }  # fmt: skip
    found = parse(json.dumps(envelope | changes).encode())
    assert isinstance(found, Message | Unreadable)
    assert found.form == form


def test_a_decompression_bomb_is_unreadable_and_not_unpacked(envelopes: list[bytes]) -> None:
    import base64
    import json
    import zlib

    envelope = json.loads(next(raw for raw in envelopes if b"gzip" in raw))
    envelope["body"] = base64.b64encode(zlib.compress(bytes(64 * 1024 * 1024))).decode()
    found = parse(json.dumps(envelope).encode())
    assert isinstance(found, Unreadable)
    assert found.why == "it unpacks to more than 16 MiB"
