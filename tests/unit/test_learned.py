"""What other programs do, on which this tool relies: docs/learned.md has it in words."""

import gc
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xmlrpc.client import ServerProxy

import psutil
import pytest
import redis
from celery import Celery, _state
from celery.app.task import Task
from celery.schedules import crontab, schedule
from celery.worker import state
from celery.worker.request import Request
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.messaging import Consumer
from packaging.markers import Marker
from packaging.requirements import Requirement
from supervisor.xmlrpc import SupervisorTransport

from lab import supervisord
from lab.redis_server import RedisServer
from runbooks.hosts.waits import ask_waits, parse_waits
from tests.brokers import Start, servers, until
from tests.unit.broker.conftest import listed
from tests.unit.hosts.test_facts import ask

# Celery warns of a default to come whenever a worker loses its connection.
pytestmark = pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")

# --- Celery and kombu


@contextmanager
def worker(app: Celery, pool: str = "solo") -> Iterator[Any]:
    """Celery's worker of the queue `work`, in a thread of this process."""
    ready = threading.Event()
    controller = app.WorkController(
        hostname="w@here", queues=["work"], pool=pool, concurrency=1, ready_callback=lambda _: ready.set(),
        without_gossip=True, without_mingle=True, without_heartbeat=True,
    )  # fmt: skip
    thread = threading.Thread(target=controller.start, daemon=True)
    thread.start()
    assert ready.wait(20)
    controller.thread = thread
    try:
        yield controller
    finally:
        state.should_terminate = 0
        if thread.is_alive():
            app.control.broadcast("heartbeat")  # it looks up
        thread.join(20)
        state.should_terminate = None
        assert not thread.is_alive()


@contextmanager
def application(url: str) -> Iterator[Celery]:
    """An application, with which Celery's pools run the tasks of this process."""
    with Celery("learned", broker=url, set_as_current=False) as app:
        app.conf.worker_prefetch_multiplier = 2
        app.set_default()
        try:
            yield app
        finally:
            _state.set_default_app(None)


def known(app: Celery, job: Callable[..., Any], **options: Any) -> Any:
    """The task `job` of this application alone."""
    return app.task(job, name="job", shared=False, lazy=False, typing=False, **options)


def nothing() -> None:
    """A task."""


def ids(raws: list[bytes]) -> list[str]:
    return [json.loads(raw)["headers"]["id"] for raw in raws]


def answers(app: Celery) -> bool:
    try:
        return bool(app.control.ping(timeout=0.3))
    except (OSError, redis.ConnectionError):
        return False


@contextmanager
def consuming(url: str, got: Callable[[Any], None]) -> Iterator[Any]:
    """A connection whose consumer passes on the messages of `work`, and acknowledges none."""
    with Connection(url) as connection:  # type: ignore[no-untyped-call]
        queues = [Queue("work")]  # type: ignore[no-untyped-call]
        consumer = Consumer(connection.channel(), queues, on_message=got)  # type: ignore[no-untyped-call]
        consumer.consume()  # type: ignore[no-untyped-call]
        yield connection


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with servers(tmp_path) as starter:
        yield starter


def test_what_a_consumer_has_not_acknowledged_is_given_back_marked_in_other_bytes_and_reversed(
    url: str, client: "redis.Redis"
) -> None:
    with application(url) as app:
        for _ in range(3):
            app.send_task("job", queue="work")
    before = listed(client, "work")
    with consuming(url, lambda _message: None) as connection:
        for _ in before:
            connection.drain_events(timeout=5)
        assert (client.hlen("unacked"), client.llen("work")) == (3, 0)
    after = listed(client, "work")
    assert ids(after) == ids(before)[::-1]
    assert all(json.loads(raw)["headers"]["redelivered"] for raw in after)
    assert not set(before) & set(after)


def test_whoever_waits_for_answers_to_a_ping_puts_back_what_workers_hold_and_leaves_an_entry(
    url: str, client: "redis.Redis"
) -> None:
    held = [{"headers": {}, "properties": {"delivery_info": {}}}, "", "work"]
    client.hset("unacked", "tag", json.dumps(held))
    client.zadd("unacked_index", {"tag": time.time() - 4000})  # a worker has all day for it
    with application(url) as app:
        assert app.control.ping(timeout=0.2) == []
    assert (client.llen("work"), client.hlen("unacked")) == (1, 0)
    assert client.zcard("_kombu.binding_deadlines") == 1


def envelope(payload: Any, **parts: Any) -> bytes:
    body = b64encode(json.dumps(payload).encode()).decode()
    info = {"exchange": "", "routing_key": "work"}
    properties = {"body_encoding": "base64", "delivery_tag": "t", "delivery_info": info}
    of_json = {"content-type": "application/json", "content-encoding": "utf-8"}
    return json.dumps(
        {"body": body, "headers": {"task": "job", "id": "1"}, "properties": properties}
        | of_json
        | parts
    ).encode()


WITHOUT_PROPERTIES = {
    name: value
    for name, value in json.loads(envelope([[], {}, {}])).items()
    if name != "properties"
}


@pytest.mark.parametrize(
    ("item", "code", "left"),
    [
        (b"[]", 1, 0),
        (json.dumps(WITHOUT_PROPERTIES).encode(), None, 0),
        (envelope([]), 1, 1),
        (envelope([[], {}, {}], headers={"task": "job", "id": "1", "eta": ""}), 1, 1),
    ],
    ids=["no envelope", "no properties", "not three items", "empty ETA"],
)
def test_a_malformed_item_is_gone_with_the_worker_that_it_kills_or_comes_back(
    item: bytes, code: int | None, left: int, url: str, client: "redis.Redis"
) -> None:
    with application(url) as app:
        known(app, nothing)
        with worker(app) as running:
            client.lpush("work", item)
            if code is None:
                until(lambda: client.llen("work") == 0)
                until(lambda: answers(app))  # it has connected again
            else:
                running.thread.join(20)
            assert running.exitcode == code
            assert (client.llen("work"), client.hlen("unacked")) == (left, 0)


def test_kombu_takes_the_login_and_the_db_from_the_part_of_the_url_that_it_tries() -> None:
    url = "sentinel://u1:one@127.0.0.1:1/3;sentinel://u2:two@127.0.0.1:2/4"
    with Connection(url) as connection:  # type: ignore[no-untyped-call]

        def used() -> tuple[str, str, str]:
            return connection.userid, connection.password, connection.virtual_host

        assert used() == ("u1", "one", "3")
        connection.maybe_switch_next()  # as after a failure
        assert used() == ("u2", "two", "4")


@pytest.mark.parametrize("minute", range(0, 60, 10))
def test_a_crontab_is_silent_in_the_repeated_hour_and_a_fixed_interval_is_not(minute: int) -> None:
    with Celery("learned", set_as_current=False) as app:
        app.conf.timezone = "Europe/Berlin"  # its summer time ends at 1:00 UTC
        sent_at, now = (
            datetime(2026, 10, 25, 0, 50, tzinfo=UTC),
            datetime(2026, 10, 25, 1, minute, tzinfo=UTC),
        )
        assert not crontab(minute="*/10", app=app, nowfun=lambda: now).is_due(sent_at).is_due
        assert schedule(600, app=app, nowfun=lambda: now).is_due(sent_at).is_due
        then = datetime(2026, 10, 25, 2, 0, tzinfo=UTC)
        assert crontab(minute="*/10", app=app, nowfun=lambda: then).is_due(sent_at).is_due


def test_an_eta_without_a_zone_is_sent_as_it_is_and_read_as_utc_and_a_countdown_has_a_zone(
    url: str, client: "redis.Redis"
) -> None:
    with application(url) as app:
        app.conf.timezone = "Europe/Berlin"
        app.send_task("job", queue="work", eta=datetime(2026, 6, 1, 12, 0))
        app.send_task("job", queue="work", countdown=60)
        job = known(app, nothing)
        by_countdown, by_eta = (json.loads(raw)["headers"]["eta"] for raw in listed(client, "work"))
        assert by_eta == "2026-06-01T12:00:00"
        assert by_countdown.endswith(("+01:00", "+02:00"))
        got: list[Any] = []
        with consuming(url, got.append) as connection:
            until(lambda: bool(got or connection.drain_events(timeout=5)))
            request = Request(got[0], app=app, task=job)
            assert request.eta.astimezone(UTC) == datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


def test_without_its_binding_an_exchange_drops_messages_silently_until_its_queue_is_declared_again(
    url: str, client: "redis.Redis"
) -> None:
    kinds = ("topic", "direct")
    queues = [Queue(kind, Exchange(f"to-{kind}", kind), routing_key=kind) for kind in kinds]  # type: ignore[no-untyped-call]
    with application(url) as app:

        def send() -> tuple[int, int]:
            for kind in kinds:
                app.send_task("job", exchange=f"to-{kind}", exchange_type=kind, routing_key=kind)
            return client.llen("topic"), client.llen("direct")

        with app.connection_for_write() as connection:
            for queue in queues:
                queue(connection.default_channel).declare()  # type: ignore[no-untyped-call]
        assert send() == (1, 1)
        client.delete("_kombu.binding.to-topic", "_kombu.binding.to-direct")
        assert send() == (1, 1), "no error, and no queue has them"
        for queue in queues:
            app.send_task("job", queue=Queue(queue.name), declare=[])  # type: ignore[no-untyped-call]
        assert (client.llen("topic"), client.llen("direct")) == (2, 2)
        with app.connection_for_read() as connection:
            Consumer(connection.channel(), queues).consume()  # type: ignore[no-untyped-call]
            assert client.scard("_kombu.binding.to-topic") == 1, "as a worker does when it starts"


def test_an_expired_message_is_discarded_by_its_worker_and_does_not_run(
    url: str, client: "redis.Redis"
) -> None:
    ran: list[str] = []

    def job(which: str) -> None:
        ran.append(which)

    with application(url) as app:
        known(app, job)
        app.send_task("job", ("late",), queue="work", expires=-1)
        app.send_task("job", ("in time",), queue="work")
        with worker(app):
            until(lambda: bool(ran))
        assert (ran, client.llen("work"), client.hlen("unacked")) == (["in time"], 0, 0)


def test_a_worker_still_answers_after_redis_had_no_memory_for_an_answer(
    url: str, client: "redis.Redis"
) -> None:
    ran = threading.Event()
    with application(url) as app:
        known(app, ran.set)
        with worker(app):
            client.config_set("maxmemory", 1)
            try:
                with pytest.raises(redis.exceptions.OutOfMemoryError):
                    app.control.ping(timeout=0.5)
            finally:
                client.config_set("maxmemory", 0)
            assert answers(app)
            app.send_task("job", queue="work")
            assert ran.wait(20)


def test_a_solo_worker_answers_nothing_while_it_runs_a_task(
    url: str, client: "redis.Redis"
) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        goes_on.wait(20)

    with application(url) as app:
        known(app, job)
        with worker(app, "solo"):
            assert answers(app)
            app.send_task("job", queue="work")
            assert begun.wait(20)
            assert not answers(app)
            goes_on.set()
            until(lambda: answers(app))


def test_a_new_password_closes_no_open_connection_and_refuses_new_ones(start: Start) -> None:
    server = start()
    with redis.Redis(port=server.port) as opened, redis.Redis(port=server.port) as later:
        opened.config_set("requirepass", "another")
        assert opened.ping()
        with pytest.raises(redis.exceptions.AuthenticationError):
            later.ping()
        opened.config_set("requirepass", "")


def test_what_a_rate_limit_holds_back_is_in_none_of_a_workers_lists(
    url: str, client: "redis.Redis"
) -> None:
    ran = threading.Event()
    with application(url) as app:
        known(app, ran.set, rate_limit="1/h")
        with worker(app):
            for _ in range(3):
                app.send_task("job", queue="work")
            assert ran.wait(20)
            until(lambda: client.hlen("unacked") == 2)
            inspect = app.control.inspect(timeout=0.3)
            for look in (inspect.active, inspect.reserved, inspect.scheduled):
                assert (look() or {}).get("w@here", []) == []
            assert client.hlen("unacked") == 2


def test_a_worker_that_holds_no_message_connects_again_and_its_task_goes_on(start: Start) -> None:
    server = start()
    begun, goes_on, done = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        if goes_on.wait(20):
            done.set()

    with application(server.url()) as app:
        known(app, job)
        with worker(app, "threads"):
            app.send_task("job", queue="work")
            assert begun.wait(20)
            with redis.Redis(port=server.port) as client:
                until(lambda: client.hlen("unacked") == 0)
            server.stop(signal.SIGKILL)
            again = RedisServer.start(server.directory, port=server.port)
            try:
                until(lambda: answers(app))
                goes_on.set()
                assert done.wait(20)
            finally:
                app.control.shutdown()
                until(lambda: not answers(app))
                again.stop()


def test_update_state_fails_while_redis_is_away_and_so_does_its_task() -> None:
    with Celery("learned", backend="redis://127.0.0.1:1/0", set_as_current=False) as app:
        app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
        app.conf.task_always_eager = True

        def job(task: "Task") -> None:
            task.update_state(task_id="1", state="PROGRESS")

        result = known(app, job, bind=True).apply()
        assert result.failed()
        assert "connecting to 127.0.0.1:1" in str(result.result)


def test_a_worker_unpacks_what_this_tool_finds_too_large(url: str, client: "redis.Redis") -> None:
    lengths: list[int] = []
    size = 17 * 1024 * 1024

    def measure(text: str) -> None:
        lengths.append(len(text))

    with application(url) as app:
        known(app, measure)
        app.send_task("job", ("x" * size,), queue="work", compression="gzip")
        assert client.llen("work") == 1
        with worker(app):
            until(lambda: bool(lengths))
    assert lengths == [size]


# --- Redis and redis-py


def test_a_missing_right_comes_before_memory_and_type_and_aborts_the_transaction(
    url: str, client: "redis.Redis"
) -> None:
    client.set("text", "not a list")
    client.execute_command("ACL SETUSER shy on >x ~* +@all -lpush")  # type: ignore[no-untyped-call]
    with redis.Redis.from_url(
        url, username="shy", password="x", single_connection_client=True
    ) as shy:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.exceptions.NoPermissionError):
                shy.execute_command("LPUSH", "text", "item")
            shy.execute_command("MULTI")
            with pytest.raises(redis.exceptions.NoPermissionError):
                shy.execute_command("LPUSH", "text", "item")
            with pytest.raises(redis.exceptions.ExecAbortError):
                shy.execute_command("EXEC")
        finally:
            client.config_set("maxmemory", 0)
            client.execute_command("ACL DELUSER shy")  # type: ignore[no-untyped-call]


def test_a_subscription_whose_client_is_collected_misses_what_is_published_until_it_asks_again(
    url: str, client: "redis.Redis"
) -> None:
    own = redis.Redis.from_url(url)
    with own.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
        subscription.subscribe("news")
        subscription.get_message(timeout=1)
        assert client.publish("news", "heard") == 1
        del own
        gc.collect()
        until(lambda: client.publish("news", "missed") == 0)
        subscription.get_message(timeout=1)
        until(lambda: client.publish("news", "heard again") == 1)
        heard = [
            message["data"] for _ in range(3) if (message := subscription.get_message(timeout=0.1))
        ]
        assert b"heard again" in heard
        assert b"missed" not in heard


def test_redis_py_needs_async_timeout_on_the_python_of_debian_12() -> None:
    (needed,) = (
        requirement.marker
        for requirement in map(Requirement, importlib.metadata.requires("redis") or ())
        if requirement.name == "async-timeout"
    )
    assert isinstance(needed, Marker)
    assert needed.evaluate({"python_full_version": "3.11.2"})
    assert not needed.evaluate({"python_full_version": "3.11.3"})


# --- hosts and processes

WAITS = {
    "time.sleep": "time.sleep(600)",
    "a socket": "socket.socketpair()[0].recv(1)",
    "a lock with a limit": "threading.Event().wait(600)",
    "a lock": "threading.Event().wait()",
}


def test_only_a_wait_for_a_lock_without_a_limit_looks_like_one() -> None:
    processes = {
        what: subprocess.Popen(
            [sys.executable, "-uc", f"import socket, threading, time; print('now'); {wait}"],
            stdout=subprocess.PIPE,
        )
        for what, wait in WAITS.items()
    }
    try:
        for one in processes.values():
            assert one.stdout
            assert one.stdout.readline() == b"now\n"

        def found() -> list[str]:
            waiting = parse_waits(ask(ask_waits([one.pid for one in processes.values()])))
            return [what for what, one in processes.items() if one.pid in waiting]

        until(lambda: bool(found()))
        assert found() == ["a lock"]
    finally:
        for one in processes.values():
            one.kill()
            one.communicate()


PROGRAMS = """
[program:one]
command=sleep 600
[program:two]
command=sleep 600
[group:both]
programs=one,two
[program:slow]
command=sleep 600
startsecs=600
[program:stubborn]
command=sh -c "trap '' TERM; exec sleep 600"
stopwaitsecs=1
startsecs=0
autorestart=true
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """The folder of a supervisord that runs these programs; whatever it started ends with the test."""
    conf = tmp_path / "root/etc/supervisor/conf.d"
    conf.mkdir(parents=True)
    (tmp_path / "app").mkdir()
    (conf / "programs.conf").write_text(PROGRAMS)
    started = [supervisord.start(tmp_path)]
    until(lambda: (tmp_path / "supervisor.sock").exists())
    yield tmp_path
    for line in re.findall(
        r"spawned: .* with pid (\d+)", (tmp_path / "supervisord.log").read_text()
    ):
        if psutil.pid_exists(int(line)):
            psutil.Process(int(line)).kill()
    started[0].kill()
    started[0].wait()


def rpc(root: Path, method: str, *arguments: str) -> Any:
    transport = SupervisorTransport(None, None, f"unix://{root}/supervisor.sock")
    with ServerProxy("http://127.0.0.1", transport=transport) as proxy:
        return getattr(proxy.supervisor, method)(*arguments)


def ctl(root: Path, *words: str) -> None:
    program = str(Path(sys.executable).with_name("supervisorctl"))
    subprocess.run(
        [program, "-c", str(root / "supervisord.conf"), *words], check=True, capture_output=True
    )


def pid_of(root: Path, name: str) -> int:
    """The program's process, once it runs what its conf file says."""
    found = psutil.Process()

    def runs() -> bool:
        nonlocal found
        pid = rpc(root, "getProcessInfo", name)["pid"]
        if pid:
            found = psutil.Process(pid)
        return bool(pid) and found.name() == "sleep"

    until(runs)
    return int(found.pid)


def test_a_program_of_supervisord_runs_as_it_was_until_update_restarts_its_whole_group(
    root: Path,
) -> None:
    pids = {name: pid_of(root, f"both:{name}") for name in ("one", "two")}
    conf = root / "root/etc/supervisor/conf.d/programs.conf"
    conf.write_text(PROGRAMS.replace("sleep 600", "sleep 700", 1))
    ctl(root, "restart", "both:one")
    restarted = pid_of(root, "both:one")
    assert restarted != pids["one"]
    assert psutil.Process(restarted).cmdline() == ["sleep", "600"]

    rpc(root, "reloadConfig")
    known = {one["name"]: one for one in rpc(root, "getAllConfigInfo")}
    assert known["one"]["command"] == "sleep 700"
    assert psutil.Process(pid_of(root, "both:one")).cmdline() == ["sleep", "600"]
    assert known["two"]["stopwaitsecs"] == 10

    ctl(root, "update")
    assert psutil.Process(pid_of(root, "both:one")).cmdline() == ["sleep", "700"]
    assert pid_of(root, "both:two") != pids["two"]


def test_a_program_of_supervisord_is_starting_for_its_startsecs_and_is_killed_where_it_does_not_stop(
    root: Path,
) -> None:
    assert pid_of(root, "slow")
    assert rpc(root, "getProcessInfo", "slow")["statename"] == "STARTING"
    stubborn = pid_of(root, "stubborn")
    assert rpc(root, "stopProcess", "stubborn")
    assert f"killing 'stubborn' ({stubborn}) with SIGKILL" in (root / "supervisord.log").read_text()
    assert rpc(root, "getProcessInfo", "stubborn")["statename"] == "STOPPED"


def test_a_supervisord_that_is_killed_leaves_its_programs_and_the_next_starts_each_again(
    root: Path,
) -> None:
    before = pid_of(root, "slow")
    psutil.Process(rpc(root, "getPID")).kill()
    assert psutil.pid_exists(before)
    (root / "supervisor.sock").unlink()
    again = supervisord.start(root)
    try:
        until(lambda: (root / "supervisor.sock").exists())
        assert pid_of(root, "slow") != before
        assert psutil.pid_exists(before)
    finally:
        again.kill()
        again.wait()


# --- the command line


def test_dev_full_refuses_even_a_write_of_no_bytes() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OSError, match="No space"),
    ):
        os.write(full.fileno(), b"")


ASKS = """
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Event

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
waited_for = Event()

def ask():
    waited_for.wait()
    print("answered", input("sure? "))

with ThreadPoolExecutor() as pool:
    try:
        asking = pool.submit(ask)
        waited_for.set()
        asking.result()
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_an_interrupt_does_not_end_a_question_that_a_thread_asks() -> None:
    with subprocess.Popen(
        [sys.executable, "-uc", ASKS], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.read(6) == "sure? "
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.communicate("yes\n")[0] == "answered yes\n"


def test_an_expression_that_begins_with_a_repetition_is_quadratic_on_a_long_word() -> None:
    def takes_s(expression: str, length: int) -> float:
        def once() -> float:
            began_s = time.process_time()
            assert not re.search(expression, "a" * length)
            return time.process_time() - began_s

        return min(once() for _ in range(3))

    assert takes_s(r"\w+@", 4000) > 8 * takes_s(r"\w+@", 1000)
