"""A run on hosts that is stopped for longer than its lock lives, at any boundary, while another one
goes through.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import redis

from runbooks.broker.server.connection import connect
from runbooks.broker.server.lock import FleetLock, Holder
from runbooks.core.effects import Change, ControlService, SetEnvironment, WriteFile
from runbooks.core.errors import ExitCode, LockHeld
from runbooks.core.reporter import Outcome
from runbooks.engine import perform
from runbooks.engine.journal import find_run, list_runs
from runbooks.hosts.script import run_fragments
from runbooks.undo import undo
from tests.brokers import until
from tests.unit.broker.queues.test_take_restore_fenced import Stop, resumed
from tests.unit.engine.conftest import World

LIVES_S = 4.0
AT_ONCE = 6


def lock_in(world: World, url: str, *, lives_s: float = 60.0, at: int = 0) -> None:
    """Let the world's runs hold a real lock; `at` this boundary after it was taken the process
    stops itself.
    """

    @contextmanager
    def real(run_id: str, verb: str) -> Iterator[FleetLock]:
        holder = Holder.this_process(os.getpid(), user="u", run_id=run_id, verb=verb, since_at=0.0)
        lock = FleetLock(connect(url), str(world.root), holder, lives_s)
        lock.acquire(0.0)
        world.broker.is_locked = True
        if at:
            arm(lock, Stop(at))
        try:
            yield lock
        finally:
            world.broker.is_locked = False
            lock.release()

    world.broker.lock = real  # type: ignore[method-assign]


def arm(lock: FleetLock, stop: Stop) -> None:
    """Count scripts for hosts and lines of the record, from the first change on. In the forked
    child only.
    """
    held = lock.held

    def first() -> float:
        vars(perform)["run_fragments"] = stop.before(run_fragments)
        os.fsync = stop.before(os.fsync)
        lock.held = held  # type: ignore[method-assign]
        return held()

    lock.held = first  # type: ignore[method-assign]


def remediate(world: World) -> ExitCode:
    return world.remediate()


def undo_last(world: World) -> ExitCode:
    return undo(world.session(verb="undo"), "last", malformed=False)


def started(run: Callable[[World], ExitCode], world: World, url: str, at: int) -> tuple[int, bool]:
    """Start a run that stops itself; its pid, and whether it did before its end."""
    pid = os.fork()
    if pid == 0:
        try:
            lock_in(world, url, lives_s=LIVES_S, at=at)
            os._exit(run(world))
        except LockHeld as error:
            os._exit(error.exit_code)
        except BaseException:
            os._exit(99)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) or os.WEXITSTATUS(status) == ExitCode.OK
    return pid, os.WIFSTOPPED(status)


def on_hosts(world: World) -> dict[str, tuple[object, list[str]]]:
    return {name: (world.files(name), world.log(name)) for name in world.hosts}


def shows(world: World, change: Change) -> bool:
    """Whether a change was made, as its host has it."""
    match change.do:
        case WriteFile(path=path, content=content):
            return content == (Path(path).read_bytes() if Path(path).exists() else None)
        case SetEnvironment(path=path, values=values):
            return all(
                f"{name}={value}\n" in Path(path).read_text() for name, value in values.items()
            )
        case ControlService(service=service, action=action):
            return f"{action} {service}" in world.log(change.host)
    return True


@pytest.mark.parametrize("run", [remediate, pytest.param(undo_last, marks=pytest.mark.thorough)])
def test_a_run_stopped_at_any_boundary_changes_no_host_after_another_run(
    run: Callable[[World], ExitCode],
    client: "redis.Redis",
    url: str,
    tmp_path: Path,
) -> None:
    boundaries, fenced, stopped = count(1), 0, True
    while stopped:
        worlds: dict[World, int] = {}
        for at in [next(boundaries) for _ in range(AT_ONCE)]:
            world = World(tmp_path / str(at))
            lock_in(world, url)
            if run is undo_last:
                assert remediate(world) == ExitCode.OK
                for name in world.hosts:
                    world.path(name, "log").unlink()
            pid, stopped = started(run, world, url, at)
            if not stopped:
                world.end()
                break
            worlds[world] = pid
        for world, pid in worlds.items():
            until(lambda world=world: not client.exists(str(world.root)))  # type: ignore[misc]
            frozen = list_runs(world.state)[-1]
            made = [shows(world, entry.change) for entry in frozen.entries]
            assert remediate(world) == ExitCode.OK
            before = on_hosts(world)
            code = resumed(pid)
            assert on_hosts(world) == before, world.root.name
            record = find_run(world.state, frozen.id)
            if code == ExitCode.OK:  # its end was all that it had still to write down
                assert (record.outcome, all(made)) == ("ok", True), world.root.name
                world.end()
                continue
            assert (code, record.outcome) == (ExitCode.LOCKED, "failed"), world.root.name
            said = [entry.outcome is Outcome.CHANGED for entry in record.entries]
            assert said[: len(made)] == made, world.root.name
            assert not any(said[len(made) :]), world.root.name
            fenced += 1
            world.end()
    assert fenced > 8
