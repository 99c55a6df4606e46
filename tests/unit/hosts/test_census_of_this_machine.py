"""The census of this machine, with real workers and beats, and with what only looks like one."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from lab.redis_server import RedisServer
from runbooks.core.census import BrokerPlace, CeleryProcess, Census, Kind
from runbooks.hosts.census import ask_census, parse_census
from runbooks.hosts.facts import ask_clock, parse_clock
from runbooks.hosts.script import Answer
from tests.brokers import until
from tests.unit.fleets import make_host
from tests.unit.hosts.test_facts import ask

PYTHON = sys.executable
CELERY = [str(Path(PYTHON).with_name("celery")), "-A", "counted_app"]
APP = """
import os
from celery import Celery
app = Celery("counted_app", broker=os.environ["SHOP_BROKER_URL"])
"""
DB = 7
PASSWORD = "hunter2hunter2"
SHELLS = [["dash"], ["bash"], *([["busybox", "ash"]] if shutil.which("busybox") else [])]

Start = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("census")
    (path / "counted_app.py").write_text(APP)
    (path / "celery-worker.log").touch()
    return path


@pytest.fixture(scope="module")
def start(folder: Path, redis_server: RedisServer) -> Iterator[Start]:
    """Starts a command in the folder and returns its pid; whatever it has started is gone at the
    end.
    """
    with redis.Redis.from_url(redis_server.url(DB)) as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    url = redis_server.url(DB).replace("://", f"://shop:{PASSWORD}@")
    environment = {**os.environ, "SHOP_BROKER_URL": url, "OTHER_BROKER": PASSWORD}
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str) -> int:
        with (folder / f"{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process.pid

    yield run
    for pid in [*look(folder), *(process.pid for process in started)]:
        _kill(pid)
    for process in started:
        process.communicate()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def answer(folder: Path, pids: Iterable[int] = ()) -> Answer:
    return ask(ask_census(make_host(directory=str(folder)), (), pids))


def look(folder: Path, said: Answer | None = None) -> dict[int, CeleryProcess]:
    """The processes that work in the folder."""
    seen = parse_census(said or answer(folder), parse_clock(ask(ask_clock())), {})
    return {one.pid: one for one in seen.processes if one.here}


def named(folder: Path, node: str) -> list[CeleryProcess]:
    return [one for one in look(folder).values() if one.options.node == node]


Counted = tuple[dict[str, int], dict[int, CeleryProcess]]


@pytest.fixture(scope="module")
def counted(folder: Path, start: Start) -> Counted:
    """All kinds of them, by what they were started as, and what is seen once they are at work."""
    beat_file = str(folder / "schedule")
    worker = f"{' '.join(CELERY)} worker --without-mingle --without-gossip"
    pids = {
        "prefork": start(
            *worker.split(), "-c", "2", "-Q", "high,low", "-n", "prefork@x", "-Bs", beat_file
        ),
        "threads": start(
            PYTHON,
            "-m",
            "celery",
            *worker.split()[1:],
            "-P",
            "threads",
            "-c3",
            "--hostname=threads@%h",
        ),
        "solo": start(*worker.split(), "-P", "solo", "-n", "solo@x"),
        "beat": start(*CELERY, "beat", "-s", f"{beat_file}2", "--pidfile="),
        "shell": start("sh", "-c", f"{worker} -P solo -n wrapped@x; true"),
        "multi": start(
            *CELERY[:1],
            "multi",
            "start",
            "m1@x",
            *CELERY[1:],
            "-P",
            "solo",
            f"--pidfile={folder}/%n.pid",
        ),
        "grep": start("grep", "--line-buffered", " ".join(CELERY) + " worker"),
        "tail": start("tail", "-f", "celery-worker.log"),
        "python": start(
            PYTHON, "-c", "import sys; sys.stdin.read()", "celery", "-A", "counted_app", "worker"
        ),
        "events": start(*CELERY, "events", "--dump"),
        "flower": start(PYTHON, "-c", "import signal; signal.pause()", *CELERY[1:], "flower"),
    }
    at_work = [Kind.BEAT, Kind.CHILD, Kind.CHILD, Kind.EMBEDDED_BEAT, *[Kind.MAIN] * 5]
    until(
        lambda: (
            sorted((one.kind for one in look(folder).values()), key=lambda kind: kind.name)
            == at_work
        )
    )
    return pids, look(folder)


def test_what_is_a_worker_or_beat_is_seen_and_what_only_looks_like_one_is_not(
    counted: Counted,
) -> None:
    pids, seen = counted
    mains = {one.pid: one.kind for one in seen.values() if one.kind in (Kind.MAIN, Kind.BEAT)}
    started = {pids[name]: Kind.MAIN for name in ("prefork", "threads", "solo")} | {
        pids["beat"]: Kind.BEAT
    }
    elsewhere = set(mains) - set(started)  # below the shell, and detached by celery multi
    assert {pid: mains[pid] for pid in started} == started
    assert {seen[pid].options.node for pid in elsewhere} == {"wrapped@x", "m1@x"}
    assert not {
        pids[name] for name in ("shell", "grep", "tail", "python", "events", "flower")
    } & set(seen)


def test_a_pool_and_the_beat_of_a_worker_are_its_own(counted: Counted) -> None:
    pids, seen = counted
    below = [one for one in seen.values() if one.parent == pids["prefork"]]
    assert sorted(one.kind.name for one in below) == ["CHILD", "CHILD", "EMBEDDED_BEAT"]
    assert not any(one.leftover for one in seen.values())


def test_the_options_are_read_as_celery_reads_them(counted: Counted) -> None:
    pids, seen = counted
    prefork, threads = seen[pids["prefork"]].options, seen[pids["threads"]].options
    assert (prefork.app, prefork.queues, prefork.concurrency, prefork.with_beat) == (
        "counted_app", ("high", "low"), 2, True,
    )  # fmt: skip
    assert (threads.node, threads.pool, threads.concurrency) == ("threads@%h", "threads", 3)


def test_a_worker_is_reported_with_its_connections_and_its_broker_and_no_secret(
    counted: Counted, folder: Path, redis_server: RedisServer
) -> None:
    pid = counted[0]["solo"]
    said = answer(folder, [pid])
    assert list(look(folder, said)) == [pid]
    solo = look(folder, said)[pid]
    port = int(redis_server.url(DB).rpartition(":")[2].split("/")[0])
    assert solo.named_broker == BrokerPlace("127.0.0.1", port, DB)
    assert solo.connections
    assert {one.peer for one in solo.connections} == {f"127.0.0.1:{port}"}
    assert (solo.state, solo.inner_pid, solo.leftover) == ("S", solo.pid, False)
    assert solo.memory_bytes > 10 << 20
    assert 0 < solo.cpu_s < 60
    assert PASSWORD.encode() not in said.out


def test_where_no_pids_are_asked_for_only_beats_are_reported_with_connections(
    counted: Counted,
) -> None:
    pids, seen = counted
    assert {pid for pid, one in seen.items() if one.connections is not None} == {pids["beat"]}
    assert seen[pids["beat"]].named_broker


def test_the_shell_that_started_one_is_named_as_what_is_above_it(counted: Counted) -> None:
    pids, seen = counted
    (wrapped,) = (one for one in seen.values() if one.options.node == "wrapped@x")
    assert wrapped.above[0].pid == pids["shell"]
    assert wrapped.wrappers[0] == "sh"


def test_one_that_is_stopped_is_reported_as_that(counted: Counted, folder: Path) -> None:
    pid = counted[0]["solo"]
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: look(folder)[pid].stopped)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not look(folder)[pid].stopped)


def test_the_beat_of_a_worker_that_was_killed_is_left_of_it(folder: Path, start: Start) -> None:
    """As with celery 5.7: the processes of its pool end with it, its beat does not."""
    schedule = str(folder / "schedule3")
    pid = start(*CELERY, "worker", "-P", "threads", "-n", "killed@x", "-B", "-s", schedule)
    until(
        lambda: {one.kind for one in named(folder, "killed@x")} == {Kind.MAIN, Kind.EMBEDDED_BEAT}
    )
    assert not any(one.leftover for one in named(folder, "killed@x"))
    os.kill(pid, signal.SIGKILL)
    until(
        lambda: (
            [(one.kind, one.leftover) for one in named(folder, "killed@x")]
            == [(Kind.EMBEDDED_BEAT, True)]
        )
    )


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_says_the_same(
    counted: Counted, folder: Path, tmp_path: Path, shell: Sequence[str]
) -> None:
    """busybox with its own stat, ls, grep, sed and tr."""
    path = os.environ["PATH"]
    if shell[0] == "busybox":
        for name in ("stat", "ls", "grep", "sed", "tr"):
            (tmp_path / name).symlink_to(shutil.which("busybox") or "")
        path = f"{tmp_path}:{path}"
    for pids in ((), sorted(look(folder))):
        script = ask_census(make_host(directory=str(folder)), (), pids)
        done = subprocess.run(
            [*shell, "-s"],
            input=script.encode(),
            env={**os.environ, "PATH": path},
            capture_output=True,
            check=True,
        )
        said, seen = look(folder, Answer(0, done.stdout, "")), look(folder, answer(folder, pids))
        still = [
            (one.pid, one.kind, one.options, one.user, one.connections, one.named_broker)
            for one in said.values()
        ]
        assert still == [
            (o.pid, o.kind, o.options, o.user, o.connections, o.named_broker) for o in seen.values()
        ]
        assert done.stderr == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user")
def test_another_user_sees_them_and_says_of_what_it_may_not_read_that_it_is_unknown(
    counted: Counted, folder: Path
) -> None:
    pids, as_root = counted
    host, clock = make_host(directory=str(folder)), parse_clock(ask(ask_clock()))

    def mine_by(script: str) -> dict[int, CeleryProcess]:
        done = subprocess.run(
            ["sh", "-s"], input=script.encode(), user="nobody", capture_output=True, check=True
        )
        seen = parse_census(Answer(0, done.stdout, ""), clock, {})
        return {one.pid: one for one in seen.processes if one.pid in as_root}

    mine = mine_by(ask_census(host, ()))
    assert {pid: one.kind for pid, one in mine.items()} == {
        pid: one.kind for pid, one in as_root.items()
    }
    solo = mine_by(ask_census(host, (), [pids["solo"]]))[pids["solo"]]
    assert (solo.here, solo.connections, solo.named_broker, solo.user) == (None, None, None, "root")
    assert not {
        pids[name] for name in ("shell", "grep", "tail", "python", "events", "flower")
    } & set(mine)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a pid namespace")
@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_where_nothing_is_celerys_nothing_is_reported(folder: Path, shell: Sequence[str]) -> None:
    script = ask_census(make_host(directory=str(folder)), ())
    alone = ["unshare", "--pid", "--fork", "--mount-proc"]
    done = subprocess.run(
        [*alone, *shell, "-s"], input=script.encode(), capture_output=True, check=True
    )
    seen = parse_census(Answer(0, done.stdout, ""), parse_clock(ask(ask_clock())), {})
    assert (seen, done.stderr) == (Census(), b"")
