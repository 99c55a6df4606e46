"""Programs of a real supervisord on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import psutil
import pytest

from lab.redis_server import free_port
from lab.supervisord import _CONF, start
from runbooks.core.effects import ControlService, WriteFile
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ProgramStop, ServiceState
from runbooks.core.settings import Supervisor as Settings
from runbooks.core.settings import Worker
from runbooks.hosts.facts import ask_clock, parse_clock
from runbooks.hosts.script import Answer
from runbooks.hosts.services.supervisor import Supervisor
from runbooks.hosts.worker_log import Line
from tests.unit.effects.made import make
from tests.unit.fleets import make_host
from tests.unit.hosts.test_facts import ask
from tests.unit.hosts.test_transport import wait_until

CTL = str(Path(sys.executable).with_name("supervisorctl"))
OWN = """# Managed by celery-runbooks for shop;
[program:celery-worker-{name}]
command=sleep {seconds}
startsecs=0
"""
THEIRS = """
[program:broken]
command=sh -c 'echo "no module named shop" >&2; exit 3'
startretries=0
stopasgroup=true
stopwaitsecs=60
[program:low]
command=sleep 600
startsecs=0
autostart=false
process_name=%(program_name)s_%(process_num)02d
numprocs=2
[group:others]
programs=low
"""


def host_of(root: Path, *services: str, **changes: str) -> FleetHost:
    workers = [Worker(name="high", queues=("q",)), Worker(name="new", queues=("q",))]
    workers += [
        Worker(name=f"w{n}", service=service, queues=("q",)) for n, service in enumerate(services)
    ]
    settings = Settings(**{"conf": str(root / "supervisord.conf"), "ctl": CTL, **changes})
    return make_host(
        service_manager="supervisor", commands=None, beat=False, workers=tuple(workers), supervisor=settings,
        directory=str(root), unit_directory=str(root / "root/etc/supervisor/conf.d"), stop_timeout=20.0,
    )  # fmt: skip


def states(host: FleetHost, *more: str) -> dict[str, ServiceState]:
    clock = parse_clock(ask(ask_clock()))
    asked = Supervisor().ask(host, "shop", [*host.services, *more])
    answers = {name: ask(question) for name, question in asked.items()}
    return dict(Supervisor().parse(host, "shop", answers, clock))


def said(host: FleetHost) -> Sequence[Line]:
    """The notable lines of `high`."""
    answers = {
        name: ask(question) for name, question in Supervisor().ask(host, "shop", ["high"]).items()
    }
    return Supervisor().said(host, answers)["high"]


def refused(host: FleetHost) -> str:
    with pytest.raises(RunbookError) as error:
        states(host)
    return f"{error.value.problem} → {error.value.advice}"


def tell(host: FleetHost, service: str, action: Literal["start", "stop", "restart"]) -> None:
    answer = ask(Supervisor().control(host, ControlService(service, action)))
    assert answer.code == 0, answer.err


@pytest.fixture
def root(tmp_path: Path) -> Path:
    conf = tmp_path / "root/etc/supervisor/conf.d"
    conf.mkdir(parents=True)
    (tmp_path / "app").mkdir()
    (conf / "celery-worker-high.conf").write_text(OWN.format(name="high", seconds=600))
    (conf / "celery-worker-old.conf").write_text(OWN.format(name="old", seconds=600))
    (conf / "theirs.conf").write_text(THEIRS)
    return tmp_path


@pytest.fixture
def daemon(root: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = start(root)
    wait_until(lambda: (root / "supervisor.sock").exists(), "supervisord")
    yield process
    children = (
        psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    )
    process.terminate()
    process.wait(30)
    assert not [child for child in children if child.is_running()]


def test_programs_are_seen_started_stopped_and_restarted_on_the_conf_files_that_were_read(
    root: Path, daemon: "subprocess.Popen[bytes]"
) -> None:
    host = host_of(root, "broken", "others:low_01", "nosuch")
    wait_until(lambda: states(host)["broken"].gave_up, "the broken program to be given up")
    found = states(host)
    assert found["high"].pid
    assert psutil.Process(found["high"].pid).cmdline() == ["sleep", "600"]
    assert found["high"].started_at == pytest.approx(
        psutil.Process(found["high"].pid).create_time(), abs=1
    )
    assert (found["old"].pid is not None, found["high"].needs_reload) == (
        True,
        False,
    ), "it is ours, and not wanted"
    assert found["broken"].answer == "FATAL, Exited too quickly (process log may have details)"
    assert found["broken"].last_lines[-1] == "no module named shop"
    assert (found["others:low_01"].pid, found["others:low_01"].answer) == (
        None,
        "STOPPED, Not started",
    )
    assert [found[name].program_stop for name in ("broken", "others:low_01", "nosuch")] == [
        ProgramStop(60, as_group=True), ProgramStop(10, as_group=False), None,
    ]  # fmt: skip
    gone = states(host, "gone", "others:low_00")  # which the inventory had, and a run knew
    assert (gone["gone"].pid, gone["others:low_00"].answer) == (None, "STOPPED, Not started")
    assert [found[name].exists for name in ("others:low_01", "nosuch", "new")] == [
        True,
        False,
        True,
    ]

    tell(host, "others:low_01", "start")
    theirs = states(host)["others:low_01"].pid
    assert theirs
    tell(host, "others:low_01", "start")
    assert states(host)["others:low_01"].pid == theirs, "it ran already"

    (written,) = Supervisor().log_files(ask(Supervisor().ask_log_files(host, ["high"])))[:1]
    failed, well = "Task a.b[1] raised unexpected: E()", "Task a.b[2] succeeded in 0.1s: None"
    Path(written).write_text(f"[2026-11-30 01:20:00,1] {well}\nand more\n")
    assert said(host) == []
    Path(written).write_text(
        f"[2026-11-30 01:20:00,1] {well}\nand more\n[2026-11-30 01:20:01,1] {failed}\n"
    )
    assert [line.text.partition("] ")[2] for line in said(host)] == [
        well,
        failed,
    ], "how others ended once one failed"
    assert all(line.at for line in said(host))

    conf = Path(host.unit_path("high"))
    conf.write_text(OWN.format(name="high", seconds=700))
    Path(host.unit_path("new")).write_text(OWN.format(name="new", seconds=700))
    Path(host.unit_path("old")).unlink()
    after = states(host)
    assert [after[name].needs_reload for name in ("high", "new")] == [True, True]
    assert after["high"].pid == found["high"].pid
    tell(host, "old", "stop")
    assert ask(Supervisor().reload(host)).code == 0
    after = states(host)
    assert [after[name].needs_reload for name in ("high", "new")] == [False, False]
    assert after["high"].pid == found["high"].pid, "reading the files restarts nothing"
    tell(host, "high", "restart")
    tell(host, "new", "start")
    after = states(host)
    assert all(
        psutil.Process(after[name].pid).cmdline() == ["sleep", "700"] for name in ("high", "new")
    )
    assert after["others:low_01"].pid == theirs, "the program of another owner was not touched"
    status = subprocess.run(
        [CTL, "-c", host.settings.supervisor.conf, "status"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    assert "celery-worker-old" not in status, (
        "what was stopped, and has no conf file, does not come back"
    )

    tell(host, "high", "stop")
    assert states(host)["high"].answer.startswith("STOPPED")
    assert (
        "does not have a program nosuch:nosuch"
        in ask(Supervisor().control(host, ControlService("nosuch", "start"))).err
    )

    conf.write_text("[program:celery-worker-high]\n")
    assert "does not specify a command" in ask(Supervisor().reload(host)).err


def test_a_supervisord_that_refuses_this_user_is_reported(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = "[unix_http_server]\nusername=ops\npassword=secret"
    monkeypatch.setattr("lab.supervisord._CONF", _CONF.replace("[unix_http_server]", login))
    process = start(root)
    wait_until(lambda: (root / "supervisor.sock").exists(), "supervisord")
    refusal = refused(host_of(root))
    process.terminate()
    process.wait(30)
    assert refusal.startswith(
        f"this user may not ask supervisord: unix://{root}/supervisor.sock (401 Unauthorized)"
    )
    assert "ansible_become: true" in refusal


def test_the_port_and_the_login_of_its_configuration_are_used_and_stay_on_the_host(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    login = "username=ops\npassword=secret"
    served = "[unix_http_server]\nfile={root}/supervisor.sock\nchmod=0700\n"
    conf = _CONF.replace(served, f"[inet_http_server]\nport=127.0.0.1:{port}\n{login}\n")
    url = f"serverurl=http://127.0.0.1:{port}\n{login}"
    conf = conf.replace("serverurl=unix://{root}/supervisor.sock", url)
    monkeypatch.setattr("lab.supervisord._CONF", conf)
    process = start(root)
    try:
        host = host_of(root)
        (question,) = Supervisor().ask(host, "shop", ["high"]).values()
        wait_until(lambda: ask(question).code == 0, "supervisord")
        assert states(host)["high"].pid
        assert b"secret" not in ask(question).out
        assert "secret" not in question
    finally:
        process.terminate()
        process.wait(30)


def test_a_supervisord_that_cannot_be_asked_is_reported_with_what_helps(root: Path) -> None:
    assert "supervisorctl does not exist: /nowhere" in refused(host_of(root, ctl="/nowhere"))
    assert "does not exist" in refused(host_of(root))
    process = start(root)
    wait_until(lambda: (root / "supervisor.sock").exists(), "supervisord")
    wait_until(lambda: states(host_of(root))["high"].pid is not None, "the program")
    pids = sorted(filter(None, (state.pid for state in states(host_of(root)).values())))
    process.kill()
    process.wait()
    refusal = refused(host_of(root))
    assert refusal.startswith(
        f"supervisord does not run, but programs that it has started still run: pid {pids[0]}"
    )
    assert f"end them first: sudo kill -TERM {' '.join(map(str, pids))}; then" in refusal
    for pid in pids:
        psutil.Process(pid).kill()
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), "the end of the programs")
    refusal = refused(host_of(root))
    assert refusal.startswith(
        f"supervisord does not run: nothing answers at unix://{root}/supervisor.sock"
    )
    assert f"supervisord -c {root}/supervisord.conf" in refusal


def test_a_python_that_needs_a_shell_is_found(
    root: Path, daemon: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    ctl = folder / "supervisorctl"
    ctl.write_text(f"#!/bin/sh\n'''exec' \"{folder}/python\" \"$0\" \"$@\"\n' '''\n")
    ctl.chmod(0o755)
    del daemon
    pythons = host_of(root, ctl=str(ctl))
    answer = ask(Supervisor().ask(pythons, "shop", ["high"])["programs"])
    assert answer.code == 0, answer.err


def test_a_conf_file_that_supervisord_could_not_read_is_not_put_in_place(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(CTL).parent}:{os.environ['PATH']}")
    host, path = host_of(root), root / "new.conf"

    def put(text: str) -> Answer:
        return make(WriteFile(str(path), text.encode(), 0o644, "absent", check="unit"), host)

    bad = put("[program:x]\ncommand=sleep 1\nstdout_logfile=/nowhere/x.log\n")
    assert (bad.code, path.exists()) == (1, False)
    assert "/nowhere/x.log does not exist" in bad.err
    nobody = put("[program:x]\ncommand=sleep 1\nuser=no-such-user\n")
    assert (nobody.code, path.exists()) == (1, False)
    assert put(OWN.format(name="x", seconds=1)).code == 0
    assert path.exists()
