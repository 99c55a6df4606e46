"""New messages of an archive are sent once, at the given rate, and recalled while they wait."""

import time
from pathlib import Path

import pytest
import redis
from celery import Celery

from runbooks.broker.broker import Broker
from runbooks.broker.messages.build import task_message
from runbooks.broker.messages.parse import Message, parse
from runbooks.core.effects import SendAgain
from runbooks.core.settings import AppSettings
from runbooks.retry_archived import _not_safe
from tests.unit.broker.conftest import Send, listed

IDS = {f"new-{n}": f"old-{n}" for n in range(7)}


@pytest.fixture
def broker(url: str, client: "redis.Redis") -> Broker:  # the db is emptied before
    return Broker(AppSettings(app="shop", broker_url=url), lambda *_: None)


@pytest.fixture
def path(broker: Broker, tmp_path: Path) -> Path:
    made = [
        (f"sent again for {old}", task_message(new, "shop.add", [], {}, "work", "me@here"))
        for new, old in IDS.items()
    ]
    (tmp_path / "20260101-000000-aaaa").mkdir()
    path = tmp_path / "20260101-000000-aaaa" / "work.messages.jsonl"
    broker.archive_new(path, "work", made)
    return path


def test_each_is_sent_once_the_first_to_run_first_and_no_faster_than_asked(
    broker: Broker, path: Path, client: "redis.Redis"
) -> None:
    assert listed(client, "work") == []
    first = {"new-0": "old-0", "new-1": "old-1"}
    assert (
        broker.send_again(SendAgain(str(path), first, 1000, "one"), path)
        == "2 messages sent to work"
    )
    began = time.monotonic()
    assert (
        broker.send_again(SendAgain(str(path), IDS, 20, "two"), path) == "5 messages sent to work"
    )
    assert (
        broker.send_again(SendAgain(str(path), IDS, 2, "three"), path) == "0 messages sent to work"
    )
    assert [
        f"new-{n}".encode() in raw for n, raw in enumerate(reversed(listed(client, "work")))
    ] == [True] * 7
    assert time.monotonic() - began < 2


def test_what_waits_is_recalled_and_may_be_sent_again(
    broker: Broker, path: Path, client: "redis.Redis"
) -> None:
    began = time.monotonic()
    broker.send_again(SendAgain(str(path), IDS, 5, "one"), path)
    assert time.monotonic() - began >= 1, "seven at five a second"
    client.rpop("work")
    found = broker.recallable(path, "one")
    assert (found.count, found.gone) == (6, 1)
    assert broker.recall(path, "one") == "6 messages returned to the archive"
    assert listed(client, "work") == []
    assert (
        broker.send_again(SendAgain(str(path), IDS, 100, "two"), path) == "6 messages sent to work"
    )


def why_not(client: "redis.Redis") -> str:
    """Why the only message that waits cannot be sent again; it is taken out."""
    [raw] = listed(client, "work")
    client.delete("work")
    look = parse(raw)
    assert isinstance(look, Message)
    return _not_safe(raw, look, time.time())


def test_what_an_archived_message_itself_forbids_is_said(
    url: str, client: "redis.Redis", send: Send, app: Celery
) -> None:
    chord = {"task": "end", "args": [], "kwargs": {}, "options": {}}
    for options, why in (
        ({"retries": 2, "countdown": 600, "expires": 900}, ""),
        ({"link": app.signature("after")}, ""),
        ({"group_id": "some-group"}, "belongs to a group or chord"),
        ({"chord": chord}, "belongs to a group or chord"),
        ({"expires": -10}, "has expired"),
        ({"serializer": "pickle"}, "unknown whether a chord waits"),
    ):
        send("shop.add", "work", 1, **options)
        said = why_not(client)
        assert (bool(said), why in said) == (bool(why), True), said
    with Celery(broker=url, set_as_current=False) as old:
        old.conf.task_protocol = 1
        old.send_task("shop.add", [1], queue="work")
    assert "protocol 1" in why_not(client)
