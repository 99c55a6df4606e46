"""Single workers that the command line names: they alone are restarted and shown, and the whole
fleet is checked.
"""

import os
import re
import signal

import pytest

from tests.brokers import until
from tests.sandbox.conftest import World


def pids(world: World) -> dict[str, str]:
    """The main pid of each service."""
    files = (world.root / "app/run").glob("*.pid")
    return {path.stem: path.read_text().strip() for path in files}


def restarted(world: World, *arguments: str) -> set[str]:
    """What `restart-workers` has restarted, by the pids."""
    before = pids(world)
    done = world.inv("restart-workers", *arguments, "--yes")
    assert done.code == 0, done.out + done.err
    after = pids(world)
    assert before.keys() == after.keys()
    named = set(re.findall(r"changed: \[sandbox\] restart (\w+)", done.out))
    assert named == {name for name in after if after[name] != before[name]}, done.out
    return named


def test_only_the_workers_that_a_pattern_fits_are_restarted(healthy: World) -> None:
    assert restarted(healthy, "worker_low") == {"worker_low"}
    assert restarted(healthy, "worker_d*, beat@sandbox") == {"worker_daemon", "beat"}
    assert restarted(healthy, "--worker", "worker_h*") == {"worker_high"}
    assert restarted(healthy, "worker_h*", "--serial", "1", "beat") == {"worker_high", "beat"}


def test_diagnose_and_verify_speak_of_the_chosen_workers_and_say_what_they_leave_out(
    healthy: World,
) -> None:
    pid = int(pids(healthy)["worker_daemon"].split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        broken = healthy.inv("diagnose", "--worker", "worker_low,worker_d*", "--json")
        assert broken.code == 1, broken.out
        assert "worker.stopped" in {one["code"] for one in broken.json["findings"]}
        well = healthy.inv("diagnose", "--worker", "worker_low")
        assert (well.code, "worker_daemon" in well.out) == (0, False), well.out
        assert "about other workers not shown" in well.out
        checked = healthy.inv("verify", "--worker", "worker_low", "--json")
        assert checked.code == 0, checked.out
        assert {one["what"]: one["seen"] for one in checked.json["checks"]}[
            "services run"
        ] == "1 of 1"
        assert healthy.inv("verify", "--worker", "worker_d*").code == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: healthy.inv("verify").code == 0)


def test_a_plan_names_only_these_and_without_a_pattern_it_names_all(healthy: World) -> None:
    plan = healthy.inv("restart-workers", "worker_low", "--dry-run", "--json")
    assert plan.code == 0, plan.out
    assert [change["do"]["service"] for change in plan.json["plan"]] == ["worker_low"]
    whole = healthy.inv("restart-workers", "--dry-run", "--json")
    assert len(whole.json["plan"]) == 4


@pytest.mark.parametrize("verb", ["restart-workers", "tail-logs", "diagnose", "verify"])
@pytest.mark.parametrize(
    ("pattern", "expected"), [("worker_hgih", "did you mean 'worker_high'?"), ("", "is called ''")]
)
def test_a_pattern_that_fits_nothing_is_an_error_with_the_near_name(
    healthy: World, verb: str, pattern: str, expected: str
) -> None:
    before = pids(healthy)
    done = healthy.inv(verb, "--worker", pattern)
    assert (done.code, expected in done.err) == (5, True), done.out + done.err
    assert "available: worker_high, worker_low, worker_daemon, beat" in done.err
    assert pids(healthy) == before


def test_a_worker_that_is_held_back_does_not_concern_the_others(healthy: World) -> None:
    """The status command of one answers neither that it runs nor that it does not."""
    unclear = healthy.inventory(
        ('status: "{{ sandbox_env }} ./workers_status.sh {worker}"',
         'status: "[ {worker} != worker_daemon ] || exit 9; {{ sandbox_env }} ./workers_status.sh {worker}"')
    )  # fmt: skip
    done = healthy.inv("restart-workers", "worker_low", "--yes", "--inventory", unclear)
    assert done.code == 0, done.out + done.err
    held = healthy.inv("restart-workers", "worker_d*", "--yes", "--inventory", unclear)
    assert held.code == 2, held.out + held.err
    assert "worker_daemon on sandbox is not changed" in held.err


def test_the_logs_of_one_worker_are_shown_alone(healthy: World) -> None:
    shown = healthy.inv("tail-logs", "worker_low", "--json", "--lines", "3")
    assert shown.code == 0, shown.err
    logs = {line["log"] for line in shown.json["logs"]}
    assert logs == {"worker_low.log"}


def test_a_worker_may_have_another_name_to_its_commands_and_another_node(healthy: World) -> None:
    """The inventory's `low` is `worker_low` to the scripts, and the node worker_low@sandbox to
    Celery.
    """
    renamed = healthy.inventory(
        ("          - name: worker_low\n", "          - name: low\n            service: worker_low\n"
         '            node: "worker_low@%h"\n')
    )  # fmt: skip
    looked = healthy.inv("diagnose", "--inventory", renamed, "--json").json
    assert {one["code"] for one in looked["findings"]} <= {"unit.stale", "cron.differs"}, looked
    before = pids(healthy)
    done = healthy.inv("restart-workers", "low", "--yes", "--inventory", renamed)
    assert done.code == 0, done.out + done.err
    after = pids(healthy)
    assert {name for name in after if after[name] != before[name]} == {"worker_low"}
