"""A message that this tool writes, beside one of Celery's own."""

import json
from typing import Any

import redis

from runbooks.broker.messages.body import body_value
from runbooks.broker.messages.build import task_message
from runbooks.broker.messages.fast_parse import Headers, read
from tests.unit.broker.conftest import Send, listed

OWN = ("id", "root_id", "origin", "correlation_id", "reply_to", "delivery_tag")


def without_own(raw: bytes) -> dict[str, Any]:
    envelope = json.loads(raw)
    for part in ("headers", "properties"):
        envelope[part] = {name: value for name, value in envelope[part].items() if name not in OWN}
    return {**envelope, "body": body_value(raw)}


def test_a_message_is_as_celery_itself_writes_it(send: Send, client: "redis.Redis") -> None:
    send("shop.add", "work", 1, "two", kwargs={"x": None}, ignore_result=False)
    [theirs] = listed(client, "work")
    ours = task_message("some-id", "shop.add", [1, "two"], {"x": None}, "work", "somebody@here")
    assert without_own(ours) == without_own(theirs)
    [headers] = read([ours])
    assert isinstance(headers, Headers)
    assert (headers.id, headers.task, headers.retries) == ("some-id", "shop.add", 0)
