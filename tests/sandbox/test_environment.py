"""Environment files that start scripts source, on real workers."""

import re

from tests.sandbox.conftest import World
from tests.sandbox.test_silent import control


def words(text: str) -> str:
    return " ".join(text.split())


def pids(world: World) -> dict[str, str]:
    folder = world.root / "app/run"
    return {path.name: path.read_text() for path in sorted(folder.glob("*.pid"))}


def test_a_start_script_that_does_not_export_what_it_reads_is_reported_and_restarts_nothing(
    healthy: World,
) -> None:
    script = healthy.path / "lab/patient/workers_common.sh"
    right = script.read_text()
    control(healthy, "stop_workers.sh")
    script.write_text(right.replace("    set +a\n", "    set +a\n    export -n GLPI_TIMEOUT_S\n"))
    try:
        control(healthy, "start_workers.sh")
        before = pids(healthy)
        looked = healthy.inv("diagnose")
        assert "environment.not_in_effect" in looked.out, looked.out
        assert "worker_low does not have the GLPI_TIMEOUT_S of" in words(looked.out)
        assert "GLPI_TIMEOUT_S: not set" in looked.out
        healthy.inv("remediate", "--yes")
        assert pids(healthy) == before
    finally:
        script.write_text(right)
        control(healthy, "stop_workers.sh")
        control(healthy, "start_workers.sh")
    assert healthy.inv("diagnose").code == 0


def test_a_file_that_the_shell_cannot_read_is_reported_by_line_and_column_and_nothing_is_started_on_it(
    healthy: World,
) -> None:
    right = healthy.env_file.read_bytes()
    control(healthy, "stop_workers.sh")
    healthy.env_file.write_bytes(right + b"NOTE='it is\n")
    try:
        before = pids(healthy)
        done = healthy.inv("remediate", "--yes")
        assert done.code == 2, done.out + done.err
        line = right.count(b"\n") + 1
        expected = (
            f"{healthy.env_file}, line {line}, column 6: this quote is never closed, which is an"
            " error in a shell"
        )
        assert expected in words(done.out + done.err)
        assert pids(healthy) == before
        assert healthy.env_file.read_bytes() == right + b"NOTE='it is\n"
    finally:
        healthy.env_file.write_bytes(right)
    healed = healthy.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err


def test_what_only_the_shell_knows_is_neither_judged_nor_changed(healthy: World) -> None:
    right = healthy.env_file.read_bytes()
    changed = re.sub(rb"(?m)^GLPI_TIMEOUT_S=.*$", b"GLPI_TIMEOUT_S=$(echo 30)", right)
    assert changed != right
    healthy.env_file.write_bytes(changed)
    try:
        looked = healthy.inv("diagnose")
        assert "whether GLPI_TIMEOUT_S in" in words(looked.out), looked.out
        healthy.inv("remediate", "--yes")
        assert healthy.env_file.read_bytes() == changed
    finally:
        healthy.env_file.write_bytes(right)


def test_a_file_is_judged_and_set_by_the_rules_that_the_inventory_names(healthy: World) -> None:
    right = healthy.env_file.read_bytes()
    changed = re.sub(rb"(?m)^GLPI_TIMEOUT_S=.*$", b"GLPI_TIMEOUT_S=30 # seconds", right)
    healthy.env_file.write_bytes(changed)
    docker = healthy.inventory(
        ("        celery_env:", "        celery_env_file_format: docker\n        celery_env:")
    )
    try:
        assert "environment.differs" not in healthy.inv("diagnose").out
        looked = healthy.inv("diagnose", "--inventory", docker)
        assert "GLPI_TIMEOUT_S: '30 # seconds', the inventory says '30'" in words(looked.out), (
            looked.out
        )
        done = healthy.inv("remediate", "--yes", "--json", "--inventory", docker)
        assert done.code == 0, done.out + done.err
        assert healthy.env_file.read_bytes() == changed.replace(b"30 # seconds", b"30")
        undone = healthy.inv("undo", done.json["run"], "--yes", "--inventory", docker)
        assert undone.code == 0, undone.out + undone.err
        assert healthy.env_file.read_bytes() == changed
    finally:
        healthy.env_file.write_bytes(right)
