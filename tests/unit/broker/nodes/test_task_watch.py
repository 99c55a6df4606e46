"""A task is watched by a real worker's results and events: every state, and nothing stays behind."""

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.redis_server import RedisServer
from lab.world import celery_command
from runbooks.broker.nodes.control import find_holder, switch_events
from runbooks.broker.nodes.task_watch import Watch, run_task, watch_events, watch_results
from runbooks.broker.server.connection import connect
from runbooks.core.errors import BrokerUnreachable
from runbooks.core.model import TaskState
from runbooks.core.settings import Canary

APP = """
import time
from celery import Celery

app = Celery("tiny", broker={url!r}, backend={url!r})
app.conf.broker_transport_options = {options!r}
app.conf.task_track_started = True

@app.task(bind=True, max_retries=1)
def twice(self):
    if not self.request.retries:
        raise self.retry(exc=OSError("no GLPI"), countdown=1)
    self.update_state(state="PROGRESS", meta={{"percent": 50}})
    time.sleep(0.6)
    return {{"found": 2}}

@app.task
def fail(): raise ValueError("no printer")

@app.task(bind=True)
def count(self, upto):
    for n in range(1, upto + 1):
        self.update_state(state="PROGRESS", meta={{"current": n, "total": upto}})
        time.sleep(0.4)
    return {{"counted": upto}}

@app.task
def wait():
    time.sleep(2)
"""
OPTIONS: dict[str, Any] = {"global_keyprefix": "tiny:"}
NODE = "w1@here"
Sending = Callable[[str], str]


@pytest.fixture(scope="module")
def worker_url(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A db with one worker, which sends no task events by default."""
    url, directory = redis_server.url(8), tmp_path_factory.mktemp("app")
    (directory / "tiny.py").write_text(APP.format(url=url, options=OPTIONS))
    command = celery_command(
        "-A tiny worker -P prefork -c 1 -Q work -n",
        NODE,
        "-l",
        "INFO",
        "--without-gossip",
        "--without-mingle",
    )
    with (directory / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while f"{NODE} ready".encode() not in (directory / "worker.log").read_bytes():
            assert process.poll() is None, (directory / "worker.log").read_text()
            assert time.monotonic() < deadline, (directory / "worker.log").read_text()
            time.sleep(0.05)
        yield url
        process.terminate()
        process.wait()


@pytest.fixture
def send(worker_url: str) -> Iterator[Sending]:
    import celery

    app = celery.Celery("sender", broker=worker_url, set_as_current=False)
    app.conf.broker_transport_options = OPTIONS
    yield lambda task_id: str(
        app.send_task(f"tiny.{task_id.partition('-')[0]}", queue="work", task_id=task_id)
    )
    app.close()


def new_id(task: str) -> str:
    return f"{task}-{uuid.uuid4()}"


def run(
    url: str,
    task_id: str,
    name: str,
    on_progress: Callable[[TaskState], None] = lambda _: None,
    **said: Any,
) -> TaskState:
    canary = Canary(task=f"tiny.{name}", **{"queue": "work", "timeout": 20.0, **said})
    with watch_results(url, task_id) as watch:
        return run_task(url, OPTIONS, canary, task_id, watch, on_progress)


def states(watch: Watch) -> list[TaskState]:
    """Every state seen, in order, up to the last."""
    seen: list[TaskState] = []
    deadline = time.monotonic() + 20
    while not (seen and seen[-1].ended):
        assert time.monotonic() < deadline, seen
        state = watch.look()
        if not seen or state != seen[-1]:
            seen.append(state)
    return seen


def test_a_retry_and_progress_are_seen_in_the_results(worker_url: str, send: Sending) -> None:
    task_id = new_id("twice")
    with watch_results(worker_url, task_id) as watch:
        assert watch.look() == TaskState("PENDING")
        send(task_id)
        seen = states(watch)
    retry = next(state for state in seen if state.state == "RETRY")
    assert retry.result == "OSError: no GLPI"
    assert TaskState("PROGRESS", {"percent": 50}) in seen
    assert seen[-1] == TaskState("SUCCESS", {"found": 2})


def test_a_task_is_run_to_its_end_and_its_progress_reported(worker_url: str) -> None:
    progress: list[TaskState] = []
    outcome = run(worker_url, "task-1", "count", kwargs={"upto": 3}, on_progress=progress.append)
    assert (outcome.state, outcome.result, outcome.ended) == ("SUCCESS", {"counted": 3}, True)
    assert TaskState("PROGRESS", {"current": 1, "total": 3}) in progress
    assert len(progress) == len({str(seen) for seen in progress})


def test_a_failing_task_shows_its_error_and_traceback(worker_url: str) -> None:
    outcome = run(worker_url, "task-2", "fail")
    assert (outcome.state, outcome.result, outcome.ended) == (
        "FAILURE",
        "ValueError: no printer",
        True,
    )
    assert 'raise ValueError("no printer")' in outcome.traceback


def test_a_task_that_no_one_runs_is_pending_when_the_time_is_over(worker_url: str) -> None:
    outcome = run(worker_url, "task-3", "count", queue="nobody", timeout=0.5, priority=9)
    assert (outcome.state, outcome.ended) == ("PENDING", False)
    with connect(worker_url) as client:
        assert client.llen("tiny:nobody\x06\x169") == 1


def test_a_task_that_wants_to_be_tried_again_is_not_waited_for_and_not_tried_again(
    worker_url: str,
) -> None:
    outcome = run(worker_url, "task-4", "twice")
    assert (outcome.state, outcome.result) == ("RETRY", "OSError: no GLPI")
    with watch_results(worker_url, "task-4") as watch:
        assert states(watch)[-1].state == "REVOKED"


def test_a_retry_and_the_end_are_heard_from_the_events_and_the_workers_setting_is_put_back(
    worker_url: str, send: Sending
) -> None:
    with connect(worker_url) as client:
        before = set(client.scan_iter())
        task_id = new_id("twice")
        with watch_events(worker_url, OPTIONS, [NODE], task_id) as watch:
            send(task_id)
            seen = states(watch)
        left = {
            key
            for key in set(client.scan_iter()) - before
            if not key.startswith(b"celery-task-meta-")
        }
    names = [state.state for state in seen]
    assert [state for state in names if state not in ("PENDING", "RECEIVED", "STARTED")] == [
        "RETRY",
        "SUCCESS",
    ]
    assert "OSError('no GLPI')" in next(state.result for state in seen if state.state == "RETRY")
    assert seen[-1].result == "{'found': 2}"
    assert left <= {b"tiny:_kombu.binding.celeryev", b"tiny:unacked", b"tiny:unacked_index"}
    assert switch_events(worker_url, [NODE], OPTIONS, on=True) == [NODE], "they were off again"
    switch_events(worker_url, [NODE], OPTIONS, on=False)


def test_events_that_were_on_before_stay_on(worker_url: str) -> None:
    assert switch_events(worker_url, [NODE], OPTIONS, on=True) == [NODE]
    with watch_events(worker_url, OPTIONS, [NODE], "nobody") as watch:
        assert watch.look() == TaskState("PENDING")
    assert switch_events(worker_url, [NODE], OPTIONS, on=False) == [NODE]


def test_a_failure_is_heard_with_its_traceback(worker_url: str, send: Sending) -> None:
    task_id = new_id("fail")
    with watch_events(worker_url, OPTIONS, [NODE], task_id) as watch:
        send(task_id)
        last = states(watch)[-1]
    assert (last.state, last.result) == ("FAILURE", "ValueError('no printer')")
    assert 'raise ValueError("no printer")' in last.traceback


def test_the_node_that_runs_a_task_says_so_and_no_one_says_it_of_another(
    worker_url: str, send: Sending
) -> None:
    task_id = new_id("wait")
    with watch_results(worker_url, task_id) as watch:
        send(task_id)
        while watch.look().state != "STARTED":
            pass
    holder = find_holder(worker_url, task_id, OPTIONS)
    assert holder
    assert (holder.node, holder.task, holder.doing) == (NODE, "tiny.wait", "active")
    assert holder.started_at
    assert abs(time.time() - holder.started_at) < 20
    assert find_holder(worker_url, "nobody", OPTIONS) is None


@pytest.mark.parametrize("by", ["results", "events"])
def test_a_server_that_goes_away_is_reported_at_each_look_and_watched_on_when_it_is_back(
    tmp_path: Path, by: str
) -> None:
    server = RedisServer.start(tmp_path)
    url = server.url()
    with (
        watch_results(url, "id")
        if by == "results"
        else watch_events(url, {}, ["nobody@here"], "id")
    ) as watch:
        assert watch.look() == TaskState("PENDING")
        server.stop()
        for _ in range(2):
            with pytest.raises(BrokerUnreachable, match=f"127.0.0.1:{server.port}"):
                watch.look()
        server = RedisServer.start(tmp_path, port=server.port)
        assert watch.look() == TaskState("PENDING")
    server.stop()
