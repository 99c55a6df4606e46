"""Which processes are which services without a status command: doubt is never "it does not run"."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind
from runbooks.core.settings import Commands, Worker
from runbooks.hosts.celery_argv import options_of
from runbooks.hosts.services.by_processes import states_of
from tests.unit.fleets import NOW, make_host

HIGH, LOW = Worker(name="high", queues=("high_q",)), Worker(name="low", queues=("low_q", "slow_q"))


def process(pid: int, words: str, **changes: Any) -> CeleryProcess:
    options = options_of(f"celery -A shop {words}".split())
    assert options
    kind = Kind.BEAT if options.role == "beat" else Kind.MAIN
    one = CeleryProcess(pid, pid * 100, NOW - 100, "S", kind, options, 1, here=True, inner_pid=pid)
    return replace(one, **changes)


def states(
    *processes: CeleryProcess, workers: tuple[Worker, ...] = (HIGH, LOW), hidden: bool = False
) -> Any:
    host = make_host(workers=workers, commands=Commands(start="./start.sh", stop="./stop.sh"))
    return states_of(host, "shop", host.services, Census(processes, hidden=hidden))


def running(*processes: CeleryProcess, workers: tuple[Worker, ...] = (HIGH, LOW)) -> dict[str, int]:
    found = states(*processes, workers=workers)
    return {name: one.pid for name, one in found.items() if one.pid is not None}


def test_workers_are_known_by_their_names_and_beat_by_what_it_is() -> None:
    found = states(
        process(7, "worker -n high@web1"), process(8, "worker -n low@%h"), process(9, "beat")
    )
    assert {name: one.pid for name, one in found.items()} == {"high": 7, "low": 8, "beat": 9}
    assert (found["high"].start_ticks, found["high"].started_at, found["high"].pids) == (
        700,
        NOW - 100,
        {7: 7},
    )


def test_what_is_not_there_does_not_run_and_says_what_was_looked_for() -> None:
    low = states(process(7, "worker -n high@web1"))["low"]
    assert (low.pid, low.why_unknown, low.answer) == (
        None,
        "",
        "no worker low@web1 of shop in /srv/shop",
    )


def test_workers_without_names_are_told_apart_by_their_queues() -> None:
    assert running(process(7, "worker -Q slow_q,low_q"), process(8, "worker -Q high_q")) == {
        "low": 7,
        "high": 8,
    }


def test_a_worker_that_may_be_either_is_a_doubt_about_both() -> None:
    found = states(process(7, "worker"))
    assert found["high"].why_unknown == "pid 7 (worker) may be it, or low"
    assert found["low"].why_unknown == "pid 7 (worker) may be it, or high"


def test_the_only_worker_of_a_host_needs_neither() -> None:
    assert running(process(7, "worker"), workers=(HIGH,)) == {"high": 7}


def test_of_two_processes_the_one_that_has_the_name_is_it_and_then_the_older() -> None:
    assert running(process(7, "worker"), process(8, "worker -n high@web1"), workers=(HIGH,)) == {
        "high": 8
    }
    assert running(process(8, "worker -n high@web1"), process(7, "worker -n high@web1")) == {
        "high": 7
    }


def test_a_worker_with_b_is_beat_where_no_other_is() -> None:
    worker = process(7, "worker -B -n high@web1")
    assert running(worker) == {"high": 7, "beat": 7}
    assert running(worker, process(8, "beat")) == {"high": 7, "beat": 8}


def test_a_node_of_the_inventorys_own_name_is_known_by_it() -> None:
    named = Worker(name="high", node="w1@%h", queues=("high_q",))
    assert running(process(7, "worker -n w1@box"), workers=(named, LOW)) == {"high": 7}


@pytest.mark.parametrize("changes", [{"leftover": True}, {"kind": Kind.CHILD}, {"here": False}])
def test_what_is_not_a_main_process_of_this_folder_does_not_count(changes: dict[str, Any]) -> None:
    assert running(process(7, "worker -n high@web1", **changes)) == {}


def test_a_process_whose_folder_is_not_shown_is_a_doubt_and_so_are_hidden_ones() -> None:
    assert (
        "may be it, but its folder is hidden"
        in states(process(7, "worker -n high@web1", here=None))["high"].why_unknown
    )
    assert states(hidden=True)["high"].why_unknown == "the processes of other users are hidden"


def test_a_worker_of_the_name_that_is_started_with_another_application_is_a_doubt() -> None:
    other = options_of(["celery", "-A", "shoop", "worker", "-n", "high@web1"])
    found = states(process(7, "worker", options=other))
    assert (
        found["high"].why_unknown
        == "pid 7 (worker high@web1) was started there with -A shoop, not -A shop"
    )
    assert found["low"].why_unknown == ""
