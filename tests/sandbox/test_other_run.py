"""While another run is at work every look says so first, and takes what that run is restarting for
no fault.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.sandbox.conftest import World


@dataclass
class AtWork:
    """A healthy sandbox in which `restart-workers` has stopped the first worker, and waits before
    it starts it.
    """

    world: World
    run: str
    process: "subprocess.Popen[str]"

    def inv(self, *words: str, elsewhere: bool = False) -> Any:
        """Run a verb beside it; `elsewhere` as on a machine that has no record of that run."""
        return self.world.inv(
            *words, *(("--state-dir", str(self.world.path / "elsewhere")) if elsewhere else ())
        )


@pytest.fixture(scope="module")
def at_work(healthy: World) -> Iterator[AtWork]:
    os.mkfifo(healthy.root / "at")
    os.mkfifo(healthy.root / "go")
    wait = f"echo >{healthy.root}/at; cat {healthy.root}/go; "
    name = healthy.inventory(('start: "', f'start: "{wait}'))
    command = healthy.command("restart-workers", "--yes", "--inventory", name)
    process = subprocess.Popen(
        command, cwd=healthy.path, env=healthy.environment, stdout=subprocess.PIPE, text=True
    )
    (healthy.root / "at").read_text()
    (run,) = [path.name for path in (healthy.root / "state/runs").iterdir()]
    yield AtWork(healthy, run, process)
    waiting = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    for one in waiting:
        one.kill()


def going_on(at_work: AtWork) -> str:
    return f"run {at_work.run} is in progress: restart-workers by "


def test_a_diagnosis_names_the_run_first_and_calls_its_restarts_no_faults(at_work: AtWork) -> None:
    done = at_work.inv("diagnose")
    first, second, *_ = done.out.splitlines()
    assert going_on(at_work) in first
    assert second == "Nothing is wrong, as far as can be seen while that run is going on."
    assert done.code == 0, done.out
    document = at_work.inv("diagnose", "--json").json
    assert document["about"]["other_run"]["id"] == at_work.run
    assert {finding["code"] for finding in document["findings"]} == {"service.being_restarted"}
    assert f"worker_high is being restarted by run {at_work.run}" in {
        one["summary"] for one in document["findings"]
    }
    assert "next" not in document, "only waiting would fix it"


def test_a_verification_says_of_what_is_being_restarted_that_it_is_not_known(
    at_work: AtWork,
) -> None:
    done = at_work.inv("verify", "--json")
    checks = {check["what"]: check for check in done.json["checks"]}
    assert done.code == 1
    assert checks["services run"]["ok"] is None
    assert (
        f"; run {at_work.run} is restarting: worker_high on sandbox"
        in checks["services run"]["seen"]
    )
    assert not [check for check in checks.values() if check["ok"] is False]


def test_the_monitor_crosses_nothing_for_it(at_work: AtWork) -> None:
    done = at_work.inv("monitor")
    assert f" run={at_work.run} verb=restart-workers by=" in done.out.splitlines()[0]
    assert (done.code, " CROSSED " in done.out) == (0, False), done.out


def test_where_the_run_is_not_recorded_its_silence_stays_a_finding_that_names_it(
    at_work: AtWork,
) -> None:
    done = at_work.inv("diagnose", "--json", elsewhere=True)
    assert (done.code, done.json["about"]["other_run"]["restarts"]) == (1, None)
    (down,) = [one for one in done.json["findings"] if one["code"] == "worker.not_running"]
    assert down["subject"] == "worker_high on sandbox"
    assert down["evidence"][-1].startswith(going_on(at_work))
    assert down["evidence"][-1].endswith("; it may be the reason")


@pytest.mark.parametrize(
    "words", [["remediate"], ["restart-workers"], ["install-cron"], ["clean-queues"]]
)
def test_nothing_is_planned_on_what_is_seen_meanwhile(words: list[str], at_work: AtWork) -> None:
    done = at_work.inv(*words, "--yes")
    assert done.code == 8
    assert f"{going_on(at_work)}" in done.err
    assert "nothing was changed\n→ wait for it to end, then run the same command again" in done.err
    planned = at_work.inv(*words, "--dry-run")
    assert planned.code in (0, 2)
    assert "it may be the reason for this plan" in planned.err
