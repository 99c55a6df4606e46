"""Remote control and tasks, on a real worker."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from celery import Celery
from kombu.exceptions import OperationalError

from lab.redis_server import RedisServer, free_port
from lab.world import celery_command
from runbooks.broker.nodes.control import find_holders, observe_nodes
from runbooks.broker.nodes.drain import consume_again, drain
from runbooks.broker.nodes.mailbox import remote_control
from runbooks.broker.queues.unacked import entries, hoards
from runbooks.broker.server.connection import connect
from runbooks.broker.server.keys import KeySpace
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerReadOnly, BrokerUnreachable, Trouble
from tests.brokers import until

APP = """
import time
from celery import Celery

app = Celery("tiny", broker={url!r}, backend={url!r})
app.conf.broker_transport_options = {options!r}

@app.task(rate_limit="10/m")
def limited(): ...

@app.task(bind=True)
def count(self, upto):
    for i in range(upto):
        self.update_state(state="PROGRESS", meta={{"current": i, "total": upto}})
        time.sleep(0.5)
    return {{"counted": upto}}

@app.task
def note(path):
    with open(path, "a") as file:
        file.write("ran\\n")

@app.task
def fail(): raise ValueError("no printer")
"""

OPTIONS: dict[str, Any] = {"global_keyprefix": "tiny:", "visibility_timeout": 7200}


@contextmanager
def worker(
    url: str, directory: Path, *options: str, name: str = "w1@here", app: str = APP
) -> Iterator["subprocess.Popen[bytes]"]:
    """A ready worker of the queues work and mail."""
    (directory / "tiny.py").write_text(app.format(url=url, options=OPTIONS))
    command = celery_command(
        "-A tiny worker -Q work,mail -n",
        name,
        "-l",
        "INFO",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
        *options,
    )
    with (directory / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    deadline = time.monotonic() + 30
    while f"{name} ready".encode() not in (directory / "worker.log").read_bytes():
        assert process.poll() is None, (directory / "worker.log").read_text()
        assert time.monotonic() < deadline, (directory / "worker.log").read_text()
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def worker_url(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A db with one solo worker, which has written all of its keys."""
    url = redis_server.url(7)
    with worker(url, tmp_path_factory.mktemp("app"), "-P", "solo"):
        settled = None
        while settled != (settled := dump(url)):  # it still writes its bindings after saying so
            time.sleep(2)
        yield url


def dump(url: str) -> dict[bytes, Any]:
    """Every key of the db, byte for byte."""
    with connect(url) as client:
        return {key: client.dump(key) for key in client.scan_iter()}


def test_nodes_are_observed_and_nothing_of_it_stays_in_redis(worker_url: str) -> None:
    before = dump(worker_url)
    nodes = observe_nodes(worker_url, OPTIONS, timeout_s=2)
    assert dump(worker_url) == before
    assert list(nodes) == ["w1@here"]
    assert nodes["w1@here"].queues == frozenset({"work", "mail"})
    assert {"tiny.limited", "tiny.count", "tiny.fail"} <= nodes["w1@here"].registered


def test_replies_waiting_for_other_callers_are_left_to_them(worker_url: str) -> None:
    with connect(worker_url) as client:
        theirs = "tiny:_kombu.binding.reply.celery.pidbox"
        client.sadd(theirs, "other\x06\x16\x06\x16other.reply.celery.pidbox")
        client.zadd("tiny:_kombu.binding_deadlines", {"reply.celery.pidbox": 9e15})
        before = dump(worker_url)
        assert observe_nodes(worker_url, OPTIONS, timeout_s=2)
        assert dump(worker_url) == before
        client.delete(theirs, "tiny:_kombu.binding_deadlines")


def test_asking_nodes_never_puts_back_messages_that_workers_hold_for_long(
    client: "redis.Redis", url: str
) -> None:
    client.hset(
        "unacked",
        "tag",
        json.dumps([{"headers": {}, "properties": {"delivery_info": {}}}, "", "work"]),
    )
    client.zadd("unacked_index", {"tag": time.time() - 7200})
    for _ in range(2):
        observe_nodes(url, timeout_s=0.2)
    assert client.keys("work*") == []
    assert client.hlen("unacked") == 1


def test_where_no_one_answers_there_are_no_nodes_and_no_traces(
    client: "redis.Redis", url: str
) -> None:
    assert observe_nodes(url, timeout_s=0.2) == {}
    assert client.keys() == []


def test_a_broker_that_is_down_is_said_to_be_at_once() -> None:
    with pytest.raises(BrokerUnreachable):
        observe_nodes(f"redis://127.0.0.1:{free_port()}/0")


def test_a_broker_that_dies_while_nodes_are_asked_ends_the_asking(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    with (
        connect(server.url()) as client,
        client.pubsub() as silent,
        ThreadPoolExecutor(1) as beside,
    ):
        client.sadd("_kombu.binding.celery.pidbox", "\x06\x16\x06\x16silent@here.celery.pidbox")
        silent.psubscribe("/0.celery.pidbox")
        asked = beside.submit(observe_nodes, server.url(), timeout_s=60)
        until(lambda: (silent.get_message(timeout=1) or {}).get("type") == "pmessage")
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(BrokerUnreachable):
            asked.result(30)
    server.stop()


def test_a_broker_that_lets_the_question_not_in_says_why(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    try:
        with connect(server.url()) as client:
            client.sadd("_kombu.binding.celery.pidbox", "\x06\x16\x06\x16silent@here.celery.pidbox")
            client.config_set("maxclients", 2)  # this one, and the one that looks before it asks
            with pytest.raises(BrokerUnreachable, match="accepts no more clients") as full:
                observe_nodes(server.url())
        assert full.value.trouble is Trouble.MAX_CLIENTS
    finally:
        server.stop()


def test_a_broker_that_died_before_a_question_is_sent_is_not_tried_forever(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    with remote_control(server.url(), {"max_retries": 1}) as mailbox:
        mailbox.abcast("ping")  # connects
        server.stop()
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still trying"))
        signal.alarm(20)
        with pytest.raises((redis.ConnectionError, OperationalError)):
            mailbox.abcast("ping")
        signal.alarm(0)


def test_a_node_says_which_tasks_it_holds_and_of_which_it_may_hold_more(worker_url: str) -> None:
    import celery

    with celery.Celery("producer", broker=worker_url, set_as_current=False) as app:
        app.conf.broker_transport_options = OPTIONS
        later = app.send_task("tiny.fail", queue="work", countdown=600, expires=5).id
    assert observe_nodes(worker_url, OPTIONS)["w1@here"].holds is None, "not asked"
    deadline = time.monotonic() + 20
    while (node := observe_nodes(worker_url, OPTIONS, holdings=True)["w1@here"]).holds != frozenset(
        {later}
    ):
        assert time.monotonic() < deadline, node
    (holder,) = find_holders(worker_url, later, OPTIONS)
    assert (holder.node, holder.task, holder.doing) == ("w1@here", "tiny.fail", "scheduled")
    assert holder.started_at is None
    assert node.rate_limits == {"tiny.limited": "10/m"}
    assert node.options == {"visibility_timeout": 7200}, (
        "a prefix is hidden, for its name holds the word key"
    )
    with celery.Celery("producer", broker=worker_url, set_as_current=False) as app:
        app.conf.broker_transport_options = OPTIONS
        app.control.revoke(later)


def test_several_may_ask_at_once_and_nothing_of_it_stays(worker_url: str) -> None:
    """A caller that cleans up while another begins must not fail or remove the other's reply queue."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: observe_nodes(worker_url, OPTIONS), range(64)))
    assert [list(answer) for answer in answers] == [["w1@here"]] * 64
    with connect(worker_url) as client:
        assert [key for key in client.scan_iter() if b"reply.celery.pidbox" in key] == []


def test_a_busy_worker_that_is_drained_gives_no_task_back_that_has_run(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    url, ran = redis_server.url(8), tmp_path / "ran"
    with worker(url, tmp_path, "-c", "2") as process, connect(url) as client:
        app = Celery("tiny", broker=url, set_as_current=False, broker_transport_options=OPTIONS)
        with app.connection_for_write() as connection:
            for _ in range(3000):
                app.send_task("tiny.note", args=(str(ran),), queue="work", connection=connection)
        while not ran.exists():
            time.sleep(0.01)
        drain(url, OPTIONS, {"w1@here": ("work", "mail"), "nobody@here": ("work",)}, 10)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        left = cast(list[bytes], client.lrange("tiny:work", 0, -1))
        assert 0 < len(left) < 3000
        assert len(ran.read_text().splitlines()) + len(left) == 3000
    app.close()


def test_a_busy_node_says_which_of_its_messages_it_has_not_begun(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    url = redis_server.url(9)
    with worker(url, tmp_path, "-c", "1"), Celery("tiny", broker=url, set_as_current=False) as app:
        app.conf.broker_transport_options = OPTIONS
        first = app.send_task("tiny.count", args=(600,), queue="work").id
        until(
            lambda: (
                observe_nodes(url, OPTIONS, holdings=True)["w1@here"].holds == frozenset({first})
            )
        )
        waiting = frozenset(
            app.send_task("tiny.count", args=(1,), queue="work").id for _ in range(4)
        )
        until(lambda: observe_nodes(url, OPTIONS, holdings=True)["w1@here"].reserved == waiting)
        (held,) = find_holders(url, max(waiting), OPTIONS)
        assert (held.node, held.doing) == ("w1@here", "reserved")
        assert observe_nodes(url, OPTIONS)["w1@here"].reserved == frozenset(), "not asked"
        (running,) = observe_nodes(url, OPTIONS)["w1@here"].running
        assert (running.id, running.name, running.acknowledged) == (first, "tiny.count", True)
        assert abs(time.time() - (running.started_at or 0)) < 60
        messages: list[str] = []
        assert drain(url, OPTIONS, {"w1@here": ["work"]}, 1.0, messages.append) == {
            "w1@here": [running]
        }
        assert messages[0].endswith(" s more for tiny.count on w1@here")
        consume_again(url, OPTIONS, {"w1@here": ["work"]})
        with connect(url) as client:
            found = entries(Store(client, KeySpace.from_options(OPTIONS)))
        ((node, queue, count, since_at),) = (
            (hoard.node, hoard.queue, hoard.count, hoard.since_at)
            for hoard in hoards(found, observe_nodes(url, OPTIONS, holdings=True))
        )
        assert (node, queue, count) == ("w1@here", "work", 4)
        assert since_at == min(entry.fetched_at for entry in found if entry.message.id in waiting)
        app.control.revoke(first, terminate=True)


def test_where_no_node_listens_none_is_asked_or_waited_for(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    try:
        assert observe_nodes(server.url(), timeout_s=60) == {}
        with connect(server.url()) as client:
            assert "cmdstat_publish" not in client.info("commandstats")
    finally:
        server.stop()


def test_who_may_not_ask_whether_anyone_listens_asks_the_nodes(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    try:
        with connect(server.url()) as client:
            client.execute_command("ACL SETUSER shy on >x ~* &* +@all -pubsub")
            assert (
                observe_nodes(server.url().replace("redis://", "redis://shy:x@"), timeout_s=0.1)
                == {}
            )
            assert "cmdstat_publish" in client.info("commandstats")
    finally:
        server.stop()


def test_two_nodes_of_one_name_are_reported_and_hide_no_other(
    url: str, client: "redis.Redis", tmp_path: Path
) -> None:
    older = APP.replace("@app.task\ndef note", "def note")
    with ExitStack() as workers:
        for folder, name, app in (
            ("new", "w1@here", APP),
            ("old", "w1@here", older),
            ("other", "w2@here", APP),
        ):
            (tmp_path / folder).mkdir()
            workers.enter_context(worker(url, tmp_path / folder, "-P", "solo", name=name, app=app))
        for _ in range(5):
            nodes = observe_nodes(url, OPTIONS, timeout_s=5)
            assert {name: node.twins for name, node in nodes.items()} == {
                "w1@here": 2,
                "w2@here": 1,
            }
            assert "tiny.note" in nodes["w2@here"].registered
            assert nodes["w2@here"].queues == {"work", "mail"}
            assert "tiny.count" in nodes["w1@here"].registered
            assert "tiny.note" not in nodes["w1@here"].registered, (
                "what one of them lacks is not to be relied on"
            )
        both = {"w1@here": ("work", "mail"), "w2@here": ("work",)}
        drain(url, OPTIONS, both, 5.0, lambda _: None)
        after = observe_nodes(url, OPTIONS, timeout_s=5)
        assert after["w1@here"].queues == {"work", "mail"}, "each of the two would have obeyed"
        assert after["w2@here"].queues == {"mail"}


ODD_ANSWERS = """
from celery.worker.control import inspect_command
ODD = {"stats": ["no"], "active": {"id": 1}, "reserved": [{"name": "x"}], "conf": "none", "scheduled": [7]}
for name, reply in ODD.items():
    inspect_command(name=name)(lambda state, reply=reply, **_: reply)
"""


def test_a_node_that_answers_something_odd_is_seen_with_what_it_says_well(
    url: str, tmp_path: Path
) -> None:
    with worker(
        url, tmp_path, "-P", "solo", app=APP + ODD_ANSWERS.replace("{", "{{").replace("}", "}}")
    ):
        node = observe_nodes(url, OPTIONS, timeout_s=5, holdings=True)["w1@here"]
    assert node.queues == {"work", "mail"}
    assert (node.holds, node.running, node.pids, node.options) == (None, (), frozenset(), None)


def test_where_redis_is_full_that_is_said_and_no_node_is_called_silent(
    url: str, client: "redis.Redis", tmp_path: Path
) -> None:
    with worker(url, tmp_path, "-P", "solo"):
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(
                BrokerReadOnly, match=r"^[\d.:]+ refuses: command not allowed when used memory"
            ):
                observe_nodes(url, OPTIONS, timeout_s=5)
        finally:
            client.config_set("maxmemory", 0)
