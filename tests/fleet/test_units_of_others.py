"""Units of others on real hosts: what they do to their processes, and what a plain remediation
leaves alone.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet.conftest import FleetWorld, two_hosts, wait_until
from tests.fleet.test_as_they_are import UNITS, inv, root
from tests.fleet.test_take_over import BY_HAND, CELERYBEAT, CELERYD, CONF, install, put

LOW, DAEMON = "celery-worker@worker_low.service", "celery-worker@worker_daemon.service"


@pytest.fixture(scope="module")
def two(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Two healthy hosts; tests leave them so."""
    with two_hosts(tmp_path_factory.mktemp("units")) as world:
        put(world, "/etc/conf.d/celery", CONF)
        yield world


def found(world: FleetWorld) -> list[dict[str, Any]]:
    return [
        one
        for one in inv(world, "diagnose", "--json").json["findings"]
        if one["severity"] != "info"
    ]


def codes(world: FleetWorld) -> list[str]:
    return [one["code"] for one in found(world)]


def remove(world: FleetWorld, *units: str, host: str = "web1") -> None:
    for unit in units:
        root(world, f"systemctl disable --now {unit}; rm -rf {UNITS}/{unit} {UNITS}/{unit}.d", host)
    root(world, "systemctl daemon-reload; systemctl reset-failed", host)


def main_pid(world: FleetWorld, unit: str, host: str = "web1") -> str:
    return root(world, f"systemctl show -P MainPID {unit}", host).strip()


def test_a_drop_in_that_lets_a_stop_leave_processes_is_reported_with_its_line(
    two: FleetWorld,
) -> None:
    path = f"{UNITS}/{LOW}.d/kill.conf"
    before = main_pid(two, LOW)
    put(two, path, "[Service]\nKillMode=process\n")
    root(two, "systemctl daemon-reload")
    try:
        finding = next(one for one in found(two) if one["code"] == "unit.kill_mode")
        assert finding["subject"] == "worker_low on web1"
        assert finding["evidence"][0] == f"{path}:2: KillMode=process"
        assert finding["caused_by"] == [{"code": "unit.drop_in", "subject": "worker_low on web1"}]
        drop_in = next(
            one
            for one in inv(two, "diagnose", "--json").json["findings"]
            if one["code"] == "unit.drop_in"
        )
        assert drop_in["evidence"] == ["KillMode=process"]
        assert main_pid(two, LOW) == before
    finally:
        root(two, f"rm -r {UNITS}/{LOW}.d; systemctl daemon-reload")
    wait_until(lambda: not codes(two), "what is well to be so")


def test_a_unit_that_leaves_its_beat_at_a_restart_is_the_cause_and_is_taken_over_with_what_it_has_left(
    two: FleetWorld,
) -> None:
    """A worker with -B beside beat, whose unit has KillMode=process."""
    text = BY_HAND.replace(
        "high_priority,low_priority -c 2", "daemon -c 1 -B -s /tmp/by-hand"
    ).replace("Restart=always", "Restart=always\nKillMode=process")
    ours = f"{DAEMON} celery-beat"
    root(two, f"systemctl disable --now {DAEMON}", "broker")
    install(two, "printers.service", text, host="broker")
    try:
        wait_until(lambda: "beat.several" in codes(two), "its beat")
        root(two, f"kill -9 {main_pid(two, 'printers.service', 'broker')}", "broker")
        wait_until(lambda: "3 beats" in str(found(two)), "the beat of before, and the next")
        first, *more = found(two)
        assert (first["code"], first["subject"]) == ("unit.kill_mode", "printers.service on broker")
        assert "1 process is left of earlier starts" in first["summary"]
        assert any(line.startswith(f"{UNITS}/printers.service:") for line in first["evidence"])
        assert {"beat.several"} <= {one["code"] for one in more}
        show = (
            f"systemctl show -P MainPID printers.service {ours}; systemctl is-enabled"
            f" printers.service {ours}; :"
        )
        before = root(two, show, "broker")
        inv(two, "remediate", "--yes")
        assert root(two, show, "broker") == before
        assert "3 beats" in str(found(two)), "nothing that no plan names was ended"

        taken = inv(two, "remediate", "--take-over", "--yes")
        assert taken.code == 0, taken.out + taken.err
        assert inv(two, "verify").code == 0
        assert found(two) == []
        is_active = "systemctl is-active printers.service celery-beat " + DAEMON
        assert root(two, f"{is_active}; :", "broker").split() == ["inactive", "active", "active"]
        undone = inv(two, "undo", "last", "--yes")
        assert undone.code == 0, undone.out + undone.err
        assert root(two, f"{is_active}; :", "broker").split() == ["active", "active", "inactive"]
        assert root(two, show, "broker").split()[1:] == before.split()[1:], "except for its pid"
        wait_until(lambda: "2 beats" in str(found(two)), "theirs and ours, and nothing of before")
    finally:
        root(two, "systemctl kill --kill-whom=all -s KILL printers.service; :", "broker")
        remove(two, "printers.service", host="broker")
        root(two, f"systemctl enable --now {DAEMON}", "broker")
    wait_until(lambda: not codes(two), "what is well to be so")


def test_celerys_documented_unit_and_two_beats_on_two_hosts(two: FleetWorld) -> None:
    install(two, "celeryd.service", CELERYD)
    install(two, "celerybeat.service", CELERYBEAT)
    try:
        wait_until(lambda: {"beat.several", "worker.twins"} <= set(codes(two)), "both to run")
        by_code = {one["code"]: one for one in found(two)}
        assert (
            "2 beats run, so each entry of the schedule is sent 2 times"
            in by_code["beat.several"]["summary"]
        )
        assert "on web1: sudo systemctl disable --now celerybeat.service" in str(
            by_code["beat.several"]["evidence"]
        )
        assert "which celeryd.service runs" in str(by_code["worker.twins"]["evidence"])
        before = root(
            two, "systemctl show -P MainPID celerybeat.service celery-worker@worker_low.service"
        )
        inv(two, "remediate", "--yes")
        assert (
            root(
                two, "systemctl show -P MainPID celerybeat.service celery-worker@worker_low.service"
            )
            == before
        )
        root(two, "systemctl stop celeryd.service celerybeat.service")
        assert codes(two) == ["unit.comes_back"] * 2
    finally:
        remove(two, "celeryd.service", "celerybeat.service")
    wait_until(lambda: not codes(two), "what is well to be so")
