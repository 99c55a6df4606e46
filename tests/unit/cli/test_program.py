"""A command line that cannot be parsed is told as any other bad input, and nothing is run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]


def inv(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(CHECKOUT / "tasks.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("diagnos", "there is no verb 'diagnos'; did you mean 'diagnose'?\n→ see: inv --list"),
        ("--help remediat", "there is no verb 'remediat'; did you mean 'remediate'?"),
        ("archive show", "there is no verb 'archive'; did you mean 'archive.show'?"),
        ("diagnose web1", "diagnose takes no 'web1', and there is no verb 'web1'\n→ see: inv --help diagnose"),
        ("diagnose --limt web1", "diagnose has no flag '--limt'; did you mean '--limit'?\n→ see: inv --help diagnose"),
        ("--frobnicate", "inv has no flag '--frobnicate'\n→ see: inv --list"),
        ("undo --dryrun last", "undo has no flag '--dryrun'; did you mean '--dry-run'?"),
        ("show -x", "show has no flag '-x'"),
        ("undo", "did not receive required positional arguments: 'run'\n→ see: inv --help undo"),
        ("diagnose --limit", "--limit needed value"),
        ("clean-queues --dry-run --queue", "--queue needed value"),
        ("clean-queues --task --queue low --yes", "--task needed value"),
        ("clean-queues --task a --task --queue low --yes", "--task needed value"),
        ("diagnose --limit many --forks many", "--forks takes a number, and 'many' is none"),
        ("remediate --max-fail=", "--max-fail takes a number, and '' is none"),
        ("-T x hosts", "-T takes a number, and 'x' is none"),
        ("-Tx hosts", "a flag takes a number, and 'x' is none"),
    ],
)
def test_what_cannot_be_parsed_is_told_with_what_was_meant(line: str, told: str) -> None:
    done = inv(*line.split())
    assert (done.returncode, done.stdout) == (5, "")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_that_asks_for_json_gets_it_also_of_a_mistyped_flag() -> None:
    done = inv("undo", "last", "--json", "--dryrun")
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (5, 5)


@pytest.mark.parametrize("line", ["remediate --yes --dry", "--dry remediate --yes", "-R restart-workers --yes"])
def test_the_dry_flag_of_invoke_itself_is_not_taken_for_a_dry_run(line: str) -> None:
    done = inv(*line.split())
    assert done.returncode == 5
    assert "did you mean '--dry-run'?" in done.stderr


@pytest.mark.parametrize("line", ["undo --help", "run-task -h", "--help archive.restore"])
def test_help_is_shown_also_for_a_verb_that_takes_a_word(line: str) -> None:
    done = inv(*line.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert "--state-dir=STRING" in done.stdout


@pytest.mark.parametrize("line", ["show x --state-dir {0}", "show", "--frobnicate"])
def test_the_installed_command_suggests_itself(line: str, tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv[0] = '/usr/local/bin/celery-runbooks'; from runbooks.cli.program import main; main()"
    )
    command = [sys.executable, "-c", program, *line.format(tmp_path).split()]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "celery-runbooks " in done.stderr
    assert "inv " not in done.stderr


def test_the_way_in_of_a_checkout_suggests_itself_as_it_was_called(tmp_path: Path) -> None:
    done = subprocess.run(
        ["../inv", "show", "x", "--state-dir", tmp_path],
        cwd=CHECKOUT / "docs", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert f"see `../inv runs --state-dir {tmp_path}` for the runs there are" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_has_no_letters_for_is_shown_as_far_as_it_goes(encoding: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command: list[bytes | str | Path] = [sys.executable, CHECKOUT / "tasks.py", "show", b"\xff\xe2"]
    done = subprocess.run([*command, "--state-dir", tmp_path / "→ä"], env=environment, capture_output=True, check=False)
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr
    listed = subprocess.run(
        [sys.executable, CHECKOUT / "tasks.py", "runs", "--state-dir", tmp_path / "→ä"],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert str(tmp_path).encode() in listed.stdout


def test_an_interrupt_before_a_verb_begins_is_no_finding() -> None:
    """Invoke would end with 1, which says that something was found."""
    program = (
        "import os, signal; from runbooks.cli.program import RunbooksProgram\n"
        "class Interrupted(RunbooksProgram):\n"
        "    def parse_collection(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "Interrupted(name='inv').run(['inv', 'hosts'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def bash(line: str) -> "subprocess.CompletedProcess[str]":
    command = f"'{sys.executable}' '{CHECKOUT}/tasks.py' {line}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


ASKED = ["--list", "--help", "undo --help", "--version", "--print-completion-script bash"]


@pytest.mark.parametrize("asked", ASKED)
def test_a_reader_of_help_that_goes_away_does_not_trouble_it(asked: str) -> None:
    done = bash(f"{asked} | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("asked", ASKED)
def test_help_that_cannot_be_written_is_no_success(asked: str) -> None:
    done = bash(f"{asked} >/dev/full")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the output could not be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
