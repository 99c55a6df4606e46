"""Units of others on real hosts: what they do to their processes, and what a plain remediation leaves alone."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet.conftest import FleetWorld, two_hosts, wait_until
from tests.fleet.test_as_they_are import UNITS, inv, root
from tests.fleet.test_take_over import BY_HAND, CELERYBEAT, CELERYD, CONF, install, put

LOW = "celery-worker@worker_low.service"


@pytest.fixture(scope="module")
def two(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Two healthy hosts; tests leave them so."""
    with two_hosts(tmp_path_factory.mktemp("units")) as world:
        put(world, "/etc/conf.d/celery", CONF)
        yield world


def found(world: FleetWorld) -> list[dict[str, Any]]:
    return [one for one in inv(world, "diagnose", "--json").json["findings"] if one["severity"] != "info"]


def codes(world: FleetWorld) -> list[str]:
    return [one["code"] for one in found(world)]


def remove(world: FleetWorld, *units: str) -> None:
    for unit in units:
        root(world, f"systemctl disable --now {unit}; rm -rf {UNITS}/{unit} {UNITS}/{unit}.d")
    root(world, "systemctl daemon-reload; systemctl reset-failed")


def main_pid(world: FleetWorld, unit: str) -> str:
    return root(world, f"systemctl show -P MainPID {unit}").strip()


def test_a_drop_in_that_lets_a_stop_leave_processes_is_told_with_its_line(two: FleetWorld) -> None:
    path = f"{UNITS}/{LOW}.d/kill.conf"
    before = main_pid(two, LOW)
    put(two, path, "[Service]\nKillMode=process\n")
    root(two, "systemctl daemon-reload")
    try:
        told = next(one for one in found(two) if one["code"] == "unit.kill_mode")
        assert told["subject"] == "worker_low on web1"
        assert told["evidence"][0] == f"{path}:2: KillMode=process"
        assert told["caused_by"] == [{"code": "unit.drop_in", "subject": "worker_low on web1"}]
        drop_in = next(one for one in inv(two, "diagnose", "--json").json["findings"] if one["code"] == "unit.drop_in")
        assert drop_in["evidence"] == ["KillMode=process"]
        assert main_pid(two, LOW) == before
    finally:
        root(two, f"rm -r {UNITS}/{LOW}.d; systemctl daemon-reload")
    wait_until(lambda: not codes(two), "what is well to be so")


def test_a_unit_that_leaves_its_beat_at_a_restart_is_the_cause_and_its_beat_is_counted(two: FleetWorld) -> None:
    text = BY_HAND.replace("-c 2", "-c 1 -B -s /tmp/by-hand").replace(
        "Restart=always", "Restart=always\nKillMode=process"
    )
    install(two, "printers.service", text)
    try:
        wait_until(lambda: "beat.several" in codes(two), "its beat")
        root(two, f"kill -9 {main_pid(two, 'printers.service')}")
        wait_until(lambda: "3 beats" in str(found(two)), "the beat of before, and the next")
        first, *more = found(two)
        assert (first["code"], first["subject"]) == ("unit.kill_mode", "printers.service on web1")
        assert "1 process is left of earlier starts" in first["summary"]
        assert any(line.startswith(f"{UNITS}/printers.service:") for line in first["evidence"])
        assert {"beat.several"} <= {one["code"] for one in more}
        before = root(two, "systemctl show -P MainPID printers.service celery-worker@worker_low.service")
        inv(two, "remediate", "--yes")
        assert root(two, "systemctl show -P MainPID printers.service celery-worker@worker_low.service") == before
        assert "3 beats" in str(found(two)), "nothing that no plan names was ended"
    finally:
        root(two, "systemctl kill --kill-whom=all -s KILL printers.service; :")
        remove(two, "printers.service")
    wait_until(lambda: not codes(two), "what is well to be so")


def test_celerys_documented_unit_and_two_beats_on_two_hosts(two: FleetWorld) -> None:
    install(two, "celeryd.service", CELERYD)
    install(two, "celerybeat.service", CELERYBEAT)
    try:
        wait_until(lambda: {"beat.several", "worker.twins"} <= set(codes(two)), "both to run")
        told = {one["code"]: one for one in found(two)}
        assert "2 beats run, so each entry of the schedule is sent 2 times" in told["beat.several"]["summary"]
        assert "on web1: sudo systemctl disable --now celerybeat.service" in str(told["beat.several"]["evidence"])
        assert "which celeryd.service runs" in str(told["worker.twins"]["evidence"])
        before = root(two, "systemctl show -P MainPID celerybeat.service celery-worker@worker_low.service")
        inv(two, "remediate", "--yes")
        assert root(two, "systemctl show -P MainPID celerybeat.service celery-worker@worker_low.service") == before
        root(two, "systemctl stop celeryd.service celerybeat.service")
        assert codes(two) == ["unit.comes_back"] * 2
    finally:
        remove(two, "celeryd.service", "celerybeat.service")
    wait_until(lambda: not codes(two), "what is well to be so")
