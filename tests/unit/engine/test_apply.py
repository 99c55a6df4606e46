"""Carrying out a plan: a second look proves what was made, and a host that fails does not drag the
others along.
"""

import json
import math
import os
import re

import pytest
from msgspec.structs import replace

from runbooks.core.effects import BROKER
from runbooks.core.errors import BrokerUnreachable, ExitCode, Interrupted, LockHeld, RunbookError
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome, Tally
from runbooks.engine.journal import JOURNAL
from runbooks.engine.main_loop import walk
from runbooks.engine.recap import Recap
from runbooks.install import install_cron, install_units
from tests.unit.engine.conftest import CTL, World

CHANGED, FAILED, SKIPPED = Outcome.CHANGED, Outcome.FAILED, Outcome.SKIPPED
STARTED = ["start high", "start beat"]


def journal_lines(world: World) -> list[dict[str, object]]:
    path = world.last_run().directory / JOURNAL
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_broken_fleet_is_fixed_and_a_second_run_finds_nothing_to_do(world: World) -> None:
    world.broker.bad["high_q"] = 7
    assert world.remediate() == ExitCode.OK
    for host in ("web1", "web2"):
        assert world.path(host, "env").read_text() == "TIMEOUT=30\nTOKEN=s3cret\n"
        assert sorted(world.files(host)) == [
            "cron/celery-shop", "env", "units/celery-beat.service", "units/celery-worker@high.service",
            "units/celery.target",
        ]  # fmt: skip
        assert world.log(host) == STARTED
        assert world.reporter.tallies[host] == Tally(ok=3, changed=7)
    assert world.broker.bad["high_q"] == 0
    assert {outcome for *_, outcome, _ in world.reporter.changes} == {CHANGED}
    assert world.last_run().outcome == "ok"

    assert world.remediate() == ExitCode.OK
    assert world.reporter.plans == [()]
    assert world.reporter.changes == []
    assert len(list((world.state / "runs").iterdir())) == 1
    assert world.log("web1") == STARTED


def test_units_are_installed_and_nothing_is_started(world: World) -> None:
    assert install_units(world.session()) == ExitCode.OK
    for host in ("web1", "web2"):
        assert sorted(world.files(host)) == [
            "env", "units/celery-beat.service", "units/celery-worker@high.service",
            "units/celery.target",
        ]  # fmt: skip
        assert world.log(host) == []


@pytest.mark.parametrize("by", ["their own verbs", "remediate"])
def test_lost_edited_and_unwanted_files_are_installed_and_removed(world: World, by: str) -> None:
    for name, host in world.hosts.items():
        folder = world.path(name, "logrotate")
        folder.mkdir()
        logs = {"logs": (f"{folder}/x.log",), "logrotate_directory": str(folder)}
        world.hosts[name] = replace(host, settings=host.settings.model_copy(update=logs))
    assert world.remediate() == ExitCode.OK

    units, others = (
        {world.path(host, name): b"" for host in world.hosts for name in names}
        for names in (["units/celery-beat.service"], ["cron/celery-shop", "logrotate/celery-shop"])
    )
    unwanted = []
    for path in (*units, *others):
        content = path.read_bytes()
        (units if path in units else others)[path] = content
        unwanted.append(path.with_name(f"celery-old{path.suffix}"))
        mark, _, _ = content.partition(b"\n")
        unwanted[-1].write_bytes(mark + b"\n")
        if "web1" in path.parts:
            path.unlink()
        else:
            path.write_bytes(mark + b"\nedited\n")

    if by == "remediate":
        assert world.remediate() == ExitCode.OK
    else:
        assert install_cron(world.session()) == ExitCode.OK
        assert {path: path.read_bytes() for path in others} == others
        assert [path for path in units if path.exists() and path.read_bytes() == units[path]] == []
        assert install_units(world.session()) == ExitCode.OK
    assert {path: path.read_bytes() for path in units | others} == units | others
    assert not any(path.exists() for path in unwanted)


def test_every_change_is_written_down_with_its_outcome_and_no_secret(world: World) -> None:
    world.remediate()
    lines = journal_lines(world)
    effects = [line["n"] for line in lines if line["type"] == "effect"]
    outcomes = {line["n"]: line["outcome"] for line in lines if line["type"] == "outcome"}
    assert effects == list(range(1, 15))
    assert outcomes == dict.fromkeys(effects, "changed")
    text = (world.last_run().directory / JOURNAL).read_text()
    assert "s3cret" not in text
    assert "hunter2" not in text


def test_a_plan_reads_all_messages_however_long_it_takes(world: World) -> None:
    world.remediate(dry_run=True, yes=False)
    assert set(world.broker.read_until) == {math.inf}


def test_a_dry_run_writes_nothing_anywhere(world: World) -> None:
    before = world.files("web1")
    assert world.remediate(dry_run=True, yes=False) == ExitCode.OK
    assert len(world.reporter.plans[0]) == 14
    assert world.files("web1") == before
    assert world.log("web1") == []
    assert not world.state.exists()


def test_without_consent_nothing_is_changed_and_nothing_recorded(world: World) -> None:
    before = world.files("web1")
    with pytest.raises(Interrupted, match="not confirmed"):
        world.remediate(yes=False, confirm=lambda question: False)
    assert world.files("web1") == before
    assert not world.state.exists()


def test_the_question_says_how_many_changes_there_are(world: World) -> None:
    asked: list[str] = []
    world.remediate(yes=False, confirm=lambda question: not asked.append(question))  # type: ignore[func-returns-value]
    assert asked == ["Make these 14 changes?"]


# --- hosts that fail


def test_a_host_that_fails_a_step_takes_no_part_in_the_later_ones_and_the_other_goes_on(
    world: World,
) -> None:
    world.path("web1", "cron").rmdir()
    world.path("web1", "cron").write_text("not a folder")
    assert world.remediate() == ExitCode.FAILED
    assert world.reporter.outcomes("web1") == {
        f"set TIMEOUT in {world.path('web1', 'env')}": CHANGED,
        f"create {world.path('web1', 'units')}/celery-worker@high.service": CHANGED,
        f"create {world.path('web1', 'units')}/celery-beat.service": CHANGED,
        f"create {world.path('web1', 'units')}/celery.target": CHANGED,
        f"create {world.path('web1', 'cron')}/celery-shop": FAILED,
        "start high": SKIPPED,
        "start beat": SKIPPED,
    }
    assert world.log("web1") == []
    assert world.reporter.tallies["web1"] == Tally(ok=2, changed=4, failed=1, skipped=2)
    assert set(world.reporter.outcomes("web2").values()) == {CHANGED}
    assert world.log("web2") == STARTED
    assert world.last_run().outcome == "failed"


def test_what_a_failing_command_said_is_reported(world: World) -> None:
    world.path("web1", "high.broken").touch()
    assert world.remediate("web1") == ExitCode.FAILED
    assert world.reporter.detail("start high") == "exit code 1: high is broken"


def test_of_a_failing_command_that_says_much_the_last_ten_lines_are_reported(world: World) -> None:
    world.path("web1", "ctl").write_text(f'[ "$1" = start ] || exit 3\nseq 100\nexit 4\n{CTL}')
    world.remediate("web1")
    assert world.reporter.detail("start high").splitlines() == [
        "exit code 4: 91",
        *map(str, range(92, 101)),
    ]


def test_after_a_failed_change_the_hosts_later_ones_of_the_step_are_not_tried_and_counted_so(
    world: World,
) -> None:
    world.path("web1", "high.broken").touch()
    world.remediate("web1")
    assert world.reporter.outcomes("web1")["start beat"] is SKIPPED
    assert world.log("web1") == ["start high"]
    assert world.reporter.tallies["web1"] == Tally(ok=3, changed=5, failed=1, skipped=1)
    assert [entry.outcome for entry in world.last_run().entries][-2:] == [FAILED, SKIPPED]


def test_a_change_that_was_made_but_did_not_help_has_failed(world: World) -> None:
    world.path("web1", "beat.dud").touch()
    assert world.remediate("web1") == ExitCode.FAILED
    outcomes = world.reporter.outcomes("web1")
    assert (outcomes["start high"], outcomes["start beat"]) == (CHANGED, FAILED)
    detail = world.reporter.detail("start beat")
    assert "a second look still finds: start beat: it is not running" in detail
    recorded = {
        entry.change.summary: (entry.outcome, entry.unproved) for entry in world.last_run().entries
    }
    assert [recorded[name] for name in recorded if name.startswith("start beat")] == [
        (CHANGED, detail)
    ]
    assert not any(
        unproved for name, (_, unproved) in recorded.items() if not name.startswith("start beat")
    )


def test_the_second_look_waits_for_a_state_that_takes_its_time(world: World) -> None:
    """The node answers only after it was missed once."""
    observe, looks = world.broker._nodes, []

    def slow(fleet: object) -> object:
        looks.append(1)
        return {} if len(looks) == 2 else observe(fleet)  # type: ignore[arg-type]

    world.broker._nodes = slow  # type: ignore[assignment, method-assign]
    host = world.hosts["web1"]
    patient = host.settings.model_copy(update={"start_timeout": 30.0})
    world.hosts["web1"] = type(host)(host.name, host.groups, patient, host.variables)
    assert world.remediate("web1") == ExitCode.OK
    assert len(looks) == 4  # before; missed; bound; answering
    assert world.reporter.waited[-2:] == ["waiting for high@web1 to answer", ""]


def test_a_variable_that_someone_sets_meanwhile_is_left_alone_and_the_host_has_failed(
    world: World,
) -> None:
    env = world.path("web1", "env")

    def meddle(question: str) -> bool:
        env.write_text("TIMEOUT=60\n")
        return True

    assert world.remediate(yes=False, confirm=meddle) == ExitCode.FAILED
    assert env.read_text() == "TIMEOUT=60\n"
    assert world.reporter.detail(f"set TIMEOUT in {env}").startswith("exit code 7: ")
    assert world.reporter.outcomes("web1")["start high"] is SKIPPED
    assert set(world.reporter.outcomes("web2").values()) == {CHANGED}


def test_a_file_that_becomes_unreadable_fails_its_host_and_not_the_run(world: World) -> None:
    env, aside = world.path("web1", "env"), world.path("web1", "aside")

    def meddle(script: str) -> None:
        """A folder is where the file was while it is read to be changed, and only then."""
        if aside.exists():
            env.rmdir()
            aside.rename(env)
        elif "date +%s" not in script and str(env) in script:
            env.rename(aside)
            env.mkdir()

    world.transports["web1"].before = meddle
    assert world.remediate() == ExitCode.FAILED
    assert "cannot be read" in world.reporter.detail(f"set TIMEOUT in {env}")
    assert world.reporter.outcomes("web1")["start high"] is SKIPPED
    assert set(world.reporter.outcomes("web2").values()) == {CHANGED}
    assert world.last_run().entries[0].outcome is FAILED


# --- hosts that go away


def test_a_host_that_does_not_answer_is_reported_and_the_others_are_fixed(world: World) -> None:
    world.transports["web1"].is_gone = True
    assert world.remediate() == ExitCode.UNREACHABLE
    assert world.reporter.tallies["web1"] == Tally(unreachable=1)
    assert world.reporter.printed == ["web1 is skipped: No route to host"]
    assert world.log("web2") == STARTED
    assert world.last_run().state == "unreachable", "nothing has failed"
    world.remediate()
    assert world.reporter.tallies["web1"] == Tally(unreachable=1)


def test_a_host_that_goes_away_while_it_is_changed_leaves_an_effect_of_unknown_outcome(
    world: World,
) -> None:
    world.transports["web1"].at = "sh ctl start"
    assert world.remediate() == ExitCode.FAILED_AND_UNREACHABLE
    assert world.reporter.outcomes("web1")["start high"] is FAILED
    unknown = [
        e
        for e in world.last_run().entries
        if e.change.host == "web1" and e.change.step == "workers"
    ]
    assert [entry.outcome for entry in unknown] == [None, None]
    assert set(world.reporter.outcomes("web2").values()) == {CHANGED}


def test_a_host_that_goes_away_before_the_second_look_is_not_success(world: World) -> None:
    transport = world.transports["web1"]

    def leave(script: str) -> None:
        transport.at = "getconf CLK_TCK" if "sh ctl start" in script else transport.at

    transport.before = leave
    assert world.remediate() == ExitCode.FAILED_AND_UNREACHABLE
    assert world.reporter.outcomes("web1")["start high"] is FAILED
    assert world.reporter.tallies["web1"].unreachable == 1
    assert world.reporter.outcomes("web2")["start high"] is CHANGED


# --- the lock, the broker, interrupts


def test_nothing_is_changed_once_the_lock_is_lost(world: World) -> None:
    world.broker.lock_held.lost = True
    before = world.files("web1")
    with pytest.raises(LockHeld):
        world.remediate()
    assert world.files("web1") == before
    assert world.log("web1") == []
    assert world.last_run().outcome == "failed"


def test_files_units_and_cron_entries_of_a_host_cost_one_look_one_exec_and_one_second_look(
    world: World,
) -> None:
    """Workers cost one exec and one second look more; before each exec the host's uptime is asked,
    with the environment file that is to be written.
    """
    scripts: list[str] = []
    world.transports["web1"].before = scripts.append
    assert world.remediate("web1") == ExitCode.OK
    # Celery processes of other tests on this machine cost one more, which lists their pids.
    scripts = [script for script in scripts if not re.search(r"WorkingDirectory '\d", script)]
    _look, _uptime, files, _second_look, uptime, workers, _proof = scripts
    assert "/proc/uptime" in uptime
    assert files.count("sha256sum") > 1
    assert "ctl start" in workers


def test_a_host_that_fails_a_step_is_not_touched_by_the_later_ones_although_they_travel_together(
    world: World,
) -> None:
    units = world.path("web1", "units")
    units.rmdir()
    assert world.remediate("web1") == ExitCode.FAILED
    assert set(world.reporter.outcomes("web1").values()) == {CHANGED, FAILED, SKIPPED}
    assert list(world.path("web1", "cron").iterdir()) == []
    assert world.log("web1") == []


def test_a_broker_that_goes_away_ends_the_run_and_is_written_down(world: World) -> None:
    world.broker.bad["high_q"] = 1
    world.broker.error = BrokerUnreachable("the broker at x does not answer")
    with pytest.raises(BrokerUnreachable):
        world.remediate()
    record = world.last_run()
    assert (record.outcome, record.entries[-1].outcome, record.entries[-1].change.host) == (
        "failed",
        FAILED,
        BROKER,
    )
    assert world.log("web1") == []


def test_messages_that_are_still_there_after_the_cleaning_are_a_failure(world: World) -> None:
    world.broker.bad["high_q"] = 3
    world.broker.sticky = True
    assert world.remediate() == ExitCode.FAILED
    assert world.reporter.outcomes(BROKER) == {"archive 3 of 3 messages from high_q": FAILED}
    assert world.reporter.tallies[BROKER] == Tally(failed=1)


def test_what_arrives_while_a_queue_is_cleaned_is_reported_and_no_failure(world: World) -> None:
    world.broker.bad["high_q"], world.broker.arriving = 3, 2
    assert world.remediate() == ExitCode.OK
    assert "new since then, still to do: archive 2 of 2 messages" in world.reporter.detail(
        "archive 3"
    )


def test_an_interrupt_ends_the_hosts_scripts_and_is_written_down(world: World) -> None:
    def interrupt(script: str) -> None:
        if "sh ctl start" in script:
            raise KeyboardInterrupt

    world.transports["web1"].before = interrupt
    with pytest.raises(Interrupted):
        world.remediate("web1")
    record = world.last_run()
    assert record.outcome == "interrupted"
    assert [entry.outcome for entry in record.entries] == [CHANGED] * 5 + [None] * 2
    world.transports["web1"].before = None
    assert world.remediate("web1") == ExitCode.OK


def test_a_run_goes_on_where_an_interrupted_one_stopped(world: World) -> None:
    world.transports["web1"].at = "sh ctl start"
    world.remediate("web1")
    world.transports["web1"] = type(world.transports["web1"])()
    assert world.remediate("web1") == ExitCode.OK
    assert [change.summary for change in world.reporter.plans[0]] == [
        "start high: it is not running", "start beat: it is not running"
    ]  # fmt: skip


# --- restarts


def test_workers_that_ran_are_restarted_once_on_the_new_environment(world: World) -> None:
    world.remediate("web1")
    world.path("web1", "env").write_text("TIMEOUT=x\n")
    assert world.remediate("web1") == ExitCode.OK
    assert world.log("web1")[2:] == ["stop high", "start high", "stop beat", "start beat"]
    assert world.remediate("web1") == ExitCode.OK
    assert len(world.log("web1")) == 6


def test_a_restart_that_was_asked_for_counts_only_when_the_worker_is_a_new_one(
    world: World,
) -> None:
    world.remediate("web1")
    pid = world.path("web1", "high.pid").read_text()
    session = world.session("web1")
    needs = session.workers().needs | Needs.FILES
    snapshot = session.observe(needs)
    since = {name: state.clock_at for name, state in snapshot.reachable().items()}
    steps = (session.workers(since),)
    assert walk(session, steps, snapshot) == ExitCode.OK
    assert world.path("web1", "high.pid").read_text() != pid
    assert world.reporter.undo == "", "a restart alone leaves nothing to undo"
    world.path("web1", "high.stuck").touch()
    snapshot = session.observe(needs)
    since = {name: state.clock_at for name, state in snapshot.reachable().items()}
    assert walk(session, (session.workers(since),), snapshot) == ExitCode.FAILED


def test_the_run_that_can_be_undone_is_reported_at_its_end(world: World) -> None:
    world.remediate()
    assert world.reporter.undo == world.last_run().id


def test_a_run_that_changed_nothing_offers_no_way_back(world: World) -> None:
    world.broker.lock_held.lost = True
    with pytest.raises(LockHeld):
        world.remediate("web1")
    assert world.reporter.undo == ""
    world.broker.lock_held.lost = False
    world.path("web1", "high.broken").touch()
    assert world.remediate("web1") == ExitCode.FAILED
    assert world.reporter.undo, "what it did before stands"
    assert world.remediate("web1") == ExitCode.FAILED
    assert world.reporter.undo, "a service whose start failed may come up all the same"


def test_a_run_that_is_interrupted_before_its_first_change_says_so(world: World) -> None:
    def interrupt() -> float:
        raise KeyboardInterrupt

    world.broker.lock_held.held = interrupt  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as interrupted:
        world.remediate("web1")
    assert interrupted.value.problem == "interrupted; nothing was changed"


# --- exit codes


@pytest.mark.parametrize(
    ("tallies", "code"),
    [
        ([], ExitCode.OK),
        ([Tally(ok=1), Tally(changed=3), Tally(skipped=1)], ExitCode.OK),
        ([Tally(ok=1), Tally(failed=1)], ExitCode.FAILED),
        ([Tally(ok=1), Tally(unreachable=1)], ExitCode.UNREACHABLE),
        ([Tally(failed=1), Tally(unreachable=1)], ExitCode.FAILED_AND_UNREACHABLE),
    ],
)
def test_the_exit_code_says_the_worst_of_all_hosts(tallies: list[Tally], code: ExitCode) -> None:
    assert Recap({str(n): tally for n, tally in enumerate(tallies)}).exit_code == code


def test_an_unwritable_record_is_reported_before_anything_is_changed(world: World) -> None:
    world.state.write_text("a file")
    before = world.files("web1")
    with pytest.raises(RunbookError, match="cannot be recorded"):
        world.remediate()
    assert world.files("web1") == before


def test_a_file_with_a_time_in_the_future_makes_one_restart_necessary_and_not_one_after_the_other(
    world: World,
) -> None:
    """rsync and tar put the times of another machine's clock."""
    world.remediate()
    for host in world.hosts:
        world.path(host, "env").write_text("TIMEOUT=30\nTOKEN=another\n")
        os.utime(world.path(host, "env"), (2e9, 2e9))
    assert world.remediate() == ExitCode.OK
    assert world.log("web1").count("start high") == 2
    assert world.remediate() == ExitCode.OK
    assert world.reporter.plans == [()]
