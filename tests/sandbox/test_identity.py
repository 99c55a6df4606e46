"""Who is who: a machine that the inventory names twice, and a process that is not the service it is taken for."""

import subprocess

import pytest

from tests.sandbox.conftest import World

LOCAL = "          ansible_connection: local\n"


@pytest.mark.parametrize("verb", ["remediate", "restart-workers", "install-cron", "install-units"])
def test_a_machine_under_two_names_is_an_error_of_the_inventory(healthy: World, verb: str) -> None:
    name = healthy.inventory((LOCAL, f"{LOCAL}        twin:\n{LOCAL}"))
    before = {path: path.read_bytes() for path in (healthy.root / "root").rglob("*") if path.is_file()}
    refused = healthy.inv(verb, "--yes", "--inventory", name)
    assert (refused.code, "sandbox and twin are one machine" in refused.out + refused.err) == (5, True), refused
    assert {path: path.read_bytes() for path in (healthy.root / "root").rglob("*") if path.is_file()} == before
    findings = healthy.inv("diagnose", "--json", "--inventory", name).json["findings"]
    assert [f["subject"] for f in findings if f["code"] == "inventory.same_machine"] == ["sandbox, twin"]


def test_a_process_that_a_stale_pid_names_outlives_a_restart(healthy: World) -> None:
    innocent = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    try:
        stop, status, pid = "./stop_workers.sh {worker}", "./workers_status.sh {worker}", innocent.pid
        name = healthy.inventory(
            (stop, f"{stop}; [ {{worker}} != beat ] || kill {pid}"),
            (status, f"sh -c '[ $0 != beat ] || exec echo {pid}; ./workers_status.sh $0' {{worker}}"),
        )
        done = healthy.inv("restart-workers", "--yes", "--inventory", name)
        assert done.code == 2, done.out + done.err
        assert f"names pid {innocent.pid} (sleep), which is not beat of this application" in done.out + done.err
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()
    assert healthy.inv("verify").code == 0
