"""What a finding blocks is left as it is and named; everything else is put right, and the exit code says so."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from runbooks.core.errors import ExitCode, RunbookError
from runbooks.core.model import Block, Finding
from runbooks.core.reporter import Outcome, Tally
from runbooks.diagnosis import workers
from runbooks.steps.step import Needs
from tests.unit.engine.conftest import World


def blocks(*blocked: Block) -> Finding:
    return Finding("x.y", "somewhere", "something is wrong", blocks=blocked)


def test_a_blocked_host_is_left_as_it_is_and_the_others_are_put_right(world: World) -> None:
    assert world.remediate(blocking=[blocks(Block("web1"))]) == ExitCode.FAILED
    assert set(world.files("web1")) == {"env"}
    assert world.log("web1") == []
    assert world.reporter.tallies["web1"] == Tally(blocked=1)
    assert set(world.reporter.outcomes("web2").values()) == {Outcome.CHANGED}
    assert world.log("web2") == ["start high", "start beat"]
    assert any("web1 is left as it is: something is wrong" in text for text in world.reporter.told)


def test_a_blocked_service_is_not_started_and_its_neighbour_is(world: World) -> None:
    assert world.remediate("web1", "web2", blocking=[blocks(Block("web1", "high"))]) == ExitCode.FAILED
    assert world.log("web1") == ["start beat"]
    assert world.log("web2") == ["start high", "start beat"]


def test_a_run_that_has_only_blocked_things_to_change_changes_nothing_and_says_so(world: World) -> None:
    world.remediate()
    world.path("web1", "env").write_text("TIMEOUT=1\n")
    assert world.remediate(blocking=[blocks(Block("web1"))]) == ExitCode.FAILED
    assert world.path("web1", "env").read_text() == "TIMEOUT=1\n"


@pytest.mark.parametrize("blocked", [[Block()], [Block("web1"), Block("web2")]])
def test_where_all_is_blocked_the_run_is_refused_before_any_change(world: World, blocked: list[Block]) -> None:
    with pytest.raises(RunbookError, match="nothing was changed: something is wrong"):
        world.remediate(blocking=[blocks(*blocked)])
    assert world.log("web1") == world.log("web2") == []


@pytest.fixture
def innocent() -> Iterator["subprocess.Popen[bytes]"]:
    running = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    yield running
    running.kill()
    running.wait()


def test_a_process_that_a_stale_pid_file_names_is_never_signalled(
    world: World, innocent: "subprocess.Popen[bytes]"
) -> None:
    world.remediate()
    pid_file = world.path("web1", "high.pid")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    pid_file.write_text(f"{innocent.pid}\n")
    world.path("web1", "env").write_text("TIMEOUT=1\n")
    session = world.session()
    found = [
        finding
        for finding in workers.findings(session.fleet, session.observe(Needs.EVERYTHING & ~Needs.IMPORTS))
        if finding.code == "worker.other_process"
    ]
    assert [finding.subject for finding in found] == ["high on web1"]
    assert f"names pid {innocent.pid} (sleep), which is not high of this application" in found[0].summary
    assert found[0].blocks == (Block("web1", "high"),)
    before = world.log("web1")
    assert world.remediate(blocking=found) == ExitCode.FAILED
    assert world.log("web1")[len(before) :] == ["stop beat", "start beat"]
    assert innocent.poll() is None
