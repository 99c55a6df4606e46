"""`inv messages` shows messages in the order in which workers take them, and unpickles nothing."""

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery

from runbooks.broker.messages.selection import Facts
from runbooks.broker.queues.ends import next_first
from runbooks.broker.queues.scan import no_progress
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.broker.views.message_looks import Wanted, show_messages
from runbooks.core.errors import UsageError
from runbooks.core.redaction import keep_secret
from runbooks.core.rules import from_flags
from runbooks.core.views import MessagesView, MessageView
from tests.brokers import Kind, fetch_and_die
from tests.unit.broker.conftest import Send, listed

Show = Callable[..., MessagesView]


class Pickled:
    """A value that shows whether it was unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


@pytest.fixture
def show(client: "redis.Redis") -> Show:
    """Shows the messages of the queue `work` that flags select."""

    def one(
        queue: str = "work",
        grep: str = "",
        limit: int = 100,
        full: bool = False,
        unacked: bool = False,
        **flags: Any,
    ) -> MessagesView:
        wanted = Wanted(from_flags(flags), grep, limit, full, unacked)
        facts = Facts(time.time(), frozenset({"known"}))
        return show_messages(
            Store(client, KeySpace()), queue, ("work",), wanted, facts, no_progress
        )

    return one


def ids(view: MessagesView) -> list[str | None]:
    return [message.id for message in view.messages]


def test_messages_stand_in_the_order_in_which_a_worker_takes_them(
    client: "redis.Redis", send: Send, show: Show, app: Celery
) -> None:
    for n in range(30):
        send("report", "work", n, priority=n * 7 % 10)
    view = show()
    assert [message.ahead for message in view.messages] == list(range(30))
    assert {message.priority for message in view.messages} == {0, 3, 6, 9}
    with app.connection_for_read() as connection:
        simple = connection.SimpleQueue("work")
        taken = []
        for _ in range(30):
            message = simple.get_nowait()
            taken.append(message.headers["id"])
            message.ack()
        simple.close()
    assert ids(view) == taken


def test_a_message_is_shown_with_what_its_envelope_says(
    client: "redis.Redis", send: Send, show: Show
) -> None:
    send("mail", "work")
    options: dict[str, Any] = {"priority": 3, "retries": 2, "countdown": 600, "expires": 1200}
    sent = send("report", "work", 7, compression="gzip", **options)
    now = time.time()
    mail, report = show().messages
    assert report.eta_at == pytest.approx(now + 600, abs=10)
    assert report.expires_at == pytest.approx(now + 1200, abs=10)
    assert report == MessageView(
        state="message",
        why="",
        priority=3,
        ahead=1,
        id=sent,
        task="report",
        retries=2,
        eta_at=report.eta_at,
        expires_at=report.expires_at,
        args="(7,)",
        origin=f"gen{os.getpid()}@{socket.gethostname()}",
        content_type="application/json",
        compression="application/x-gzip",
        size_bytes=len(listed(client, "work\x06\x163")[0]),
        aside=False,
        fetched_at=None,
    )
    assert (mail.retries, mail.eta_at, mail.expires_at, mail.compression) == (0, None, None, None)
    assert (mail.envelope, mail.body, mail.body_unread) == (None, None, "")
    client.rename("work", KeySpace().work("work"))
    assert [(one.task, one.aside) for one in show().messages] == [("mail", True), ("report", False)]


def test_of_a_pickled_message_of_protocol_1_only_its_envelope_is_known(
    app: Celery, client: "redis.Redis", show: Show
) -> None:
    app.conf.task_protocol = 1
    app.send_task("mail", queue="work", serializer="pickle")
    [message] = show().messages
    assert (message.state, message.task, message.id, message.retries) == (
        "unreadable",
        None,
        None,
        None,
    )
    assert message.why == "its content type is application/x-python-serialize"
    assert message.content_type == "application/x-python-serialize"


def test_only_so_many_are_shown_and_it_says_whether_there_are_more(send: Send, show: Show) -> None:
    sent = [send("report", "work", n) for n in range(7)]
    few = show(limit=3)
    assert (ids(few), few.depth, few.complete) == (sent[:3], 7, False)
    assert show(limit=7).complete


def test_a_view_repeats_what_was_asked_for(send: Send, show: Show) -> None:
    send("report", "work", retries=4)
    send("mail", "work")
    every = show()
    assert (every.queue, every.depth, every.looked_at, len(every.messages)) == ("work", 2, 2, 2)
    assert (every.selection, every.grep, every.full, every.fetched) == ("", "", False, False)
    some = show(task=["rep*"], retries=">2", grep="report", full=True)
    assert (some.selection, some.grep, some.full) == (
        "--task 'rep*' --retries '>2'",
        "report",
        True,
    )
    assert (some.depth, some.looked_at, len(some.messages)) == (2, 2, 1)
    assert show(unacked=True).fetched


def test_the_flags_of_clean_queues_select(client: "redis.Redis", send: Send, show: Show) -> None:
    old = send("report", "work", 1, retries=4, countdown=-7200)
    send("report", "work", 1, retries=1)
    expired = send("known", "work", 2, expires=-10)
    packed = send("known", "work", {"a": 1}, compression="gzip")
    chord = send("known", "work", 3, chord={"task": "end", "args": [], "kwargs": {}, "options": {}})
    client.lpush("work", b"[]")
    assert ids(show(task=["rep*"], retries=">2")) == [old]
    assert ids(show(eta_overdue="1h")) == [old]
    assert ids(show(expired=True)) == [expired]
    assert ids(show(compression=["gzip"])) == [packed]
    assert ids(show(id=[chord])) == [chord], "a message that waits for this one does not count"
    assert ids(show(arg=["3"])) == [chord]
    assert ids(show(unregistered=True))[0] == old
    assert len(ids(show(duplicate="keep=newest"))) == 1
    assert ids(show(keep_newest="4")) == [old]
    assert ids(show(content_type=["*yaml"])) == []
    assert len(ids(show(content_type=["application/json"]))) == 5
    [malformed] = show(malformed=True).messages
    assert (malformed.state, malformed.why, malformed.ahead, malformed.args) == (
        "malformed",
        "not a JSON object",
        5,
        "b'[]'",
    )


def test_a_text_is_found_anywhere_in_a_message(send: Send, show: Show) -> None:
    send("mail", "work", {"to": "a@example.com"}, argsrepr="-")
    found = send("mail", "work", {"to": "b@example.com"}, argsrepr="-", compression="bzip2")
    view = show(grep="b@example.com")
    assert (ids(view), view.looked_at, view.complete) == ([found], 2, True)
    assert ids(show(grep="B@example.com")) == []
    assert ids(show(grep=found)) == [found], "in the envelope"


def test_the_whole_of_a_message_is_shown_with_its_body_decoded_and_without_secrets(
    send: Send, show: Show
) -> None:
    keep_secret("hunter2hunter2")
    send(
        "mail",
        "work",
        "hunter2hunter2",
        kwargs={"password": "s3cr3t", "to": "x"},
        compression="gzip",
    )
    [message] = show(full=True).messages
    assert message.envelope["headers"]["task"] == "mail"
    assert message.body[:2] == [["********"], {"password": "********", "to": "x"}]
    text = json.dumps([message.envelope, message.body])
    assert "hunter2" not in text
    assert "s3cr3t" not in str(message.body)


def test_a_pickled_body_is_neither_unpickled_nor_shown(
    app: Celery, client: "redis.Redis", show: Show
) -> None:
    app.conf.accept_content = ["pickle", "json"]
    app.send_task("mail", args=(Pickled(),), queue="work", serializer="pickle", argsrepr="-")
    for view in (show(), show(full=True), show(grep="it was unpickled")):
        [message] = view.messages
        assert (message.task, message.content_type) == ("mail", "application/x-python-serialize")
    [message] = show(full=True).messages
    assert message.body is None
    assert "supported: JSON, msgpack, YAML" in message.body_unread
    assert "unpickled" not in json.dumps(message.envelope)


def test_a_message_that_unpacks_to_too_much_is_shown_with_its_task_and_sender(
    send: Send, show: Show
) -> None:
    send("mail", "work", "x" * 17 * 2**20, compression="gzip", argsrepr="-")
    [message] = show(full=True).messages
    assert message.envelope["headers"]["task"] == "mail"
    assert "@" in message.envelope["headers"]["origin"] == message.origin
    assert (message.why, message.body) == ("it unpacks to more than 16 MiB", None)


def test_what_a_worker_has_fetched_is_shown_where_that_is_asked(
    url: str, client: "redis.Redis", send: Send, show: Show
) -> None:
    sent = {send("report", "work", n) for n in range(3)}
    fetch_and_die(Kind(url), "work", 3)
    assert show().messages == ()
    view = show(unacked=True)
    assert set(ids(view)) == sent
    assert all(message.ahead is None for message in view.messages)
    times = [message.fetched_at for message in view.messages]
    assert times == [pytest.approx(time.time(), abs=20)] * 3


def test_what_is_taken_while_a_queue_is_read_makes_it_repeat_nothing(client: "redis.Redis") -> None:
    client.lpush("work", *(b"%04d" % n for n in range(2000)))
    seen: list[bytes] = []
    for items in next_first(client, "work"):
        seen += items
        client.rpop("work", 40)
    assert seen == [b"%04d" % n for n in range(2000)]


def test_a_queue_that_is_not_there_is_refused_with_the_nearest_name(send: Send, show: Show) -> None:
    send("report", "mails")
    with pytest.raises(UsageError, match=r"there is no queue 'mial'; did you mean 'mails'\?"):
        show("mial")


def test_a_look_leaves_nothing_behind(
    url: str, client: "redis.Redis", send: Send, show: Show
) -> None:
    for n in range(4):
        send("report", "work", n, priority=n * 3)
    fetch_and_die(Kind(url), "work", 1)
    before = {key: client.dump(key) for key in client.scan_iter()}
    for unacked in (False, True):
        assert show(grep="report", full=True, unacked=unacked).messages
    assert {key: client.dump(key) for key in client.scan_iter()} == before


def test_hostile_items_are_shown_as_they_are(client: "redis.Redis", show: Show) -> None:
    hostile = [
        b"\x1b[2J\xff",
        b"[" * 5000,
        b'{"headers": [1]}',
        b'{"headers": {"task": {}}, "body": "\\udcff"}',
        b"null",
    ]
    client.lpush("work", *hostile)
    for view in (show(), show(full=True), show(grep="2J")):
        assert all(message.state == "malformed" for message in view.messages)
    assert len(show(grep="2J").messages) == 1
    assert listed(client, "work") == hostile[::-1]
