"""Rolling restarts: one host first, then batches, and an end before a bad change has reached
everywhere.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.command import plain
from runbooks.core.effects import Change, ControlService, WriteFile, sha256
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.fleet import Fleet
from runbooks.core.model import BrokerState, NodeState, RunningTask, Snapshot
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome
from runbooks.diagnosis.since_start import changed_since_start
from runbooks.engine.apply import make_plan
from runbooks.engine.drain import all_gave_up
from runbooks.engine.main_loop import Proof, walk
from runbooks.engine.perform import perform
from runbooks.engine.recap import Recap
from runbooks.engine.rolling import Rolling
from runbooks.engine.run import recorded
from runbooks.engine.undo import plan_undo
from runbooks.history import show
from runbooks.reports.console import ConsoleReporter
from tests.unit.engine.conftest import World
from tests.unit.fleets import make_host, make_state

HOSTS = ("web1", "web2", "web3", "web4")


@pytest.fixture
def fleet(tmp_path: Path) -> World:
    """Four hosts that run, with an environment file that has changed since: each has to be
    restarted.
    """
    world = World(tmp_path, HOSTS)
    assert world.remediate() == ExitCode.OK
    for name in HOSTS:
        world.path(name, "env").write_text("TIMEOUT=x\nTOKEN=s3cret\n")
        world.path(name, "log").unlink()
    return world


@pytest.mark.parametrize(
    ("serial", "sizes"),
    [
        ("1", [1] * 10),
        ("4", [1, 4, 4, 1]),
        ("30%", [1, 3, 3, 3]),
        ("100%", [1, 9]),
        ("1%", [1] * 10),
        ("99", [1, 9]),
    ],
)
def test_one_host_is_the_canary_and_the_others_follow_in_batches(
    serial: str, sizes: Sequence[int]
) -> None:
    hosts = [f"web{n}" for n in range(10)]
    batches = list(Rolling(serial).batches(hosts))
    assert [len(batch) for batch in batches] == sizes
    assert [host for batch in batches for host in batch] == hosts


@pytest.mark.parametrize("serial", ["0", "0%", "101%", "-1", "", "half", "30 %", "1.5"])
def test_a_serial_that_means_nothing_is_refused(serial: str) -> None:
    with pytest.raises(UsageError, match="expects a number of hosts or a percentage"):
        Rolling(serial)


def test_each_batch_is_proved_before_the_next_is_touched(fleet: World) -> None:
    begun: list[str] = []

    def note(name: str, script: str) -> None:
        if "sh ctl stop" in script:
            begun.append(name)
            for other in begun[:-1] if len(begun) < 3 else begun[:2]:
                assert fleet.path(other, "high.pid").exists()

    for name in HOSTS:
        fleet.transports[name].before = lambda script, name=name: note(name, script)
    assert fleet.remediate(rolling=Rolling("1")) == ExitCode.OK
    assert begun == list(HOSTS)


def test_the_workers_of_a_batch_are_drained_at_once(
    fleet: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained: list[list[str]] = []

    def drain(
        queues: Mapping[str, Sequence[str]], patience_s: float
    ) -> dict[str, list[RunningTask]]:
        drained.append(sorted(queues))
        return {}

    monkeypatch.setattr(fleet.broker, "drain", drain)
    assert fleet.remediate(rolling=Rolling("100%")) == ExitCode.OK
    assert drained == [["high@web1"], ["high@web2", "high@web3", "high@web4"]]


BILL = RunningTask("1f", "shop.tasks.bill", 1_750_000_000.0, acknowledged=True)


def test_a_worker_whose_tasks_do_not_end_in_time_goes_on_and_its_neighbour_is_restarted(
    fleet: World,
) -> None:
    fleet.broker.running = {"high@web2": [BILL]}
    assert fleet.remediate() == ExitCode.FAILED
    assert fleet.log("web2") == ["stop beat", "start beat"]
    for name in ("web1", "web3", "web4"):
        assert fleet.log(name) == ["stop high", "start high", "stop beat", "start beat"]
    assert fleet.reporter.outcomes("web2")["restart high"] is Outcome.SKIPPED
    fate = (
        "shop.tasks.bill (1f) since 2025-06-15T15:06:40Z, acknowledged early: if killed, it is lost"
    )
    assert any(fate in detail for name, _, _, detail in fleet.reporter.changes if name == "web2")


def test_a_worker_is_started_again_when_it_is_gone_though_its_stop_command_does_not_wait(
    fleet: World,
) -> None:
    for name in HOSTS:
        fleet.path(name, "high.slow").write_text("0.5")
    assert fleet.remediate(rolling=Rolling("100%")) == ExitCode.OK
    for name in HOSTS:
        assert "restart high" in " ".join(fleet.reporter.outcomes(name))
        assert fleet.path(name, "high.pid").exists()


def test_no_worker_is_started_beside_one_that_does_not_end_in_time(fleet: World) -> None:
    fleet.path("web1", "high.slow").write_text("5")
    fleet.hosts["web1"] = replace(
        fleet.hosts["web1"],
        settings=fleet.hosts["web1"].settings.model_copy(update={"stop_timeout": 1.0}),
    )
    log = len(fleet.log("web1"))
    assert fleet.remediate("web1") == ExitCode.FAILED
    details = [
        detail
        for _, summary, _, detail in fleet.reporter.changes
        if summary.startswith("restart high")
    ]
    assert "so no second one was started" in details[0]
    assert "start high" not in fleet.log("web1")[log:]
    assert fleet.path("web1", "high.pid").exists()


def test_a_worker_that_the_inventory_no_longer_has_stays_with_its_unit_while_its_task_runs(
    fleet: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, nodes = NodeState("old@web1", frozenset(), frozenset({"old_q"})), fleet.broker._nodes
    monkeypatch.setattr(fleet.broker, "_nodes", lambda known: nodes(known) | {old.name: old})
    unit = fleet.path("web1", "units/celery-worker@old.service")
    unit.write_text("old\n")
    remove = WriteFile(str(unit), None, 0o644, sha256(b"old\n"))
    changes = [
        Change("web1", "stale", "stop old", ControlService("old", "stop")),
        Change("web1", "units", "remove it", remove),
    ]
    for running, outcome in (
        ([RunningTask("1", "shop.tasks.bill", None, True)], Outcome.SKIPPED),
        ([], Outcome.CHANGED),
    ):
        fleet.broker.running = {old.name: running} if running else {}
        session = fleet.session()
        with recorded(session, Recap()) as run:
            results = perform(run, changes)
        assert [result for _, result, _ in results] == [outcome, outcome], results
        assert (unit.exists(), "stop old" in fleet.log("web1")) == (bool(running), not running)


def test_where_what_runs_may_be_killed_the_worker_is_restarted(fleet: World) -> None:
    fleet.broker.running = {"high@web2": [BILL]}
    assert fleet.remediate(kill_running=True) == ExitCode.OK
    assert "stop high" in fleet.log("web2")


def test_after_a_host_that_does_not_come_back_the_rest_is_left_alone_and_it_gets_its_files_back(
    fleet: World,
) -> None:
    fleet.path("web1", "high.broken").touch()
    assert fleet.remediate() == ExitCode.FAILED
    assert [fleet.reporter.outcomes(name).get("restart high") for name in HOSTS] == [
        Outcome.FAILED, Outcome.SKIPPED, Outcome.SKIPPED, Outcome.SKIPPED
    ]  # fmt: skip
    for name in HOSTS:
        assert fleet.path(name, "env").read_text() == "TIMEOUT=x\nTOKEN=s3cret\n"
    assert not any(fleet.path(name, "log").exists() for name in HOSTS[1:])
    assert fleet.last_run().outcome == "failed"


def test_a_service_that_was_only_started_stays_up_when_its_neighbour_on_the_host_fails(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, ("web1",))
    assert world.remediate() == ExitCode.OK
    world.path("web1", "high.pid").unlink()
    world.path("web1", "beat.broken").touch()
    session = world.session()
    snapshot = session.observe(EVERYTHING)
    steps = (
        session.workers({name: state.clock_at for name, state in snapshot.reachable().items()}),
    )
    assert walk(session, steps, snapshot) == ExitCode.FAILED
    assert world.path("web1", "high.pid").exists()
    outcomes = {
        e.change.summary.split(":")[0]: (e.outcome, e.undone) for e in world.last_run().entries
    }
    assert outcomes == {
        "start high": (Outcome.CHANGED, False),
        "restart beat": (Outcome.FAILED, False),
    }


def test_the_record_of_what_was_put_back_has_nothing_to_undo_and_calls_nothing_undone_that_failed(
    fleet: World, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.path("web1", "high.broken").touch()
    assert fleet.remediate("web1") == ExitCode.FAILED
    session = fleet.session("web1")
    undos = plan_undo(session, fleet.last_run(), malformed=False)
    assert [undo.change.summary for undo in undos if undo.outcome is Outcome.CANNOT] == []
    show(ConsoleReporter("inv"), fleet.state, "last")
    output = capsys.readouterr().out
    assert "(undone since)" in output
    assert "failed: [web1] workers: restart high" in output
    assert not any("failed: " in line and "(undone since)" in line for line in output.splitlines())


def test_where_nothing_is_put_back_that_is_not_announced_and_the_way_to_the_logs_is_shown(
    fleet: World,
) -> None:
    assert fleet.remediate() == ExitCode.OK
    fleet.path("web1", "high.pid").unlink()
    fleet.path("web1", "high.broken").touch()
    fleet.path("web2", "env").write_text("TIMEOUT=30\nTOKEN=other\n")
    assert fleet.remediate() == ExitCode.FAILED
    assert fleet.reporter.outcomes("web2")["restart high"] is Outcome.SKIPPED
    assert fleet.reporter.steps == ["workers"]
    assert plain(fleet.reporter.printed[-1]) == "Show their logs: `inv tail-logs --limit web1`"


def test_as_many_hosts_as_allowed_may_fail_and_only_they_get_their_files_back(fleet: World) -> None:
    fleet.path("web1", "high.broken").touch()
    assert fleet.remediate(rolling=Rolling("1", max_fail=1)) == ExitCode.FAILED
    assert [fleet.path(name, "env").read_text().startswith("TIMEOUT=30") for name in HOSTS] == [
        False, True, True, True
    ]  # fmt: skip


def test_the_failures_are_counted_over_the_whole_run(fleet: World) -> None:
    for name in ("web1", "web3"):
        fleet.path(name, "high.broken").touch()
    fleet.remediate(rolling=Rolling("1", max_fail=1))
    assert fleet.reporter.outcomes("web2")["restart high"] is Outcome.CHANGED
    assert fleet.reporter.outcomes("web4")["restart high"] is Outcome.SKIPPED


def test_a_host_that_does_not_come_up_keeps_what_runs_elsewhere_from_being_interrupted(
    fleet: World,
) -> None:
    for name in ("web1", "web3"):
        for service in ("high", "beat"):
            fleet.path(name, f"{service}.pid").unlink()
    fleet.path("web1", "high.broken").touch()
    assert fleet.remediate(rolling=Rolling("1")) == ExitCode.FAILED
    assert fleet.reporter.outcomes("web1")["start high"] is Outcome.FAILED
    assert fleet.reporter.outcomes("web2")["restart high"] is Outcome.SKIPPED
    assert fleet.reporter.outcomes("web3")["start high"] is Outcome.CHANGED, (
        "it cannot become worse"
    )
    assert fleet.reporter.outcomes("web4")["restart high"] is Outcome.SKIPPED
    for name in ("web2", "web4"):
        assert fleet.path(name, "env").read_text() == "TIMEOUT=x\nTOKEN=s3cret\n"
        assert not fleet.path(name, "log").exists()


EVERYTHING = Needs.EVERYTHING & ~Needs.IMPORTS


def proof_that_keeps(looks: list[Snapshot]) -> Proof:
    """A proof of everything that keeps the look it is given."""
    return Proof(EVERYTHING, lambda run, snapshot: looks.append(snapshot))


def test_the_look_after_the_last_batch_is_at_the_whole_fleet_and_the_proof_takes_no_other(
    fleet: World,
) -> None:
    looks: list[Snapshot] = []
    scripts: list[str] = []
    fleet.transports["web4"].before = scripts.append
    assert fleet.remediate(rolling=Rolling("1"), proof=proof_that_keeps(looks)) == ExitCode.OK
    restart = next(n for n, script in enumerate(scripts) if "sh ctl stop" in script)
    assert len(scripts[restart + 1 :]) == 1
    (seen,) = looks
    assert make_plan(fleet.steps(fleet.session()), seen) == ()
    states = seen.reachable()
    assert sorted(states) == list(HOSTS)
    last_start = states["web4"].services["high"].started_at
    assert last_start is not None
    assert all(state.clock_at > last_start for state in states.values()), (
        "none was checked before the last restart"
    )


def test_a_proof_takes_a_look_of_its_own_where_the_first_one_came_too_early(fleet: World) -> None:
    """What else a proof looks at may be dear, so only the first look after the last batch is at all
    of it.
    """
    for name, host in fleet.hosts.items():
        patient = host.settings.model_copy(update={"start_timeout": 30.0})
        fleet.hosts[name] = type(host)(host.name, host.groups, patient, host.variables)
    observe, looks = fleet.broker.observe, list[Snapshot]()
    asked: list[int] = []

    def slow(within: Fleet, now: float, needs: Needs, **what: Any) -> BrokerState:
        asked.append(len(within.hosts))
        state = observe(within, now, needs, **what)
        return replace(state, nodes={}) if asked == [4, 4, 1, 4] else state

    fleet.broker.observe = slow  # type: ignore[method-assign, assignment]
    assert fleet.remediate(rolling=Rolling("100%"), proof=proof_that_keeps(looks)) == ExitCode.OK
    # Before; the files; the canary; too early; the others answer; and are checked; the verification.
    assert asked == [4, 4, 1, 4, 3, 3, 4]
    assert sorted(looks[0].reachable()) == list(HOSTS)


def test_a_start_is_awaited_no_longer_once_the_manager_has_given_up_on_all() -> None:
    host = make_host()
    changes = [
        Change("web1", "workers", f"start {name}", ControlService(name, "start"), None)
        for name in host.services
    ]

    def settled(*failed: str) -> bool:
        state = make_state(host)
        found = {
            name: replace(service, pid=None, gave_up=name in failed)
            for name, service in state.services.items()
        }
        return all_gave_up(changes, {"web1": replace(state, services=found)})

    assert (settled("high"), settled("high", "beat")) == (False, True)


def test_a_file_that_is_touched_restarts_nothing_and_one_that_says_something_else_does(
    tmp_path: Path,
) -> None:
    """What a service was started with is seen by the run that starts it, also where its environment
    cannot be read.
    """
    world = World(tmp_path, ("web1",))
    assert world.remediate() == ExitCode.OK
    env = world.path("web1", "env")
    env.touch()
    assert world.remediate() == ExitCode.OK
    assert world.reporter.plans == [()]
    env.write_text(f"{env.read_text()}MORE=1\n")
    assert world.remediate() == ExitCode.OK
    assert world.log("web1").count("start high") == 2
    env.write_text("TIMEOUT=x\n")
    world.path("web1", "high.broken").touch()
    assert (
        world.remediate() == ExitCode.FAILED
    )  # so the file is put back, and beat started on it again
    env.write_text("TIMEOUT=x\nMORE=2\n")
    state = world.session().observe(Needs.FILES | Needs.SERVICES).reachable()["web1"]
    assert changed_since_start(world.hosts["web1"], "beat", state) == [str(env)]
    world.path("web1", "high.broken").unlink()
    assert world.remediate() == ExitCode.OK
    kept = tmp_path / "state/started/shop/web1.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert {folder.stat().st_mode & 0o777 for folder in kept.parents[:2]} == {0o700}
    assert sha256(env.read_bytes()) in kept.read_text()
    env.touch()
    kept.chmod(0o622)  # another user may have written it
    assert world.remediate() == ExitCode.OK
    assert world.reporter.plans == [()]
    world.end()
