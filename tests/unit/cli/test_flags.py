"""Flags that cannot mean anything are refused before anything is checked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_package import INVENTORY

CHECKOUT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("monitor --since 2h", "--since has no effect here\n→ --every needs --listen"),
        ("monitor --history --every 2h", "--every has no effect here"),
        (
            "monitor --queue high --every 2h --alerts",
            "--every and --queue have no effect here",
        ),
        (
            "diagnose --ask-become-pass",
            "--ask-become-pass: this is not a terminal\n→ set ansible_become_password",
        ),
        ("diagnose -K", "--ask-become-pass: this is not a terminal"),
    ],
)
def test_a_flag_that_would_be_passed_over_in_silence_is_refused(
    line: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tasks.py"), *line.split()], cwd=tmp_path,
        capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (5, "")
    assert expected in done.stderr


@pytest.mark.parametrize(
    "verb", ["diagnose", "remediate --yes", "hosts", "monitor", "archive.list", "tail-logs"]
)
def test_no_inventory_is_taken_but_one_that_is_named_or_stands_here_or_above(
    verb: str, tmp_path: Path
) -> None:
    def inv(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(CHECKOUT / "tasks.py"), *words]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    below = tmp_path / "fleets/web"
    below.mkdir(parents=True)
    refused = inv(below, *verb.split())
    assert (refused.returncode, refused.stdout) == (5, "")
    assert (
        refused.stderr == f"no inventory: there is no inventory.yaml in {below} or above it\n"
        "→ name yours with --inventory, or create an example with `inv init`; without an inventory"
        " run `inv diagnose -A PROJECT` in the application's folder, or check only the broker:"
        " `inv diagnose --broker redis://HOST:PORT/DB`\n"
    )
    (tmp_path / "fleets/inventory.yaml").write_text(INVENTORY)
    above = inv(below, "hosts")
    assert (above.returncode, above.stdout.splitlines()[0]) == (
        0,
        f"shop, {tmp_path}/fleets/inventory.yaml",
    )
    named = inv(below.parent, "hosts", "--inventory", "../fleets/inventory.yaml")
    assert (named.returncode, named.stdout.splitlines()[0]) == (0, "shop, inventory.yaml")


def test_an_inventory_here_comes_before_what_ansible_would_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "fleets/web"
    below.mkdir(parents=True)
    (tmp_path / "ansibles.yaml").write_text(INVENTORY)
    monkeypatch.setenv("ANSIBLE_INVENTORY", str(tmp_path / "ansibles.yaml"))

    def first_line() -> str:
        command = [sys.executable, str(CHECKOUT / "tasks.py"), "hosts"]
        done = subprocess.run(command, cwd=below, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0]

    assert first_line() == f"shop, {tmp_path}/ansibles.yaml"
    (tmp_path / "fleets/inventory.yaml").write_text(INVENTORY)
    assert first_line() == f"shop, {tmp_path}/fleets/inventory.yaml"


def test_a_fleet_without_hosts_is_adopted_by_its_broker_alone(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(
        "all: {hosts: {here: }, vars: {celery_app: shop, celery_broker_url: 'redis://127.0.0.1:1/0',"
        " celery_nodes: ['w@*'], celery_queues: [work]}}"
    )
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tasks.py"), "adopt"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == (
        "no host of the inventory has the application, so no host can be checked\n"
        "→ name its broker: `inv adopt --broker URL`\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("one.invalid,two.invalid", 4, "one.invalid:22: "),
        ("--inventory ways.yaml web1", 5, "nothing of the application was found on web1"),
        ("--inventory ways.yaml web2", 4, "two.invalid:22: "),
    ],
)
def test_hosts_that_are_named_are_reached_over_ssh_or_as_their_inventory_says(
    words: str, code: int, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "ways.yaml").write_text(
        "all: {hosts: {web1: {ansible_connection: local}, web2: {ansible_host: two.invalid}}}"
    )
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tasks.py"), "diagnose", "-A", "on_no_host", *words.split()],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("flag", "variable", "folder"),
    [
        (("--state-dir", "{0}/named"), "runbooks_state_directory: {0}/written", "named"),
        ((), "runbooks_state_directory: {0}/written", "written"),
        ((), "shop: 1", "state/celery-runbooks"),
    ],
)
def test_records_are_where_the_flag_or_the_inventory_says_or_in_the_users_state_folder(
    flag: tuple[str, ...], variable: str, folder: str, tmp_path: Path
) -> None:
    variables = f"vars: {{{variable.format(tmp_path)}, "
    (tmp_path / "inventory.yaml").write_text(INVENTORY.replace("vars: {", variables))
    words = [word.format(tmp_path) for word in flag]
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tasks.py"), "runs", *words], cwd=tmp_path,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == f"records in {tmp_path / folder}"


def test_a_certificate_that_is_not_checked_is_reported(tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY.replace("redis://", "rediss://"))
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tasks.py"), "diagnose", "--json"], cwd=tmp_path,
        capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip
    assert (
        "celery_broker_url: the server's certificate is not checked, which is Celery's default for"
        " rediss:// without options" in done.stderr
    )
    assert "ssl_cert_reqs=required" in json.loads(done.stdout)["warnings"][0]["advice"]
