"""Services of the inventory's commands, with real processes on this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runbooks.core.effects import ControlService, sha256
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.core.settings import Commands, Worker
from runbooks.hosts.facts import ask_clock, parse_clock
from runbooks.hosts.services.commands import ByCommands
from tests.unit.fleets import make_host
from tests.unit.hosts.test_facts import ask
from tests.unit.hosts.test_transport import wait_until


def service_host(tmp_path: Path, status: str) -> FleetHost:
    return make_host(
        directory=str(tmp_path), commands=Commands(start="false", stop="false", status=status)
    )


def state_of(tmp_path: Path, status: str, service: str = "high") -> ServiceState:
    host = service_host(tmp_path, status)
    clock = parse_clock(ask(ask_clock()))
    answers = {
        name: ask(question) for name, question in ByCommands().ask(host, "shop", [service]).items()
    }
    return ByCommands().parse(host, "shop", answers, clock)[service]


WORKER = "celery -A shop worker -n high@web1"


def run_as_if(command: str, program: str | Path = "sleep") -> "subprocess.Popen[bytes]":
    """A process that does nothing with the command line of another, which is one argument here, as
    a title is.
    """
    return subprocess.Popen(
        [command, "600"], executable=shutil.which(program), stdin=subprocess.DEVNULL
    )


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    running = run_as_if(WORKER)
    yield running
    running.kill()
    running.wait()


def test_a_running_service_is_its_pid_and_the_time_it_was_started(tmp_path: Path) -> None:
    before = time.time()
    running = run_as_if(WORKER)
    try:
        after = time.time()
        state = state_of(tmp_path, f"echo {running.pid}")
    finally:
        running.kill()
        running.wait()
    assert state.pid == running.pid
    assert state.started_at is not None
    tick_s = 0.03  # the kernel counts in ticks of 10 ms
    between_s = 10  # the host reads its two clocks one after the other
    assert before - tick_s <= state.started_at <= after + between_s


def test_the_environment_that_a_service_was_started_with_is_known_by_digests(
    tmp_path: Path,
) -> None:
    given = {"TIMEOUT": "a b\nc", "PATH": "/bin"}
    running = subprocess.Popen([WORKER, "600"], executable=shutil.which("sleep"), env=given)
    try:
        state = state_of(tmp_path, f"echo {running.pid}")
    finally:
        running.kill()
        running.wait()
    assert state.environment == {name: sha256(value.encode()) for name, value in given.items()}


def test_a_process_with_an_odd_name_is_understood(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b c"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    running = run_as_if(WORKER, program)
    try:
        assert state_of(tmp_path, f"echo {running.pid}").pid == running.pid
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize(
    ("service", "command", "found"),
    [
        ("high", "sleep", "sleep"),
        ("high", "vi celery.txt", "sleep"),
        ("high", "celery -A shop beat", "beat"),
        ("high", "celery -A shop worker -n low@web1", "worker low@web1"),
        ("high", "celery -A shop worker -n high@web2", "worker high@web2"),
        ("high", "celery -A shop worker -n high", "worker high"),  # it is celery@high
        ("high", "celery -A bank worker -n high@web1", "worker high@web1"),
        ("high", "[celeryd: low@web1:MainProcess] -active- (-A shop worker)", "worker low@web1"),
        ("beat", WORKER, "worker high@web1"),
        ("high", WORKER, ""),
        ("high", "python -m celery -A shop.celery:app worker --hostname=high@%h", ""),
        ("high", "/srv/venv/bin/celery -A shop worker", ""),
        ("high", "[celeryd: high@web1:MainProcess] -active- (-A shop worker)", ""),
        ("beat", "celery -A shop beat", ""),
        ("beat", "celery -A shop worker -B -n high@web1", ""),
    ],
)
def test_a_pid_counts_only_where_this_service_of_this_application_runs_under_it(
    tmp_path: Path, service: str, command: str, found: str
) -> None:
    running = run_as_if(command)
    try:
        state = state_of(tmp_path, f"echo {running.pid}", service)
    finally:
        running.kill()
        running.wait()
    expected = f"pid {running.pid} ({found})" if found else ""
    assert (state.pid, state.other_process) == (None if found else running.pid, expected)


@pytest.mark.parametrize(
    ("command", "counts"), [(WORKER, True), ("celery -A shop worker -n low@web1", False)]
)
def test_a_pid_counts_where_a_process_below_it_is_the_service(
    tmp_path: Path, command: str, counts: bool
) -> None:
    """As below a shell, or a tool that starts it again."""
    script = f"bash -c 'exec -a \"$0\" sleep 600' '{command}' & echo; wait"
    shell = subprocess.Popen(
        ["bash", "-c", f"( {script} ) & wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert shell.stdout
        shell.stdout.readline()
        wait_until(
            lambda: (state_of(tmp_path, f"echo {shell.pid}").pid == shell.pid) == counts,
            "its command line",
        )
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


def test_exit_code_3_means_that_it_does_not_run_and_what_was_said_is_evidence(
    tmp_path: Path,
) -> None:
    assert state_of(tmp_path, "echo stopped; exit 3") == ServiceState(None, None, "stopped")


def test_exit_code_3_counts_whatever_pid_is_printed(
    tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    assert state_of(tmp_path, f"echo {process.pid}; exit 3").pid is None


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("true", "exited with 0 and printed: nothing"),
        ("exit 1", "exited with 1 and printed: nothing"),
        ("echo broken pipe >&2; exit 1", "exited with 1 and printed: broken pipe"),
        ("echo running", "exited with 0 and printed: running"),
        ("echo 12x", "exited with 0 and printed: 12x"),
        ("echo -5", "exited with 0 and printed: -5"),
        ("printf '\\377\\000'", "exited with 0 and printed: "),
        ("nosuchcommand", "exited with 127 and printed: .*nosuchcommand"),
        (
            "echo 4194305",
            "exited with 0 and printed: 4194305",
        ),  # beyond the largest pid: nothing runs under it
        ("yes | head -n 5000; exit 1", r"exited with 1 and printed: \s*y"),
    ],
)
def test_any_other_answer_leaves_it_unknown_and_is_shown(
    tmp_path: Path, status: str, said: str
) -> None:
    state = state_of(tmp_path, status)
    assert state.pid is None
    assert re.match(f"its status command {said}", state.why_unknown)
    assert len(state.why_unknown) < 500


def test_a_directory_that_is_not_there_is_reported_and_not_passed_over(tmp_path: Path) -> None:
    assert re.match(
        r"its status command exited with \d and printed: .*/missing",
        state_of(tmp_path / "missing", "true").why_unknown,
    )


def test_more_lines_than_the_pid_are_evidence(
    tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    state = state_of(tmp_path, f"echo {process.pid}; echo since yesterday")
    assert (state.pid, state.answer) == (process.pid, f"{process.pid}\nsince yesterday")


def test_a_warning_before_the_pid_is_not_an_answer(
    tmp_path: Path, process: "subprocess.Popen[bytes]"
) -> None:
    """As of a bash whose LC_ALL names a locale that the host does not have."""
    state = state_of(
        tmp_path,
        f"echo 'bash: warning: setlocale: LC_ALL: cannot change locale' >&2; echo {process.pid}",
    )
    assert state.pid == process.pid


def test_a_status_command_that_reads_its_input_does_not_wait_for_any(tmp_path: Path) -> None:
    assert state_of(tmp_path, "cat; read -r x; exit 3").pid is None


def test_a_status_command_runs_in_the_applications_directory(tmp_path: Path) -> None:
    assert state_of(tmp_path, "pwd; exit 3").answer == str(tmp_path)


@pytest.mark.parametrize("name", ["a-b.c_1", "two words", "$(touch evil)", "it's", "`id`"])
def test_a_service_of_any_name_reaches_its_command_as_one_argument(
    tmp_path: Path, name: str
) -> None:
    assert state_of(tmp_path, "printf '<%s>' {worker}; exit 3", name).answer == f"<{name}>"
    assert list(tmp_path.iterdir()) == []


def test_a_status_command_may_end_with_a_comment(tmp_path: Path) -> None:
    assert state_of(tmp_path, "exit 3 # not yet").pid is None


def test_what_the_inventory_says_of_a_worker_reaches_its_command_each_as_words_of_the_shell(
    tmp_path: Path,
) -> None:
    worker = Worker(
        name="high", queues=("a b", "c"), concurrency=3, options=("-O", "fair", "--pidfile=/x y")
    )
    status = "printf '<%s>' {worker} {node} {queues} {concurrency} {options} \"${worker}\"; exit 3"
    host = make_host(
        directory=str(tmp_path), workers=(worker,), beat=False, commands=Commands(status=status)
    )
    (question,) = ByCommands().ask(host, "shop", ["high"]).values()
    expected = "<high><high@web1><a b,c><3><-O><fair><--pidfile=/x y><>"
    assert ask(question).out.decode().splitlines()[-1] == expected


def test_a_value_that_looks_like_a_placeholder_is_not_replaced_once_more(tmp_path: Path) -> None:
    worker = Worker(name="high", queues=("{worker}",))
    host = make_host(
        directory=str(tmp_path),
        workers=(worker,),
        beat=False,
        commands=Commands(status="echo {queues}"),
    )
    (question,) = ByCommands().ask(host, "shop", ["high"]).values()
    assert ask(question).out.decode().splitlines()[-1] == "{worker}"


STOPPED = (
    "{pid} still runs, so no second one was started; the process is stopped: kill -CONT {pid} continues"
    " it; when it has ended, run this again"
)


def test_of_a_process_that_is_stopped_after_it_received_term_it_is_said_what_continues_it(
    tmp_path: Path,
) -> None:
    received = tmp_path / "received"
    program = (
        "import signal, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(received)!r}).touch())\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "while True: signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as running:
        wait_until((tmp_path / "ready").exists, "ready for TERM")
        pid = running.pid
        stop = f"kill {pid}; while ! [ -e received ]; do :; done; kill -STOP {pid}"
        host = make_host(
            directory=str(tmp_path),
            stop_timeout="1s",
            commands=Commands(start="touch started", stop=stop, status=f"echo {pid}"),
        )
        done = ask(ByCommands().control(host, ControlService("high", "restart")))
        running.kill()
    assert done.code == 1
    assert STOPPED.format(pid=pid) in done.err
    assert not (tmp_path / "started").exists()
