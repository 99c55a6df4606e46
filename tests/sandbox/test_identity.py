"""Who is who: machines, processes, projects and users that are not what they are taken for."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import Done, World

LOCAL = "          ansible_connection: local\n"
AS_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


@pytest.mark.parametrize(
    "verb",
    [
        "remediate",
        "restart-workers",
        pytest.param("install-cron", marks=pytest.mark.thorough),
        pytest.param("install-units", marks=pytest.mark.thorough),
    ],
)
def test_a_machine_under_two_names_is_an_error_of_the_inventory(healthy: World, verb: str) -> None:
    name = healthy.inventory((LOCAL, f"{LOCAL}        twin:\n{LOCAL}"))
    before = {
        path: path.read_bytes() for path in (healthy.root / "root").rglob("*") if path.is_file()
    }
    refused = healthy.inv(verb, "--yes", "--inventory", name)
    assert (refused.code, "sandbox and twin are one machine" in refused.out + refused.err) == (
        5,
        True,
    ), refused
    assert {
        path: path.read_bytes() for path in (healthy.root / "root").rglob("*") if path.is_file()
    } == before
    findings = healthy.inv("diagnose", "--json", "--inventory", name).json["findings"]
    assert [f["subject"] for f in findings if f["code"] == "inventory.same_machine"] == [
        "sandbox, twin"
    ]


def test_a_process_that_a_stale_pid_names_outlives_a_restart(healthy: World) -> None:
    innocent = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    try:
        stop, status, pid = (
            "./stop_workers.sh {worker}",
            "./workers_status.sh {worker}",
            innocent.pid,
        )
        name = healthy.inventory(
            (stop, f"{stop}; [ {{worker}} != beat ] || kill {pid}"),
            (
                status,
                f"sh -c '[ $0 != beat ] || exec echo {pid}; ./workers_status.sh $0' {{worker}}",
            ),
        )
        done = healthy.inv("restart-workers", "--yes", "--inventory", name)
        assert done.code == 2, done.out + done.err
        assert (
            f"names pid {innocent.pid} (sleep), which is not beat of this application"
            in done.out + done.err
        )
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()
    assert healthy.inv("verify").code == 0


# --- whose records these are


BROKER = (
    "{{ lookup('file', inventory_dir ~ '/.sandbox/broker.url', errors='ignore') or"
    " undef(hint=not_up) }}"
)
RULES = "        celery_queue_rules:\n"
PARKED = (RULES, f"{RULES}          - {{reason: parked, queue: parked, task: '*'}}\n")
"""A queue without a consumer, and a rule that selects all its messages."""


def park(world: World) -> list[bytes]:
    """Let three messages wait there."""
    headers = {"task": "inventory.tasks.poll_printer", "id": "1", "timelimit": [None, None]}
    message = {
        "body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json", "headers": headers,
        "properties": {"delivery_tag": "1", "delivery_info": {"exchange": "", "routing_key": "parked"},
                       "body_encoding": "base64"},
    }  # fmt: skip
    with world.broker() as client:
        client.lpush("parked", *(json.dumps(message) for _ in range(3)))
        return list(client.lrange("parked", 0, -1))


@pytest.fixture
def cron(healthy: World) -> Iterator[Path]:
    """The cron file, edited, so that there is something to install."""
    assert healthy.inv("install-cron", "--yes").code == 0
    (path,) = (healthy.root / "root/etc/cron.d").iterdir()
    right = path.read_bytes()
    path.write_bytes(right + b"# edited\n")
    yield path
    path.write_bytes(right)


def test_a_run_is_not_undone_in_another_project_neither_messages_nor_files_nor_services(
    healthy: World, cron: Path
) -> None:
    edited, parked = cron.read_bytes(), park(healthy)
    stop = healthy.path / "lab/patient/stop_workers.sh"
    commands = {
        "PRINTER_INVENTORY_HOME": str(healthy.root / "app"),
        "PRINTER_INVENTORY_PYTHON": str(healthy.path / ".venv/bin/python"),
    }
    subprocess.run(
        [stop, "worker_daemon"],
        env={**os.environ, **commands},
        cwd=stop.parent,
        check=True,
        capture_output=True,
    )
    mine = "mine.yaml"
    shutil.copy(healthy.path / healthy.inventory(PARKED), healthy.path / mine)
    done = healthy.inv("remediate", "--yes", "--inventory", mine)
    assert done.code == 0, done.out
    assert re.search("changed=2 .*failed=0 .*\n.*changed=2 ", done.out), (
        "the messages and the canary"
    )

    def stands() -> tuple[bytes, list[bytes], str]:
        with healthy.broker() as client:
            status = healthy.inv("diagnose", "--json", "--inventory", mine).json
            return cron.read_bytes(), client.lrange("parked", 0, -1), json.dumps(status["findings"])

    after = stands()
    assert (after[0] != edited, after[1]) == (True, [])
    for other in (
        ("celery_app: printer_inventory", "celery_app: shop"),
        (BROKER, (healthy.root / "broker.url").read_text()[:-1] + "9"),
    ):
        name = healthy.inventory(PARKED, other)
        refused = healthy.inv("undo", "last", "--yes", "--inventory", name)
        assert (refused.code, "nothing was changed" in refused.err) == (5, True), (
            refused.out + refused.err
        )
        assert f"name its inventory: --inventory {healthy.path / mine}" in refused.err
        assert stands() == after
    undone = healthy.inv("undo", "last", "--yes", "--inventory", mine)
    assert undone.code == 0, undone.out + undone.err
    assert stands()[:2] == (edited, parked)
    with healthy.broker() as client:
        client.delete("parked")
    assert healthy.inv("remediate", "--yes").code == 0


@pytest.mark.parametrize("inventory", ["missing", "no YAML: [", "vault"])
def test_runs_are_listed_where_the_inventory_cannot_be_read(
    healthy: World, cron: Path, inventory: str
) -> None:
    usual = healthy.path / "home/.local/state/celery-runbooks"
    done = healthy.inv("install-cron", "--yes", "--state-dir", str(usual))
    assert done.code == 0, done.out + done.err
    broken = healthy.path / "broken.yaml"
    text = (healthy.path / "inventory.yaml").read_text()
    sealed = "{{ inventory_dir }}/.sandbox/state"
    vault = "!vault |\n      $ANSIBLE_VAULT;1.1;AES256\n      30303030\n"
    if inventory != "missing":
        broken.write_text(text.replace(f'"{sealed}"', vault) if inventory == "vault" else inventory)
    for where in ((), ("--state-dir", str(usual))):
        listed = healthy.inv("runs", "--json", "--inventory", str(broken), *where)
        assert listed.code == 0, listed.out + listed.err
        run = listed.json["runs"][-1]
        assert (run["application"], run["inventory"]) == (
            "printer_inventory",
            str(healthy.path / "inventory.yaml"),
        )
        assert bool(listed.json.get("warnings")) is not bool(where)
    broken.unlink(missing_ok=True)


# --- whose files these are


def modes(folder: Path) -> set[tuple[bool, str]]:
    return {
        (path.is_dir(), f"{path.stat().st_mode & 0o777:o}") for path in (folder, *folder.rglob("*"))
    }


@pytest.mark.parametrize("umask", [0, pytest.param(0o077, marks=pytest.mark.thorough)])
def test_all_that_is_written_here_is_for_its_user_alone_whatever_the_umask(
    healthy: World, cron: Path, tmp_path: Path, umask: int
) -> None:
    state = tmp_path / "made/state"
    name = healthy.inventory(PARKED)
    park(healthy)
    before = os.umask(umask)
    try:
        for verb in (
            ("monitor",), ("clean-queues", "--yes"), ("install-cron", "--yes"), ("run-task", "check-glpi"),
            ("undo", "last", "--yes"), ("archive.restore", "last", "--yes"), ("undo", "last", "--yes"),
        ):  # fmt: skip
            done = healthy.inv(*verb, "--inventory", name, "--state-dir", str(state))
            assert done.code in (0, 1), (verb, done.out + done.err)
    finally:
        os.umask(before)
    assert any(path.name.endswith(".messages.jsonl") for path in state.rglob("*"))
    assert any(path.name == "history.db" for path in state.rglob("*"))
    assert modes(state.parent) == {(True, "700"), (False, "600")}
    with healthy.broker() as client:
        client.delete("parked")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize(
    ("who", "how"),
    [
        pytest.param((), "theirs", id="root, theirs"),
        pytest.param((), "writable", id="root, writable", marks=pytest.mark.thorough),
        pytest.param(AS_USER, "theirs", id="user, theirs", marks=pytest.mark.thorough),
        pytest.param(AS_USER, "writable", id="user, writable"),
    ],
)
def test_what_someone_else_may_have_recorded_is_refused(
    healthy: World, cron: Path, tmp_path: Path, who: tuple[str, ...], how: str
) -> None:
    """In a user namespace root's files are the user's own, and this user has no rights of root's."""
    state = tmp_path / "state"

    def inv(*arguments: str) -> Done:
        command = [*who, *healthy.command(*arguments, "--state-dir", str(state))]
        done = subprocess.run(
            command,
            cwd=healthy.path,
            env=healthy.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    assert inv("install-cron", "--yes").code == 0
    assert inv("monitor").code == 0
    (journal,), (history,) = state.glob("runs/*/journal.jsonl"), state.glob("monitor/*/history.db")
    installed, expected = (
        cron.read_bytes(),
        ("belongs to user" if how == "theirs" else "is writable by others"),
    )
    for planted, verb in (
        (journal, ("undo", journal.parent.name, "--yes")), (journal.parent, ("undo", "last", "--yes")),
        (journal.parents[1], ("undo", "last", "--yes")), (state, ("runs",)),
        (history, ("monitor", "--history")), (history.parent, ("monitor", "--history")), (history.parent, ("monitor",)),
    ):  # fmt: skip
        was = planted.stat()
        planted.chmod(0o777) if how == "writable" else os.chown(planted, 12345, 12345)
        refused = inv(*verb)
        hidden = bool(who) and how == "theirs"  # this user cannot even look into the folder
        assert (refused.code != 0, hidden or expected in refused.err) == (
            verb != ("monitor",),
            True,
        ), (
            planted,
            verb,
            refused,
        )
        os.chown(planted, was.st_uid, was.st_gid)
        planted.chmod(was.st_mode)
    assert cron.read_bytes() == installed
    assert inv("undo", "last", "--yes").code == 0
