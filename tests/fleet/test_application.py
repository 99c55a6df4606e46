"""The application's own code on real hosts: as whom it is run by a look, and what that leaves
behind.
"""

import pytest

from tests.fleet.conftest import FleetWorld

APP = "/srv/printer_inventory"
ENV_FILE = "/etc/printer_inventory.env"
LOADED = "/tmp/loaded-as"


SYSTEMD = "celery_service_manager: systemd"
COMMANDS = """celery_service_manager: commands
        celery_commands: {start: "false", stop: "false", status: "exit 3"}"""


@pytest.mark.parametrize("managed", ["systemd", "commands"])
def test_a_look_runs_the_application_as_a_worker_does_and_writes_nothing_into_it(
    fleet: FleetWorld, managed: str
) -> None:
    inventory = fleet.fleet / "managed.yaml"
    text = (fleet.fleet / "inventory.yaml").read_text()
    assert SYSTEMD in text
    inventory.write_text(text.replace(SYSTEMD, COMMANDS) if managed == "commands" else text)
    settings = f"{APP}/printer_inventory/settings.py"
    tell = (
        f"import os\nwith open('{LOADED}', 'a') as log: print(os.getuid(), os.environ['HOME'],"
        " file=log)\n"
    )
    only_roots = f"chmod 600 {ENV_FILE}"  # as may be, where systemd alone reads it
    before = fleet.ssh(
        "root@web1", f"cp -p {settings} {settings}.kept && cat >> {settings} && {only_roots}", tell
    )
    assert before.code == 0, before.err
    try:
        ours = f"find {APP} -newer {settings}.kept -newer {settings} | sort"
        listed = fleet.ssh("root@web1", ours).out
        found = fleet.inv("diagnose", "--inventory", str(inventory), "--limit", "web1", "--json")
        assert found.code == 1, found.out + found.err
        assert "task.import_fails" in {finding["code"] for finding in found.json["findings"]}
        loaded = set(fleet.ssh("root@web1", f"cat {LOADED}").out.splitlines())
        assert loaded == {fleet.ssh("root@web1", "echo $(id -u deploy) ~deploy").out.strip()}
        assert fleet.ssh("root@web1", ours).out == listed
    finally:
        fleet.ssh(
            "root@web1", f"mv {settings}.kept {settings}; chmod 640 {ENV_FILE}; rm -f {LOADED}"
        )


TASKS = f"{APP}/inventory/tasks.py"
NEWER = """
import kombu
kombu.__version__ = "0.9"

@shared_task
def only_here(): ...
"""


def test_two_hosts_with_different_code_are_reported_with_both_sides(fleet: FleetWorld) -> None:
    before = fleet.ssh("root@web2", f"cp -p {TASKS} {TASKS}.kept && cat >> {TASKS}", NEWER)
    assert before.code == 0, before.err
    try:
        inventory = ("--inventory", str(fleet.fleet / "inventory.yaml"), "--limit", "web1,web2")
        found = {
            one["code"]: one for one in fleet.inv("diagnose", "--json", *inventory).json["findings"]
        }
    finally:
        fleet.ssh("root@web2", f"mv {TASKS}.kept {TASKS}")
    tasks, versions = found["application.tasks_differ"], found["application.versions_differ"]
    assert tasks["subject"] == versions["subject"] == "web1, web2"
    assert "inventory.tasks.only_here: missing on web1; registered on web2" in tasks["evidence"]
    assert any(
        line.startswith("kombu: ") and line.endswith("on web1; 0.9 on web2")
        for line in versions["evidence"]
    )
    assert "deploy the same code and settings to all of them" in tasks["summary"]
