"""A run or an undo that is killed at any flush of its record: repeated, undone, and no byte of
a file is lost.
"""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from runbooks.core.effects import LostContents
from runbooks.core.errors import ExitCode
from runbooks.core.needs import Needs
from runbooks.engine.contents import CONTENTS
from runbooks.engine.journal import find_run, list_runs
from runbooks.engine.main_loop import walk
from runbooks.undo import undo
from tests.unit.engine.conftest import World


def remediate_files(world: World) -> ExitCode:
    """The environment file and the cron file alone, so that the record is all that takes time."""
    session = world.session()
    steps = session.environment(), *session.cron_installed()
    return walk(session, steps, session.observe(Needs.EVERYTHING & ~Needs.IMPORTS))


def take_back(world: World, run: str) -> ExitCode:
    return undo(world.session(verb="undo"), run, malformed=False)


def killed(run: Callable[[], object], at: int) -> bool:
    """Run it in a process that is killed before this flush; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        count, flush = iter(range(1, at)), os.fsync

        def flush_or_die(fd: Any) -> None:
            if next(count, 0) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(fd)

        try:
            os.fsync = flush_or_die
            run()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def state_of(world: World) -> dict[str, tuple[bytes, int]]:
    return {
        name: (content, world.path("web1", name).stat().st_mode)
        for name, content in world.files("web1").items()
    }


def test_a_run_killed_before_any_flush_of_its_record_is_run_again_and_undone(
    tmp_path: Path,
) -> None:
    """Between a change's contents and its line in the journal, after both, and everywhere else."""
    orphaned, at, was_killed = 0, 0, True
    while was_killed:
        at += 1
        world = World(tmp_path / str(at), ("web1",))
        before = state_of(world)
        was_killed = killed(lambda world=world: remediate_files(world), at)  # type: ignore[misc]
        runs = list_runs(world.state)
        assert not any(
            isinstance(entry.change.do, LostContents) for run in runs for entry in run.entries
        )
        kept = sum(path.read_bytes().count(b"\n") for path in world.state.rglob(CONTENTS))
        orphaned += kept > sum(len(run.entries) for run in runs)
        assert remediate_files(world) == ExitCode.OK
        after = state_of(world)
        assert (after["env"][0], len(after)) == (b"TIMEOUT=30\nTOKEN=s3cret\n", 2), at
        for run in reversed(list_runs(world.state)):
            if run.entries:
                assert undo(world.session(verb="undo"), run.id, malformed=False) == ExitCode.OK, at
        assert state_of(world) == before, at
    assert (orphaned, at > 10) == (1, True)


def test_an_undo_killed_before_any_flush_of_the_records_goes_on_when_it_is_run_again(
    tmp_path: Path,
) -> None:
    at, was_killed = 0, True
    while was_killed:
        at += 1
        world = World(tmp_path / str(at), ("web1",))
        before = state_of(world)
        assert remediate_files(world) == ExitCode.OK
        run = world.last_run().id
        was_killed = killed(partial(take_back, world, run), at)
        assert undo(world.session(verb="undo"), run, malformed=False) == ExitCode.OK
        assert (state_of(world), find_run(world.state, run).state) == (before, "undone"), at
    assert at > 8
