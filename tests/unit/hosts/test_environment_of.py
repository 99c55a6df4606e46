"""The variables of a process that runs, where no environment file is known: of the application's
user alone.
"""

import os
import pwd
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runbooks.hosts.services.manager import environment_of_a_process
from tests.brokers import until
from tests.unit.fleets import make_host

ME = pwd.getpwuid(os.geteuid()).pw_name


def printed(folder: Path, user: str = ME, app: str = "tiny") -> list[str]:
    host = make_host("web1", directory=str(folder), user=user)
    done = subprocess.run(
        ["sh", "-c", environment_of_a_process(host, app)],
        capture_output=True,
        text=True,
        check=True,
    )
    return shlex.split(done.stdout)


def test_they_are_read_whole_and_only_of_a_process_of_that_user_in_that_folder(
    tmp_path: Path,
) -> None:
    given = {"PATH": os.environ["PATH"], "ODD": 'it\'s\n"two" lines $HOME'}
    command = [sys.executable, "-c", "input()", "celery", "worker"]
    (tmp_path / "elsewhere").mkdir()
    with subprocess.Popen(command, cwd=tmp_path, env=given, stdin=subprocess.PIPE) as process:
        until(lambda: b"worker" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        assert {f"{name}={value}" for name, value in given.items()} <= {*printed(tmp_path)}
        assert printed(tmp_path, "nobody") == []
        assert printed(tmp_path / "elsewhere") == []
        process.communicate(b"\n")


@contextmanager
def running(folder: Path, *words: str) -> Iterator[None]:
    """A process whose variable NAMED has the words of its command."""
    command = [sys.executable, "-c", "input()", "celery", *words]
    given = {"PATH": os.environ["PATH"], "NAMED": " ".join(words)}
    with subprocess.Popen(command, cwd=folder, env=given, stdin=subprocess.PIPE) as process:
        until(lambda: b"celery" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        yield
        process.communicate(b"\n")


def named(folder: Path, app: str) -> list[str]:
    return [word for word in printed(folder, app=app) if word.startswith("NAMED=")]


@pytest.mark.parametrize(
    "words",
    [
        ("-A", "tiny", "worker"),
        ("worker", "-A", "tiny.celery:app"),
        ("-Atiny", "worker"),
        ("--app=tiny", "beat"),
        ("--app", "tiny", "beat"),
        ("[celeryd: one@web1:MainProcess] -active- (worker -A tiny)",),
    ],
)
def test_of_two_applications_in_one_folder_they_are_those_of_the_one_that_is_asked_for(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    others = ("-A", "tiny_other", "worker")
    with (
        running(tmp_path, *others),
        running(tmp_path, "worker"),
        running(tmp_path, *words),
        running(tmp_path, *others),
    ):
        assert named(tmp_path, "tiny") == ["NAMED=" + " ".join(words)]
        assert named(tmp_path, "tiny.celery") == ["NAMED=" + " ".join(words)]
        assert named(tmp_path, "third") == ["NAMED=worker"], "none names it, one names none"


def test_a_process_of_another_application_gives_none(tmp_path: Path) -> None:
    with running(tmp_path, "worker", "-A", "other"):
        assert printed(tmp_path) == []
