"""Flags that cannot mean anything are refused before anything is looked at."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_package import INVENTORY

CHECKOUT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("monitor --since 2h", "--since would change nothing here\n→ --every goes with --listen"),
        ("monitor --history --every 2h", "--every would change nothing here"),
        ("monitor --queue high --every 2h --alerts", "--every and --queue would change nothing here"),
        ("diagnose --ask-become-pass", "--ask-become-pass: this is not a terminal\n→ set ansible_become_password"),
    ],
)
def test_a_flag_that_would_be_passed_over_in_silence_is_refused(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "tasks.py"), *line.split()], cwd=tmp_path,
        capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (5, "")
    assert told in done.stderr
