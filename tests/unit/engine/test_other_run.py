"""A plan is made and carried out on what is seen while no other run is at work."""

from collections.abc import Callable

import pytest

from runbooks.core.effects import Change, ControlService, WriteFile
from runbooks.core.errors import ExitCode, LockHeld, StalePlan, UsageError
from runbooks.core.model import OtherRun
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome
from runbooks.engine import main_loop
from runbooks.engine.journal import Journal, Where, new_run_id, restarted_now
from runbooks.engine.main_loop import walk
from runbooks.undo import undo
from tests.unit.engine.conftest import World

OTHER = OtherRun("ann on ops1 (pid 7)", "20250615-150000-0000", "remediate", 1_750_000_000.0)
NEEDS = Needs.EVERYTHING & ~Needs.IMPORTS


def test_nothing_is_planned_while_another_run_goes_on(world: World) -> None:
    world.broker.other = OTHER
    with pytest.raises(LockHeld, match="run 20250615-150000-0000 is in progress: remediate by ann"):
        world.remediate()
    assert world.reporter.plans == []
    assert world.remediate(dry_run=True) == ExitCode.OK
    assert len(world.reporter.plans) == 1


def test_a_run_that_ended_during_the_look_has_the_look_taken_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.remediate()
    world.path("web1", "high.pid").rename(world.path("web1", "away"))
    answers = [OTHER, None]

    def other_run() -> OtherRun | None:
        if len(answers) == 1:
            world.path("web1", "away").rename(world.path("web1", "high.pid"))
        return answers.pop(0) if answers else None

    monkeypatch.setattr(world.broker, "other_run", other_run)
    snapshot = world.session().observe(NEEDS)
    assert snapshot.other_run is None
    assert snapshot.reachable()["web1"].services["high"].pid


def test_what_was_agreed_to_late_is_looked_at_again_once_the_lock_is_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_loop, "AT_ONCE_S", 0.0)

    def agreed(meanwhile: Callable[[], object]) -> ExitCode:
        def confirm(_question: str) -> bool:
            meanwhile()
            return True

        session = world.session(yes=False, confirm=confirm)
        return walk(session, world.steps(session), session.observe(NEEDS))

    assert agreed(lambda: None) == ExitCode.OK, "a plan that is still right is carried out"
    assert world.log("web1") == ["start high", "start beat"]
    (world.path("web1", "high.pid")).rename(world.path("web1", "away"))
    back = lambda: world.path("web1", "away").rename(world.path("web1", "high.pid"))  # noqa: E731
    with pytest.raises(
        StalePlan, match="web1 has changed since the look, and no longer needs to start high"
    ):
        agreed(back)
    assert world.log("web1") == ["start high", "start beat"]
    assert len(list((world.state / "runs").iterdir())) == 1, (
        "a run that was not begun is not recorded"
    )


def test_a_run_that_a_later_one_has_changed_since_it_was_asked_for_is_not_undone(
    world: World,
) -> None:
    world.remediate()
    world.broker.other = OTHER
    with pytest.raises(LockHeld):
        undo(world.session(), "last", malformed=False)
    world.broker.other = None

    def confirm(_question: str) -> bool:
        world.path("web1", "env").write_text("TIMEOUT=other\n")
        return world.remediate() == ExitCode.OK

    with pytest.raises(UsageError, match="is newer, changed the same things"):
        undo(world.session(yes=False, confirm=confirm), "last", malformed=False)
    assert world.path("web1", "env").read_text() == "TIMEOUT=30\n"


def test_the_record_of_a_run_says_what_it_is_restarting_now(world: World) -> None:
    run = new_run_id(world.state)
    journal = Journal.create(world.state, run, "remediate", Where("i", "b"))
    assert restarted_now(world.state, run) == frozenset()
    restarts = [
        Change(host, "workers", "restart", ControlService("high", "restart"))
        for host in ("web1", "web2")
    ]
    journal.finished(journal.intend(restarts[0]), Outcome.CHANGED)
    assert restarted_now(world.state, run) == frozenset({("web1", "high")}), (
        "it may still be waiting for it to come up"
    )
    journal.intend_all(
        [restarts[1], Change("web2", "env", "write", WriteFile("/e", b"", 0o600, "absent"))]
    )
    assert restarted_now(world.state, run) == frozenset({("web2", "high")})
    (journal.directory / "journal.jsonl").write_text("not a journal\n")
    for nobody in (run, new_run_id(world.state), "../../etc", ""):
        assert restarted_now(world.state, nobody) is None
    journal.close()
