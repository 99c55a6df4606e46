"""`inv fix-imports` on real hosts over SSH: the file is the application's user's, and stays so."""

import pytest

from tests.fleet.conftest import FleetWorld

CELERY_PY = "/srv/printer_inventory/printer_inventory/celery.py"
WEB = ("web1", "web2")
LINE = "app.autodiscover_tasks(['integrations'], related_name='tasks')"


def each(world: FleetWorld, command: str) -> list[str]:
    done = [world.ssh(f"root@{host}", command) for host in WEB]
    assert all(one.code == 0 for one in done), [one.err for one in done]
    return [one.out.strip() for one in done]


@pytest.mark.thorough
def test_the_import_is_written_on_all_hosts_proved_and_undone(world: FleetWorld) -> None:
    up = world.inv("fleet", "--hosts", "3", timeout_s=300)
    assert up.code == 0, up.err
    inventory = ("--inventory", str(world.fleet / "inventory.yaml"))
    only_web = (*inventory, "--limit", ",".join(WEB))
    healed = world.inv("remediate", "--yes", *inventory, timeout_s=300)
    assert healed.code in (0, 1), healed.out + healed.err
    schedule = world.inv("schedule", "--json", *inventory).json["schedule"]
    (check,) = [line for line in schedule if line["entry"] == "glpi-check-all-devices-daily"]
    assert (check["schedule"], check["queue"], check["priority"]) == (
        "0 2 * * *",
        "high_priority",
        5,
    )
    assert check["consumers"]
    assert (check["broken"], check["unknown"]) == ([], [])
    ran = world.inv(
        "run-task", "--entry", "glpi-check-all-devices-daily", *inventory, timeout_s=120
    )
    assert (ran.code, "SUCCESS" in ran.out) == (0, True), ran.out + ran.err
    each(world, f"sed -i '/^@import_modules.connect/,$d' {CELERY_PY} && chown deploy:deploy {CELERY_PY} && "
                f"chmod 640 {CELERY_PY} && systemctl restart 'celery-worker*' && sha256sum {CELERY_PY}")  # fmt: skip
    before = each(world, f"sha256sum {CELERY_PY}")

    found = [one for one in world.inv("diagnose", "--json", *only_web).json["findings"]
             if one["code"] == "task.never_imported"]  # fmt: skip
    assert sorted(one["subject"] for one in found) == list(WEB)
    dry = world.inv("fix-imports", "--dry-run", *only_web)
    assert dry.code == 0, dry.out + dry.err
    assert dry.out.count(f"+{LINE}") == len(WEB)
    assert each(world, f"sha256sum {CELERY_PY}") == before

    made = world.inv("fix-imports", "--yes", *only_web, timeout_s=300)
    assert made.code == 0, made.out + made.err
    assert (
        each(world, f"tail -n 1 {CELERY_PY}; stat -c '%U %G %a' {CELERY_PY}")
        == [f"{LINE}\ndeploy deploy 640"] * 2
    )
    verified = world.inv("diagnose", "--json", *only_web)
    assert not [one for one in verified.json["findings"] if one["code"].startswith("task.")], (
        verified.out
    )

    runs = [
        run["run"]
        for run in world.inv("runs", "--json", *inventory).json["runs"]
        if run["verb"] == "fix-imports"
    ]
    back = world.inv("undo", runs[-1], "--yes", *inventory)
    assert back.code == 0, back.out + back.err
    assert each(world, f"sha256sum {CELERY_PY}") == before
    assert each(world, f"stat -c '%U %G %a' {CELERY_PY}") == ["deploy deploy 640"] * 2
