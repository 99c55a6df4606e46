"""Undo: what can be undone is judged by what is there now, in an order in which it works, and
done once.
"""

from pathlib import Path

import pytest
from msgspec.structs import replace

from runbooks.core.effects import (
    BROKER,
    Change,
    ControlService,
    RestoreMessages,
    RunTask,
    TakeMessages,
    WriteFile,
    sha256,
)
from runbooks.core.errors import BrokerUnreachable, ExitCode, LockHeld, RunbookError, UsageError
from runbooks.core.reporter import Outcome
from runbooks.engine.journal import JOURNAL, Journal, RunRecord, Where, find_run, list_runs
from runbooks.engine.recap import Recap
from runbooks.engine.undo import Undo, plan_undo, undo
from runbooks.hosts.transport import Completed
from runbooks.undo import undo as undo_page
from tests.unit.engine.conftest import Flaky, Recorder, World

CHANGED, ALREADY, CANNOT = Outcome.CHANGED, Outcome.ALREADY, Outcome.CANNOT
FAILED, SKIPPED = Outcome.FAILED, Outcome.SKIPPED
RUN = "20250101-000000-aaaa"


def judged(world: World, run: str = "last", *hosts: str) -> list[Undo]:
    return plan_undo(world.session(*hosts), find_run(world.state, run), malformed=False)


def outcomes(undos: list[Undo], host: str) -> dict[str, Outcome]:
    return {
        u.change.summary.split("/")[0] + u.change.summary.rpartition("/")[2]: u.outcome
        for u in undos
        if u.change.host == host
    }


def take_back(world: World, run: str, *hosts: str) -> Recap:
    world.reporter = Recorder()
    recap = Recap()
    session = world.session(*hosts)
    record = find_run(world.state, run)
    undo(session, record, plan_undo(session, record, malformed=False), recap)
    return recap


@pytest.fixture
def done(world: World) -> str:
    """The id of a remediation of everything, on a fleet of which only web2's `high` and beat ran."""
    world.remediate("web2")
    world.path("web2", "env").write_text("TIMEOUT=x\nTOKEN=s3cret\n")
    for host in world.hosts:
        world.path(host, "log").unlink(missing_ok=True)
    world.broker.bad["high_q"] = 7
    world.remediate()
    return world.last_run().id


def record_of(world: World, *changes: Change, outcome: Outcome | None = CHANGED) -> RunRecord:
    """A run of these changes as its journal has it; nothing is made."""
    journal = Journal.create(world.state, RUN, "remediate", Where("i", "localhost:6379/3"))
    for change in changes:
        n = journal.intend(change)
        if outcome:
            journal.finished(n, outcome)
    journal.close()
    return find_run(world.state, RUN)


def put_file(
    path: Path, before: bytes | None, after: bytes | None, before_mode: int = 0o644
) -> Change:
    """The change from `before` to `after`."""
    do = WriteFile(str(path), after, 0o644, sha256(before))
    return Change(
        "web1",
        "units",
        f"change {path}",
        do,
        WriteFile(str(path), before, before_mode, sha256(after)),
    )


# --- a whole run


def test_a_run_is_undone_files_messages_and_services(world: World, done: str) -> None:
    before = {"env": b"TIMEOUT=x\nTOKEN=s3cret\n"}
    recap = take_back(world, done)
    assert recap.exit_code == ExitCode.OK
    assert world.files("web1") == before
    assert world.files("web2")["env"] == before["env"]
    assert world.broker.bad["high_q"] == 7
    assert not world.path("web1", "high.pid").exists()
    assert world.path("web2", "high.pid").exists()
    assert {outcome for *_, outcome, _ in world.reporter.changes} == {CHANGED}
    assert find_run(world.state, done).state == "undone"


def test_undo_stops_what_was_started_then_fixes_files_then_restarts_and_last_moves_messages(
    world: World, done: str
) -> None:
    take_back(world, done)
    made = [summary.split()[0] for host, summary, *_ in world.reporter.changes]
    messages = made.index("restore", len(made) - 1)
    ranks = [{"stop": 0, "restart": 2}.get(word, 1) for word in made[:messages]]
    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2}
    assert world.log("web1") == ["start high", "start beat", "stop beat", "stop high"]
    assert world.log("web2")[-4:] == ["stop beat", "start beat", "stop high", "start high"]


def test_files_are_put_back_newest_first(world: World, done: str) -> None:
    undos = [u.change.summary for u in judged(world, done) if u.change.host == "web1"]
    assert [line.rpartition("/")[2] for line in undos[2:]] == [
        "celery-shop", "celery.target", "celery-beat.service", "celery-worker@high.service", "env"
    ]  # fmt: skip


def test_a_run_that_was_undone_has_nothing_left_to_undo(world: World, done: str) -> None:
    take_back(world, done)
    undos = judged(world, done)
    assert {undo.outcome for undo in undos} <= {ALREADY}
    assert world.broker.bad["high_q"] == 7


def test_an_undo_is_a_run_of_its_own(world: World, done: str) -> None:
    take_back(world, done)
    ids = sorted(path.name for path in (world.state / "runs").iterdir())
    assert len(ids) == 3
    (own,) = [
        find_run(world.state, run)
        for run in ids
        if run != done and find_run(world.state, run).entries[0].change.undo is None
    ]
    assert own.outcome == "ok"
    assert {entry.outcome for entry in own.entries} == {CHANGED}


def test_planning_an_undo_changes_nothing(world: World, done: str) -> None:
    files, log, record = world.files("web1"), world.log("web1"), find_run(world.state, done)
    judged(world, done)
    assert (world.files("web1"), world.log("web1")) == (files, log)
    assert find_run(world.state, done) == record


# --- judging


def test_a_file_that_is_as_the_run_left_it_can_be_put_back(world: World) -> None:
    path = world.path("web1", "f")
    path.write_bytes(b"new")
    (judgement,) = plan_undo(
        world.session("web1"), record_of(world, put_file(path, b"old", b"new")), malformed=False
    )
    assert (judgement.outcome, judgement.change.summary) == (CHANGED, f"restore {path}")


def test_a_file_that_is_already_as_it_was_needs_nothing(world: World) -> None:
    path = world.path("web1", "f")
    path.write_bytes(b"old")
    (judgement,) = plan_undo(
        world.session("web1"), record_of(world, put_file(path, b"old", b"new")), malformed=False
    )
    assert (judgement.outcome, judgement.why) == (ALREADY, "nothing to undo")


def test_a_file_that_differs_only_in_its_mode_is_not_yet_as_it_was(world: World) -> None:
    path = world.path("web1", "f")
    path.write_bytes(b"same")
    path.chmod(0o644)
    record = record_of(world, put_file(path, b"same", b"same", before_mode=0o600))
    session = world.session("web1")
    undos = plan_undo(session, record, malformed=False)
    assert [judgement.outcome for judgement in undos] == [CHANGED]
    undo(session, record, undos, Recap())
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("now", [b"of another", b"", None])
def test_a_file_that_was_changed_since_cannot_be_put_back(world: World, now: bytes | None) -> None:
    path = world.path("web1", "f")
    if now is not None:
        path.write_bytes(now)
    (judgement,) = plan_undo(
        world.session("web1"), record_of(world, put_file(path, b"old", b"new")), malformed=False
    )
    assert (judgement.outcome, judgement.why) == (
        CANNOT,
        "it has been changed since, not by this tool",
    )


def test_a_file_that_the_run_made_is_removed_and_one_that_is_gone_needs_nothing(
    world: World,
) -> None:
    path = world.path("web1", "f")
    record = record_of(world, put_file(path, None, b"new"))
    (judgement,) = plan_undo(world.session("web1"), record, malformed=False)
    assert judgement.outcome is ALREADY
    path.write_bytes(b"new")
    (judgement,) = plan_undo(world.session("web1"), record, malformed=False)
    assert (judgement.outcome, judgement.change.summary) == (CHANGED, f"remove {path}")


@pytest.mark.parametrize(
    ("env", "outcome"),
    [
        ("TIMEOUT=30\nTOKEN=new\n", CHANGED),
        ("TIMEOUT=x\n", ALREADY),
        ("TIMEOUT=60\n", CANNOT),
        ("", CANNOT),
    ],
)
def test_a_variable_is_judged_by_its_own_value_and_not_by_the_rest_of_the_file(
    world: World, done: str, env: str, outcome: Outcome
) -> None:
    world.path("web1", "env").write_text(env)
    (judgement,) = [
        u for u in judged(world, done) if u.change.host == "web1" and "TIMEOUT" in u.change.summary
    ]
    assert judgement.outcome is outcome


def test_a_service_that_is_stopped_already_needs_no_stop(world: World, done: str) -> None:
    world.path("web1", "high.pid").unlink()
    found = outcomes(judged(world, done), "web1")
    assert (found["stop highstop high"], found["stop beatstop beat"]) == (ALREADY, CHANGED)


def test_what_has_run_cannot_be_un_run(world: World) -> None:
    record = record_of(world, Change(BROKER, "canary", "run t", RunTask("t", "q", "id")))
    (judgement,) = plan_undo(world.session(), record, malformed=False)
    assert (judgement.outcome, judgement.why) == (CANNOT, "this cannot be undone")


def test_a_host_that_does_not_answer_or_is_not_selected_cannot_be_undone_now(
    world: World, done: str
) -> None:
    world.transports["web1"].is_gone = True
    whys = {(u.outcome, u.why) for u in judged(world, done) if u.change.host == "web1"}
    assert whys == {(SKIPPED, "No route to host")}
    whys = {(u.outcome, u.why) for u in judged(world, done, "web2") if u.change.host == "web1"}
    assert whys == {(SKIPPED, "this host is not selected")}


def test_a_host_that_is_away_is_left_for_the_next_time_and_has_not_failed(
    world: World, done: str
) -> None:
    world.transports["web1"].is_gone = True
    recap = take_back(world, done)
    assert (recap.exit_code, recap.at("web1").unreachable, recap.at("web1").failed) == (
        ExitCode.UNREACHABLE,
        1,
        0,
    )
    assert world.last_run().state == "unreachable"
    assert world.files("web2")["env"] == b"TIMEOUT=x\nTOKEN=s3cret\n"
    world.transports["web1"].is_gone = False
    assert take_back(world, done).exit_code == ExitCode.OK
    assert world.files("web1") == {"env": b"TIMEOUT=x\nTOKEN=s3cret\n"}
    assert find_run(world.state, done).state == "undone"


def test_what_was_skipped_is_not_spoken_of_and_what_failed_is_looked_at(world: World) -> None:
    path = world.path("web1", "f")
    path.write_bytes(b"new")
    assert (
        plan_undo(
            world.session("web1"),
            record_of(world, put_file(path, b"old", b"new"), outcome=Outcome.SKIPPED),
            malformed=False,
        )
        == []
    )


@pytest.mark.parametrize("outcome", [FAILED, None])
@pytest.mark.parametrize(("now", "expected"), [(b"new", CHANGED), (b"old", ALREADY)])
def test_an_effect_of_failed_or_unknown_outcome_is_judged_by_what_is_there(
    world: World, outcome: Outcome | None, now: bytes, expected: Outcome
) -> None:
    path = world.path("web1", "f")
    path.write_bytes(now)
    record = record_of(world, put_file(path, b"old", b"new"), outcome=outcome)
    assert [u.outcome for u in plan_undo(world.session("web1"), record, malformed=False)] == [
        expected
    ]


# --- restarts


def restarted(host: str) -> Change:
    return Change(
        host,
        "workers",
        "restart high",
        ControlService("high", "restart"),
        ControlService("high", "restart"),
    )


def test_a_restart_is_not_repeated_where_no_file_comes_back(world: World) -> None:
    world.remediate("web1")
    record = record_of(world, restarted("web1"))
    (judgement,) = plan_undo(world.session("web1"), record, malformed=False)
    assert (judgement.outcome, judgement.why) == (
        ALREADY,
        "it was running before the run, and is running now",
    )


def test_a_worker_that_a_restart_left_stopped_is_started_again(world: World) -> None:
    record = record_of(world, restarted("web1"), outcome=None)
    (judgement,) = plan_undo(world.session("web1"), record, malformed=False)
    assert (judgement.outcome, judgement.why) == (
        CHANGED,
        "it was running before the run, and is not now",
    )


def test_a_restart_is_repeated_only_on_the_host_where_a_file_comes_back(world: World) -> None:
    world.remediate()
    path = world.path("web1", "f")
    path.write_bytes(b"new")
    record = record_of(world, put_file(path, b"old", b"new"), restarted("web1"), restarted("web2"))
    found = {
        (u.change.host, u.change.summary.split()[0]): u.outcome
        for u in plan_undo(world.session(), record, malformed=False)
    }
    assert found == {
        ("web1", "restore"): CHANGED,
        ("web1", "restart"): CHANGED,
        ("web2", "restart"): ALREADY,
    }


def test_of_messages_that_go_back_it_is_reported_who_runs_them_as_far_as_that_is_known_before(
    world: World, done: str
) -> None:
    """web1's worker is stopped; web2's starts again with what is put back, which alone says what it
    consumes then.
    """
    (messages,) = [undo for undo in judged(world, done) if undo.change.host == BROKER]
    assert (
        messages.why
        == "7 messages; high@web2 will run them at once if the old files say to consume high_q"
    )


def test_a_worker_that_an_undo_leaves_alone_will_run_what_goes_back_into_its_queue(
    world: World,
) -> None:
    world.remediate()
    world.broker.bad["high_q"] = 7
    world.remediate()
    (messages,) = judged(world)
    assert (
        messages.why == "7 messages; high@web1, high@web2 will run them at once, consuming high_q"
    )


# --- what stays out, what needs nothing


def test_malformed_messages_stay_out_unless_asked_for_and_that_is_reported(
    world: World, done: str
) -> None:
    world.broker.held_back = 2
    record = find_run(world.state, done)
    reported = [
        [
            u.why
            for u in plan_undo(world.session(), record, malformed=malformed)
            if u.change.host == BROKER
        ]
        for malformed in (False, True)
    ]
    assert reported[1] == [
        "7 messages; high@web2 will run them at once if the old files say to consume high_q"
    ]
    assert reported[0][0].startswith("7 messages; 2 malformed messages stay in the archive")
    assert "--malformed" in reported[0][0]


def test_what_is_as_it_was_already_counts_as_undone(world: World, done: str) -> None:
    world.path("web1", "env").write_text("TIMEOUT=x\nTOKEN=s3cret\n")
    recap = take_back(world, done)
    assert recap.at("web1").ok == 1
    assert find_run(world.state, done).state == "undone"


# --- what goes wrong


def test_what_cannot_be_undone_is_left_and_the_rest_is_undone(world: World, done: str) -> None:
    cron = world.path("web1", "cron") / "celery-shop"
    cron.write_text("of another")
    take_back(world, done)
    assert cron.read_text() == "of another"
    assert world.path("web1", "env").read_text() == "TIMEOUT=x\nTOKEN=s3cret\n"
    assert find_run(world.state, done).state != "undone"


def test_a_service_that_does_not_stop_is_a_failure_and_stays_to_be_undone(
    world: World, done: str
) -> None:
    world.path("web1", "beat.stuck").touch()
    recap = take_back(world, done)
    assert recap.exit_code == ExitCode.FAILED
    assert "beat does not stop" in world.reporter.detail("stop beat")
    assert find_run(world.state, done).state != "undone"
    world.path("web1", "beat.stuck").unlink()
    assert take_back(world, done).exit_code == ExitCode.OK
    assert find_run(world.state, done).state == "undone"


def test_a_broker_that_goes_away_leaves_the_messages_to_be_undone_later(
    world: World, done: str
) -> None:
    world.broker.error = BrokerUnreachable("no answer")
    with pytest.raises(BrokerUnreachable):
        take_back(world, done)
    world.broker.error = None
    assert take_back(world, done).exit_code == ExitCode.OK
    assert world.broker.bad["high_q"] == 7


def test_a_host_that_goes_away_meanwhile_is_marked_and_the_other_is_undone(
    world: World, done: str
) -> None:
    world.transports["web1"].at = "sh ctl stop"
    assert take_back(world, done).exit_code == ExitCode.FAILED_AND_UNREACHABLE
    assert world.path("web2", "env").read_text() == "TIMEOUT=x\nTOKEN=s3cret\n"


def test_the_undone_runs_journal_is_closed_whatever_happens(world: World, done: str) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    world.broker.error = RunbookError("boom")
    with pytest.raises(RunbookError):
        take_back(world, done)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_messages_of_another_broker_are_not_put_into_this_one(world: World) -> None:
    took = Change(
        BROKER,
        "queues",
        "take 3 messages",
        TakeMessages("q", "q.jsonl", ()),
        RestoreMessages("q.jsonl"),
    )
    record = record_of(world, took)
    world.broker.name = "elsewhere:6379/3"
    (judgement,) = plan_undo(world.session(), record, malformed=False)
    assert (judgement.outcome, judgement.why) == (
        Outcome.CANNOT,
        "it was done at localhost:6379/3, not elsewhere:6379/3",
    )


def test_the_record_of_a_run_that_goes_on_is_not_touched(
    world: World, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like a torn line is one that its run is writing just now."""
    journal = world.last_run().directory / JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"type": "effect", "n": 99')

    def held(run_id: str, verb: str) -> None:
        raise LockHeld("the run goes on")

    monkeypatch.setattr(world.broker, "lock", held)
    with pytest.raises(LockHeld):
        take_back(world, done)
    assert journal.read_bytes().endswith(b'{"type": "effect", "n": 99')


def test_an_environment_file_that_a_run_made_is_gone_again(world: World) -> None:
    for host in world.hosts:
        world.path(host, "env").unlink()
    assert world.remediate() == ExitCode.OK
    assert world.path("web1", "env").read_text() == "TIMEOUT=30\n"
    assert take_back(world, "last").exit_code == ExitCode.OK
    assert not world.path("web1", "env").exists()


def test_an_environment_file_is_byte_for_byte_what_it_was_again(world: World) -> None:
    before = {host: f'export TIMEOUT="{host} x" # why\nA=$HOME'.encode() for host in world.hosts}
    for host, content in before.items():
        world.path(host, "env").write_bytes(content)
    assert world.remediate() == ExitCode.OK
    assert world.path("web1", "env").read_text() == "export TIMEOUT=30 # why\nA=$HOME"
    assert take_back(world, "last").exit_code == ExitCode.OK
    assert {host: world.path(host, "env").read_bytes() for host in world.hosts} == before


def test_an_environment_file_that_was_empty_is_empty_again(world: World) -> None:
    world.path("web1", "env").write_text("")
    assert world.remediate() == ExitCode.OK
    take_back(world, "last")
    assert world.path("web1", "env").read_text() == ""


def test_a_unit_that_is_masked_stays_so(world: World) -> None:
    unit = world.path("web1", "units/celery-worker@high.service")
    unit.symlink_to("/dev/null")
    world.remediate()
    assert unit.is_symlink()
    take_back(world, "last")
    assert unit.is_symlink()


def test_what_a_run_could_not_change_need_not_be_undone(world: World) -> None:
    unit = world.path("web1", "units/celery-beat.service")

    def edited(script: str) -> None:
        if "base64 -d" in script and not unit.exists():
            unit.write_text("of another\n")

    world.transports["web1"].before = edited
    assert world.remediate() == ExitCode.FAILED
    assert take_back(world, "last").exit_code == ExitCode.OK
    assert unit.read_text() == "of another\n"


def test_a_run_is_undone_though_some_of_its_changes_were_never_tried(world: World) -> None:
    world.path("web1", "high.broken").touch()
    assert world.remediate("web1") == ExitCode.FAILED
    assert world.reporter.outcomes("web1")["start beat"] is Outcome.SKIPPED
    take_back(world, world.last_run().id, "web1")
    assert [record.state for record in list_runs(world.state)] == ["undone", "ok"]


class Machine(Flaky):
    """A host whose machine-id a test can change."""

    machine_id = "1" * 32

    def run(self, script: str, *, timeout_s: float) -> Completed:
        return super().run(
            script.replace("read -r id </etc/machine-id", f"id={self.machine_id}"),
            timeout_s=timeout_s,
        )


def test_a_machine_that_took_the_place_of_another_is_left_as_it_is_and_the_others_are_undone(
    world: World,
) -> None:
    world.transports["web1"] = machine = Machine()
    assert world.remediate() == ExitCode.OK
    run, files, log = world.last_run().id, world.files("web1"), world.log("web1")
    machine.machine_id = "2" * 32
    assert take_back(world, run).exit_code == ExitCode.FAILED
    assert (world.files("web1"), world.log("web1")) == (files, log)
    assert set(world.files("web2")) == {"env"}
    whys = {u.why for u in judged(world, run) if u.change.host == "web1"}
    assert len(whys) == 1, whys
    assert "web1 is another machine now" in whys.pop()
    machine.machine_id = "1" * 32
    assert take_back(world, run).exit_code == ExitCode.OK
    assert set(world.files("web1")) == {"env"}


def test_what_a_later_run_changed_on_the_machine_under_another_name_is_undone_first(
    world: World,
) -> None:
    world.remediate("web1")
    first = world.last_run()
    world.hosts["web2"] = replace(world.hosts["web1"], name="web2")
    world.remediate("web2")
    with pytest.raises(UsageError, match=f"run {world.last_run().id} is newer"):
        undo_page(world.session(), first.id, malformed=False)


@pytest.mark.parametrize(
    ("application", "broker"), [("other", "localhost:6379/3"), ("", "localhost:6379/4")]
)
def test_what_belongs_to_another_application_or_broker_is_refused_whole(
    world: World, application: str, broker: str
) -> None:
    run = Journal.create(world.state, RUN, "remediate", Where("i", broker, application))
    run.close()
    with pytest.raises(UsageError, match="nothing was changed"):
        undo_page(world.session(), "last", malformed=False)
