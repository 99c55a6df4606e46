"""One task's message is found wherever Celery puts it, and nothing is changed."""

import json
import time

import redis

from runbooks.broker.queues.find import find_message
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from tests.unit.broker.conftest import Send, listed

KEYS = KeySpace()


def test_a_waiting_message_is_found_with_how_many_run_before_it(
    client: "redis.Redis", send: Send
) -> None:
    for _ in range(1500):
        send("shop.bill")
    wanted = send("shop.ship", "work", 7)
    send("shop.bill")
    later = send("shop.bill", priority=9)
    place = find_message(Store(client, KEYS), ["other", "work"], wanted)
    assert place
    assert (place.queue, place.ahead, place.message.task, place.message.args) == (
        "work",
        1500,
        "shop.ship",
        "(7,)",
    )
    last = find_message(Store(client, KEYS), ["other", "work"], later)
    assert last
    assert last.ahead == 1502


def test_of_an_attempt_and_its_retry_the_retry_is_reported_with_its_time(
    client: "redis.Redis", send: Send
) -> None:
    send("shop.bill", task_id="id-1")
    send("shop.bill", task_id="id-1", retries=2, countdown=300)
    for n in range(2):
        entry = json.dumps(
            [json.loads(listed(client, "work")[-1]), "", "work"]
        )  # as a worker that has taken it
        client.hset("unacked", f"tag-{n}", entry)
        client.rpop("work")
    client.hset("unacked", "foreign", "id-1 is not a message")
    before = {key: client.dump(key) for key in client.scan_iter()}
    place = find_message(Store(client, KEYS), ["work"], "id-1")
    assert place
    assert (place.queue, place.message.retries) == (None, 2)
    assert place.message.eta_at
    assert 200 < place.message.eta_at - time.time() <= 300
    assert {key: client.dump(key) for key in client.scan_iter()} == before


def test_an_id_that_only_stands_in_another_message_is_not_found(
    client: "redis.Redis", send: Send
) -> None:
    send("shop.bill", "work", "id-1")
    assert find_message(Store(client, KEYS), ["work", "none"], "id-1") is None
