"""The variables of a process that runs, where no environment file is known: of the application's
user alone.
"""

import os
import pwd
import shlex
import subprocess
import sys
from pathlib import Path

from runbooks.hosts.services.manager import environment_of_a_process
from tests.brokers import until
from tests.unit.fleets import make_host


def printed(folder: Path, user: str) -> list[str]:
    host = make_host("web1", directory=str(folder), user=user)
    done = subprocess.run(
        ["sh", "-c", environment_of_a_process(host)], capture_output=True, text=True, check=True
    )
    return shlex.split(done.stdout)


def test_they_are_read_whole_and_only_of_a_process_of_that_user_in_that_folder(
    tmp_path: Path,
) -> None:
    me, given = (
        pwd.getpwuid(os.geteuid()).pw_name,
        {
            "PATH": os.environ["PATH"],
            "ODD": 'it\'s\n"two" lines $HOME',
        },
    )
    command = [sys.executable, "-c", "input()", "celery", "worker"]
    (tmp_path / "elsewhere").mkdir()
    with subprocess.Popen(command, cwd=tmp_path, env=given, stdin=subprocess.PIPE) as process:
        until(lambda: b"worker" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        assert {f"{name}={value}" for name, value in given.items()} <= {*printed(tmp_path, me)}
        assert printed(tmp_path, "nobody") == []
        assert printed(tmp_path / "elsewhere", me) == []
        process.communicate(b"\n")
