"""What a finding blocks is named and not changed; the rest is fixed, and the exit code says so."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from runbooks.core.errors import ExitCode, InventoryError, RunbookError
from runbooks.core.model import Block, Finding, Severity, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome, Tally
from runbooks.diagnosis import services
from runbooks.diagnosis.files import same_machine, units_of_others
from runbooks.engine.rolling import Rolling
from runbooks.install import install_cron, install_units
from runbooks.remediate import remediate
from runbooks.restart_workers import restart_workers
from tests.unit.engine.conftest import World


def blocks(*blocked: Block) -> Finding:
    return Finding("x.y", "somewhere", "something is wrong", blocks=blocked)


def test_a_blocked_host_is_left_as_it_is_and_the_others_are_fixed(world: World) -> None:
    assert world.remediate(blocking=[blocks(Block("web1"))]) == ExitCode.FAILED
    assert set(world.files("web1")) == {"env"}
    assert world.log("web1") == []
    assert world.reporter.tallies["web1"] == Tally(blocked=1)
    assert set(world.reporter.outcomes("web2").values()) == {Outcome.CHANGED}
    assert world.log("web2") == ["start high", "start beat"]
    assert any("web1 is not changed: something is wrong" in text for text in world.reporter.printed)


def test_a_blocked_service_is_not_started_and_its_neighbour_is(world: World) -> None:
    assert (
        world.remediate("web1", "web2", blocking=[blocks(Block("web1", "high"))]) == ExitCode.FAILED
    )
    assert world.log("web1") == ["start beat"]
    assert world.log("web2") == ["start high", "start beat"]


def test_a_run_that_has_only_blocked_things_to_change_changes_nothing_and_says_so(
    world: World,
) -> None:
    world.remediate()
    world.path("web1", "env").write_text("TIMEOUT=1\n")
    assert world.remediate(blocking=[blocks(Block("web1"))]) == ExitCode.FAILED
    assert world.path("web1", "env").read_text() == "TIMEOUT=1\n"


@pytest.mark.parametrize("blocked", [[Block()], [Block("web1"), Block("web2")]])
def test_where_all_is_blocked_the_run_is_refused_before_any_change(
    world: World, blocked: list[Block]
) -> None:
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
        for finding in services.faults(
            session.fleet, session.observe(Needs.EVERYTHING & ~Needs.IMPORTS)
        )
        if finding.code == "worker.other_process"
    ]
    assert [finding.subject for finding in found] == ["high on web1"]
    assert (
        f"names pid {innocent.pid} (sleep), which is not high of this application"
        in found[0].summary
    )
    assert found[0].blocks == (Block("web1", "high"),)
    before = world.log("web1")
    assert world.remediate(blocking=found) == ExitCode.FAILED
    assert world.log("web1")[len(before) :] == ["stop beat", "start beat"]
    assert innocent.poll() is None


@pytest.fixture
def twice(world: World) -> World:
    """One machine under two names: the second has the first one's folders and services."""
    world.hosts["web2"] = replace(world.hosts["web1"], name="web2")
    return world


@pytest.mark.parametrize("verb", ["install_units", "install_cron", "remediate", "restart_workers"])
def test_a_machine_that_the_inventory_names_twice_is_refused_before_anything_is_done(
    twice: World, verb: str
) -> None:
    twice.remediate("web1")
    before, log = twice.files("web1"), twice.log("web1")
    twice.path("web1", "env").write_text("TIMEOUT=1\n")
    before["env"] = b"TIMEOUT=1\n"
    session = twice.session()
    calls: dict[str, Callable[[], ExitCode]] = {
        "install_units": lambda: install_units(session),
        "install_cron": lambda: install_cron(session),
        "remediate": lambda: remediate(session, Rolling("100%", 0)),
        "restart_workers": lambda: restart_workers(session, Rolling("100%", 0)),
    }
    with pytest.raises(InventoryError, match="web1 and web2 are one machine"):
        calls[verb]()
    assert twice.files("web1") == before
    assert twice.log("web1") == log


def test_a_machine_that_the_inventory_names_twice_is_an_error_that_blocks_both(
    twice: World,
) -> None:
    session = twice.session()
    (found,) = same_machine(session.fleet, session.observe(Needs.FILES))
    assert (found.severity, found.subject) == (Severity.ERROR, "web1, web2")
    assert found.blocks == (Block("web1"), Block("web2"))
    assert f"both have {twice.path('web1', 'env')}" in found.evidence


def test_hosts_that_share_a_machine_and_no_file_are_well_and_so_are_copies_of_one_image(
    world: World, twice: World
) -> None:
    apart = World(world.root / "apart").session()
    assert list(same_machine(apart.fleet, apart.observe(Needs.FILES))) == []
    session = twice.session()
    seen = session.observe(Needs.FILES)
    states = {
        name: replace(state, machine=f"id/boot of {name}/1")
        for name, state in seen.reachable().items()
    }
    assert list(same_machine(session.fleet, replace(seen, hosts=states))) == []


def test_units_of_another_host_block_nothing_where_that_one_was_looked_at(twice: World) -> None:
    twice.remediate("web1")
    seen = twice.session().observe(Needs.FILES)
    (found,) = units_of_others(twice.session("web2").fleet, seen)
    assert (found.subject, found.blocks) == ("web2", (Block("web2"),))
    assert any(
        line.endswith("celery-worker@high.service is for high@web1") for line in found.evidence
    )
    assert list(units_of_others(twice.session().fleet, seen)) == []
    assert list(units_of_others(twice.session("web1").fleet, seen)) == []
    away = replace(seen, hosts={**seen.hosts, "web1": Unreachable("gone")})
    (found,) = units_of_others(twice.session().fleet, away)
    assert (found.subject, found.blocks) == ("web2", (Block("web2"),)), "it may be the same machine"
    bare = {name: replace(state, managed={}, files={}) for name, state in seen.reachable().items()}
    without_units = replace(seen, hosts=bare)
    assert list(units_of_others(twice.session("web2").fleet, without_units)) == [], "not known then"
