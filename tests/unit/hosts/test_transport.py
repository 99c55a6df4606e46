"""The way to this machine: scripts end when they are to, with everything they started, and nothing
hangs.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runbooks.core.errors import HostUnreachable
from runbooks.hosts.script import run_fragments
from runbooks.hosts.transport import LocalTransport, Shell


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not seen: {what}"
        threading.Event().wait(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), f"a pid in {path}")
    return int(path.read_text())


def test_a_script_gives_its_exit_code_and_all_it_says() -> None:
    done = LocalTransport().run("printf 'out\\000\\377'; echo err >&2; exit 5", timeout_s=20)
    assert (done.code, done.out) == (5, b"out\0\xfferr\n")


def test_a_large_script_and_a_large_answer_on_both_streams_do_not_block_each_other() -> None:
    filler = "x" * 1_000_000
    script = f"head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2\n: '{filler}'\nprintf end"
    done = LocalTransport().run(script, timeout_s=30)
    assert (len(done.out), done.out[-3:]) == (6_000_003, b"end")


def test_a_script_has_the_environment_of_a_login_and_nothing_of_the_operators_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "DJANGO_SETTINGS_MODULE",
        "CELERY_BROKER_URL",
        "LC_ALL",
        "TZ",
        "TMPDIR",
    ):
        monkeypatch.setenv(name, "/ours")
    with LocalTransport().shell() as shell:
        for way in (LocalTransport(), shell):
            variables = dict(
                line.split("=", 1)
                for line in way.run("env", timeout_s=20).out.decode().splitlines()
            )
            assert variables["PATH"] == os.environ["PATH"]
            assert {name for name, value in variables.items() if value == "/ours"} == {
                "LC_ALL",
                "TZ",
                "TMPDIR",
            }


def run_out_of_time(script: str, *started: Path) -> None:
    """Run a script that does not end, with a timeout that it gets far enough in to make the files
    `started`.
    """
    for timeout_s in (0.3, 1.0, 5.0, 20.0):
        with pytest.raises(HostUnreachable, match="did not end within"):
            LocalTransport().run(script, timeout_s=timeout_s)
        if all(path.exists() for path in started):
            return
    pytest.fail("the script was never under way")


def test_a_script_that_takes_too_long_is_an_unreachable_host_and_all_it_started_is_ended(
    tmp_path: Path,
) -> None:
    child, grandchild = tmp_path / "child", tmp_path / "grandchild"
    run_out_of_time(
        f"sleep 600 & echo $! >{child}; ( sleep 600 & echo $! >{grandchild}; wait ) & wait",
        child,
        grandchild,
    )
    for path in (child, grandchild):
        pid = pid_in(path)
        wait_until(lambda pid=pid: not is_alive(pid), f"the end of the {path.name}")  # type: ignore[misc]


def test_a_script_that_ignores_signals_is_ended_all_the_same(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    run_out_of_time(f"trap '' TERM INT HUP; echo $$ >{pid}; while :; do sleep 1; done", pid)
    wait_until(lambda: not is_alive(pid_in(pid)), "the end of the shell")


def test_abort_ends_a_running_script_from_another_thread(tmp_path: Path) -> None:
    transport = LocalTransport()
    codes: list[int] = []
    script = f"sleep 600 & echo $! >{tmp_path}/pid; wait"
    thread = threading.Thread(
        target=lambda: codes.append(transport.run(script, timeout_s=600).code)
    )
    thread.start()
    child = pid_in(tmp_path / "pid")
    transport.abort()
    thread.join(20)
    assert codes == [-signal.SIGKILL]
    wait_until(lambda: not is_alive(child), "the end of what the script started")


def test_abort_without_a_running_script_does_nothing() -> None:
    transport = LocalTransport()
    transport.run("true", timeout_s=20)
    transport.abort()


def test_a_daemon_that_a_script_leaves_behind_lives_on(tmp_path: Path) -> None:
    LocalTransport().run(f"sleep 600 >/dev/null 2>&1 & echo $! >{tmp_path}/pid", timeout_s=20)
    pid = pid_in(tmp_path / "pid")
    try:
        assert is_alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_shell_runs_many_scripts_one_after_the_other() -> None:
    with LocalTransport().shell() as shell:
        assert shell.run("echo $$ >&2; exit 3", timeout_s=20).code == 3
        done = shell.run("printf '\\000\\377no newline'", timeout_s=20)
        assert (done.code, done.out) == (0, b"\0\xffno newline")
        assert (
            run_fragments(shell, {"a": "cat", "b": "echo err >&2; false"}, timeout_s=20)["b"].err
            == "err\n"
        )
        assert (
            len(shell.run("head -c 3000000 /dev/zero #" + "x" * 1_000_000, timeout_s=30).out)
            == 3_000_000
        )


def test_a_shell_that_dies_or_says_nothing_is_an_unreachable_host() -> None:
    with LocalTransport().shell() as shell, pytest.raises(HostUnreachable, match="lost"):
        shell.run("kill -9 $$", timeout_s=20)
    with (
        LocalTransport().shell() as shell,
        pytest.raises(HostUnreachable, match="did not end within"),
    ):
        shell.run("sleep 600", timeout_s=0.1)


def test_what_a_shell_runs_ends_with_it(tmp_path: Path) -> None:
    with LocalTransport().shell() as shell:
        shell.run(f"sleep 600 >/dev/null 2>&1 & echo $! >{tmp_path}/pid", timeout_s=20)
        pid = pid_in(tmp_path / "pid")
    wait_until(lambda: not is_alive(pid), "the end of what the shell started")


def test_a_script_is_out_of_reach_of_a_ctrl_c_in_the_operators_terminal() -> None:
    done = LocalTransport().run("ps -o sid= -p $$; echo $$", timeout_s=20)
    sid, pid = done.out.split()
    assert sid == pid != str(os.getsid(0)).encode()
    assert subprocess.run(["ps", "-o", "sid=", "-p", pid], capture_output=True).returncode != 0


def test_a_script_that_arrives_incomplete_is_not_run(tmp_path: Path) -> None:
    with subprocess.Popen(["sh", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def send(script: bytes) -> None:
            stdin.write(script[: len(script) // 2])
            stdin.close()

        shell = Shell(send, lambda _timeout_s: stdout.read())
        with pytest.raises(HostUnreachable):
            shell.run(f"touch {tmp_path}/ran\n" + ":\n" * 100, timeout_s=10)
    assert not (tmp_path / "ran").exists()
