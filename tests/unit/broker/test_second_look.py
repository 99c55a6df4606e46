"""A second look at a real Redis counts each item of its lists once."""

import json

import redis

from runbooks.broker.second_look import look_again
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store


def test_each_waiting_message_counts_once_for_the_task_that_sent_it(client: "redis.Redis") -> None:
    """There are more items than are read from one end of a list, and fewer than from both."""
    client.lpush(
        "high", *(json.dumps({"headers": {"parent_id": "t1"}, "n": n}) for n in range(300))
    )
    seen = look_again(Store(client, KeySpace()), ["high"], lambda: 0.0, dict)
    assert seen.senders == {"high": {"t1": 300}}
    assert seen.unmoved == {"high"}
    assert seen.waiting_clients == 0
