"""A file counts only when the host's own judge finds nothing wrong in it; else the old one stays as
it was.
"""

import pytest

from tests.fleet.conftest import FleetWorld

CRON = "/etc/cron.d/celery-printer_inventory"
UNIT = "/etc/systemd/system/celery-worker@worker_low.service"
LOGROTATE = "/etc/logrotate.d/celery-printer_inventory"
STATE = (
    "cd /etc && for path in $(ls -Ad systemd/system/*celery* systemd/system/.*celery* cron.d/*"
    " cron.d/.*celery* logrotate.d/* logrotate.d/.*celery* 2>/dev/null); do stat -c '%n %a %U %Y"
    " %i' $path; sha256sum <$path; done"
)


def changed(fleet: FleetWorld, *replacements: tuple[str, str]) -> str:
    """A changed copy of the fleet's inventory beside it."""
    text = (fleet.fleet / "inventory.yaml").read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    (fleet.fleet / "judged.yaml").write_text(text)
    return ".fleet/judged.yaml"


def own_template(fleet: FleetWorld, name: str, old: str, new: str) -> tuple[str, str]:
    """A changed copy of a shipped template in a directory of the operator's own; returns how the
    inventory names it.
    """
    directory = fleet.fleet / "templates"
    text = (fleet.path / "templates" / name).read_text()
    assert old in text
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    for left in directory.rglob("*.j2"):
        left.unlink()
    (directory / name).write_text(text.replace(old, new))
    return (
        "runbooks_state_directory",
        f"runbooks_templates_directory: {directory}\n    runbooks_state_directory",
    )


def refused(fleet: FleetWorld, verb: str, host: str, inventory: str, *expected: str) -> None:
    before = fleet.ssh(host, STATE).out
    done = fleet.inv(verb, "--yes", "--json", "--limit", host, "--inventory", inventory)
    assert done.code == 2, done.out + done.err
    said = "\n".join(
        change["result"] for change in done.json["changes"] if change["outcome"] == "failed"
    )
    for text in expected:
        assert text in said
    assert fleet.ssh(host, STATE).out == before, "nothing was written, and nothing left behind"


def test_a_cron_file_that_names_an_unknown_user_is_refused(fleet: FleetWorld) -> None:
    assert fleet.ssh("web1", f"test -e {CRON}").code == 0
    entry = 'celery_cron: [{schedule: "1 2 * * *", user: nobodyhere, command: "true"}]'
    inventory = changed(
        fleet,
        ("        celery_service_manager", f"        {entry}\n        celery_service_manager"),
    )
    refused(fleet, "install-cron", "web1", inventory, "the user nobodyhere does not exist")


def test_a_unit_with_a_key_that_systemd_does_not_know_is_refused(fleet: FleetWorld) -> None:
    assert fleet.ssh("web2", f"test -e {UNIT}").code == 0
    own = own_template(fleet, "systemd/celery-worker@.service.j2", "\nRestart=", "\nRestrt=")
    refused(fleet, "install-units", "web2", changed(fleet, own), "Restrt")


def test_of_several_units_only_the_one_with_the_mistake_is_refused_and_those_before_it_stand(
    fleet: FleetWorld,
) -> None:
    contents = "sha256sum /etc/systemd/system/*celery*"
    before = fleet.ssh("web2", contents).out
    mistake = '\n# again\n{{ "Restrt" if worker.name == "worker_low" else "Restart" }}='
    inventory = changed(
        fleet, own_template(fleet, "systemd/celery-worker@.service.j2", "\nRestart=", mistake)
    )
    done = fleet.inv(
        "install-units", "--yes", "--json", "--limit", "web2", "--inventory", inventory
    )
    assert done.code == 2, done.out + done.err
    units = [change for change in done.json["changes"] if change["step"] == "units"]
    assert [(change["summary"].partition("@")[2], change["outcome"]) for change in units[:2]] == [
        ("worker_high.service", "changed"), ("worker_low.service", "failed")
    ]  # fmt: skip
    assert "celery-worker@worker_low.service" in units[1]["result"]
    assert "Restrt" in units[1]["result"]
    assert "worker_high" not in units[1]["result"]
    undone = fleet.inv("undo", "last", "--yes", "--inventory", inventory)
    assert undone.code == 0, undone.out + undone.err
    assert fleet.ssh("web2", contents).out == before


def test_a_unit_whose_program_is_not_there_is_refused(fleet: FleetWorld) -> None:
    inventory = changed(
        fleet, ("celery_python: /srv/venv/bin/python", "celery_python: /srv/none/bin/python")
    )
    refused(fleet, "install-units", "web2", inventory, "/srv/none/bin/python", "No such file")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("daily", "dayly", "unknown option 'dayly'"),
        ("settings.group or settings.user", "'nogroup1'", "unknown group"),
    ],
)
def test_a_logrotate_file_with_a_mistake_is_refused(
    fleet: FleetWorld, old: str, new: str, expected: str
) -> None:
    own = own_template(fleet, "logrotate/celery.j2", old, new)
    logs = "        celery_logs: [/var/log/printers.log]\n        celery_service_manager"
    inventory = changed(fleet, own, ("        celery_service_manager", logs))
    assert fleet.ssh("web2", f"test -e {LOGROTATE}").code == 1
    refused(fleet, "install-cron", "web2", inventory, expected)
