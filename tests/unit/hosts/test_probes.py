"""Probes, run on this machine: expected outcomes, wrong ones, and one that does not end."""

import getpass
from pathlib import Path
from typing import Any

import pytest

from runbooks.core.model import ProbeResult
from runbooks.core.settings import Probe
from runbooks.hosts.probes import ask_probe, parse_probe
from runbooks.hosts.script import run_fragments
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host


def outcome(directory: Path, command: str, **changes: Any) -> ProbeResult:
    probe = Probe(name="p", command=command, **changes)
    fragments = {"p": ask_probe(make_host(directory=str(directory)), probe)}
    return parse_probe(probe, run_fragments(LocalTransport(), fragments, timeout_s=30)["p"])


def test_a_probe_runs_in_the_applications_directory_and_both_its_streams_are_read(
    tmp_path: Path,
) -> None:
    assert outcome(tmp_path, "pwd; echo oops >&2") == ProbeResult("", f"{tmp_path}\noops")


@pytest.mark.parametrize(
    ("command", "expected", "fault"),
    [
        ("exit 3", {}, "exited with 3, not 0"),
        ("exit 3", {"exit_code": 3}, ""),
        ("exit 124", {"exit_code": 124}, ""),
        (
            "echo 'errors: 2'",
            {"output": "^errors: 0$"},
            "printed nothing that matches '^errors: 0$'",
        ),
        ("echo found; echo 'errors: 0'", {"output": "^errors: 0$"}, ""),
        ("sleep 60", {"timeout": 0.2}, "did not end within 0 s"),
        ("no-such-command", {}, "exited with 127, not 0"),
        ("it's broken", {}, "exited with 2, not 0"),
    ],
)
def test_what_differs_from_what_is_expected_is_reported(
    tmp_path: Path, command: str, expected: dict[str, Any], fault: str
) -> None:
    assert outcome(tmp_path, command, **expected).fault == fault


def test_a_probe_of_the_user_who_asks_needs_no_sudo(tmp_path: Path) -> None:
    for user in (getpass.getuser(), None):
        assert outcome(tmp_path, "id -un", user=user).output == getpass.getuser()


def test_a_probe_of_a_user_who_does_not_exist_fails_with_what_was_said(tmp_path: Path) -> None:
    result = outcome(tmp_path, "id -un", user="nobody-here")
    assert result.fault.startswith("exited ")
    assert "nobody-here" in result.output


def test_a_directory_that_is_not_there_is_reported(tmp_path: Path) -> None:
    result = outcome(tmp_path / "gone", "true")
    assert result.fault == "exited with 126, not 0"
    assert "gone" in result.output
