"""Services of this machine: started, stopped, and what they left ended."""

import signal
import subprocess
from pathlib import Path

import pytest

from runbooks.core.effects import ControlService, EndProcesses
from runbooks.core.settings import Commands
from tests.unit.effects.made import make, names
from tests.unit.fleets import make_host


@pytest.mark.parametrize(
    "name",
    ["high", "two words", "it's", "$(touch evil)", "`touch evil`", "-n", "a;touch evil", "*"],
)
def test_a_service_of_any_name_is_one_argument_of_its_command(tmp_path: Path, name: str) -> None:
    log = tmp_path / "log"
    say = f"printf '%s <%s>\\n' {{action}} {{worker}} >>{log}"
    commands = {action: say.replace("{action}", action) for action in ("start", "stop", "status")}
    host = make_host(directory=str(tmp_path), commands=Commands(**commands))
    for action in ("start", "stop", "restart"):
        assert make(ControlService(name, action), host).code == 0
    assert log.read_text() == "".join(
        f"{action} <{name}>\n" for action in ("start", "stop", "status", "stop", "start")
    )
    assert names(tmp_path) == ["log"]


def test_a_service_that_does_not_stop_is_not_started_a_second_time(tmp_path: Path) -> None:
    host = make_host(
        directory=str(tmp_path),
        commands=Commands(start="touch started", stop="echo no >&2; false", status="true"),
    )
    answer = make(ControlService("high", "restart"), host)
    assert (answer.code, answer.err) == (1, "no\n")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kill", [False, True])
def test_a_process_that_goes_on_is_killed_only_where_it_may_be(kill: bool) -> None:
    host = make_host(stop_timeout=0.1)
    with subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo; exec sleep 60"], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            ticks = int(
                Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
            )
            answer = make(EndProcesses("high", ((process.pid, ticks),), kill), host)
            assert (answer.code, f"{process.pid}:{ticks}" in answer.out.decode() + answer.err) == (
                not kill,
                True,
            )
            assert (process.wait(10) if kill else process.poll()) == (
                -signal.SIGKILL if kill else None
            )
        finally:
            process.kill()
