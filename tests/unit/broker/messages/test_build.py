"""A message that this tool writes is compared with one of Celery's."""

import json
from typing import Any

import redis
from celery import Celery

from runbooks.broker.messages.body import body_value
from runbooks.broker.messages.build import task_message, under_another_id
from runbooks.broker.messages.fast_parse import Headers, read
from tests.unit.broker.conftest import Send, listed

OWN = ("id", "root_id", "origin", "correlation_id", "reply_to", "delivery_tag")


def without_own(raw: bytes) -> dict[str, Any]:
    envelope = json.loads(raw)
    for part in ("headers", "properties"):
        envelope[part] = {name: value for name, value in envelope[part].items() if name not in OWN}
    return {**envelope, "body": body_value(raw)}


def test_a_message_goes_under_another_id_with_all_else_as_it_was(
    send: Send, client: "redis.Redis"
) -> None:
    send("shop.add", "work", 1, retries=2, priority=6, expires=600)
    [theirs] = client.lrange("work\x06\x166", 0, -1)
    given_back = json.loads(theirs)
    given_back["headers"]["redelivered"] = given_back["properties"]["delivery_info"][
        "redelivered"
    ] = True
    made = under_another_id(json.dumps(given_back).encode(), "another", "other")
    assert made is not None
    before, after = json.loads(theirs), json.loads(made)
    changed = {
        f"{part}.{name}"
        for part in ("headers", "properties")
        for name in {*before[part], *after[part]}
        if before[part].get(name) != after[part].get(name)
    }
    ids = {"headers.id", "headers.root_id", "properties.correlation_id", "properties.delivery_tag"}
    assert changed == {*ids, "properties.delivery_info"}
    assert after["properties"]["delivery_info"] == {"exchange": "", "routing_key": "other"}
    assert (before["body"], before["content-type"]) == (after["body"], after["content-type"])
    assert (after["headers"]["id"], after["headers"]["root_id"]) == ("another", "another")


def test_a_message_with_its_id_in_the_body_is_left(client: "redis.Redis", url: str) -> None:
    with Celery(broker=url, set_as_current=False) as app:
        app.conf.task_protocol = 1
        app.send_task("shop.add", [1], queue="work")
    [old] = listed(client, "work")
    assert under_another_id(old, "another", "work") is None
    assert under_another_id(b"no message", "another", "work") is None


def test_a_message_is_as_celery_itself_writes_it(send: Send, client: "redis.Redis") -> None:
    send("shop.add", "work", 1, "two", kwargs={"x": None}, ignore_result=False)
    [theirs] = listed(client, "work")
    ours = task_message("some-id", "shop.add", [1, "two"], {"x": None}, "work", "somebody@here")
    assert without_own(ours) == without_own(theirs)
    [headers] = read([ours])
    assert isinstance(headers, Headers)
    assert (headers.id, headers.task, headers.retries) == ("some-id", "shop.add", 0)
