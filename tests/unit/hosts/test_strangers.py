"""Who else runs the application's workers beside ours, from what hosts answered."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runbooks.core.model import Manager, OtherRunner
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.strangers import ask_strangers, others, parse_strangers, what_runs
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host

PYTHON = "/srv/venv/bin/python -m celery"
OLD1 = f"{PYTHON} -A printer_inventory worker -Q low_priority --pidfile=/run/celery/old1.pid -n old1@web1"
ID = "0123456789abcdef" * 4
SHOWN = f"""\
Type=notify
ExecStart={{ path=/usr/sbin/sshd ; argv[]=/usr/sbin/sshd -D $SSHD_OPTS ; ignore_errors=no ; pid=0 ; status=0/0 }}
Id=ssh.service
FragmentPath=/lib/systemd/system/ssh.service

Type=simple
ExecStart={{ path=/srv/venv/bin/python ; argv[]={PYTHON} --app printer_inventory.celery:app worker ; status=0/0 }}
Id=printers.service
FragmentPath=/etc/systemd/system/printers.service

Type=forking
ExecStart={{ path=/bin/sh ; argv[]=/bin/sh -c ${{CELERY_BIN}} -A $CELERY_APP multi start $CELERYD_NODES ; status=0/0 }}
Id=celery.service
FragmentPath=/etc/systemd/system/celery.service
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """A process as a host tells it."""

    group: str
    pid: int
    command: str
    parent: int = 1
    flags: str = "here - -"


def process(unit: str, pid: int, command: str, *, parent: int = 1, here: str = "here") -> Shown:
    return Shown(f"0::/system.slice/{unit}", pid, command, parent, f"{here or '-'} - -")


def found(*shown: Shown, app: str = "printer_inventory", ours: Sequence[int] = ()) -> tuple[OtherRunner, ...]:
    heads = "".join(
        f"{one.flags} {one.pid} (python) S {one.parent} {one.pid} 1 0 -1 4194304 4 0 66\n{one.group}\n" for one in shown
    )
    commands = "\n".join(f"==> /proc/{one.pid}/cmdline <==\n" + one.command.replace(" ", "\0") + "\0" for one in shown)
    answer = Answer(0, f"{heads}---\n{commands}\n---\n{SHOWN}".encode(), "")
    return others(app, *parse_strangers(answer), ours)


def test_units_of_celery_multi_and_plain_ones_are_told_with_their_nodes_and_without_their_children() -> None:
    assert found(
        process("printers.service", 621, f"{PYTHON} --app printer_inventory.celery:app worker -Q daemon -n a@web1"),
        process("celery.service", 625, OLD1),
        process("celery.service", 631, OLD1, parent=625),
        process("celery.service", 629, OLD1.replace("old1", "old2")),
    ) == (
        OtherRunner("celery.service", {625: "worker old1@web1", 629: "worker old2@web1"}, Manager.SYSTEMD,
                    "/etc/systemd/system/celery.service", forking=True),
        OtherRunner("printers.service", {621: "worker a@web1"}, Manager.SYSTEMD,
                    "/etc/systemd/system/printers.service"),
    )  # fmt: skip


@pytest.mark.parametrize("unit", ["ssh.service", "session-3.scope"])
def test_a_unit_that_does_more_than_run_celery_is_not_named_as_one_to_be_stopped(unit: str) -> None:
    shown = process(unit, 487, f"{PYTHON} -A printer_inventory beat -s /tmp/schedule")
    assert found(shown) == (OtherRunner(unit, {487: "beat"}),)


@pytest.mark.parametrize(
    ("group", "flags", "name", "manager"),
    [
        ("0::/", "here - -", "process 9", None),
        ("0::/system.slice/cron.service", "here - supervisord", "supervisord", Manager.SUPERVISORD),
        (f"0::/docker/{ID}", "- inside -", "container 0123456789ab", Manager.DOCKER),
        (f"0::/system.slice/docker-{ID}.scope", "- inside -", "container 0123456789ab", Manager.DOCKER),
        (f"0::/libpod_parent/libpod-{ID}", "- inside -", "container 0123456789ab", Manager.PODMAN),
        (f"0::/kubepods/cri-containerd-{ID}.scope", "- inside -", "container 0123456789ab", Manager.CONTAINER),
        (f"0::/docker/{ID}", "here - -", "process 9", None),  # this host is the container
    ],
)
def test_whoever_runs_it_is_told(group: str, flags: str, name: str, manager: Manager | None) -> None:
    shown = Shown(group, 9, f"{PYTHON} -A printer_inventory worker -n a@web1", flags=flags)
    assert found(shown) == (OtherRunner(name, {9: "worker a@web1"}, manager),)


def test_what_runs_on_a_host_inside_this_one_is_not_here() -> None:
    group = "1:name=systemd:/fleet/web1/payload/system.slice/celery.service"
    assert found(Shown(group, 9, OLD1, flags="- inside -")) == ()


def test_what_belongs_to_a_service_of_ours_is_nobody_elses() -> None:
    main, child = Shown("0::/", 9, OLD1), Shown("0::/", 10, OLD1, parent=9)
    assert found(main, child, ours=[9]) == ()


@pytest.mark.parametrize(
    ("command", "here", "told"),
    [
        ("[celeryd: a@web1:MainProcess] -active- (-A printer_inventory worker -n a@web1)", "", "worker a@web1"),
        ("[celeryd: a@web1:ForkPoolWorker-1]", "here", ""),
        ("[celery beat]", "here", "beat"),
        ("/srv/venv/bin/celery worker --hostname=a@%h", "here", "worker a@%h"),
        ("/srv/venv/bin/celery -A printer_inventory -b redis://:s3cret@broker/0 worker", "", "worker"),
        ("/srv/venv/bin/python3.11 -u -W ignore /srv/venv/bin/celery -A printer_inventory worker", "", "worker"),
        ("python manage.py celery worker", "here", "worker"),
        ("/srv/venv/bin/celery worker", "", ""),
        (f"{PYTHON} -A another worker", "here", ""),
        (f"{PYTHON} -A printer_inventory flower", "here", ""),
        ("sh -c celery -A printer_inventory worker", "here", ""),
        ("watch celery -A printer_inventory worker", "here", ""),
        ("tail -F /var/log/celery/worker.log", "here", ""),
        ("", "here", ""),
    ],
)
def test_what_counts_is_a_worker_or_beat_of_this_application(command: str, here: str, told: str) -> None:
    runs = [list(one.runs.values()) for one in found(process("celery.service", 1234, command, here=here))]
    assert runs == ([[told]] if told else [])


@pytest.mark.parametrize(("command", "told"), [("beat", "beat"), ("worker", "worker"), ("flower", "")])
def test_an_application_that_is_called_worker_is_no_worker(command: str, told: str) -> None:
    runs = [
        list(one.runs.values()) for one in found(process("a.service", 9, f"{PYTHON} -A worker {command}"), app="worker")
    ]
    assert runs == ([[told]] if told else [])


@pytest.mark.parametrize(
    ("systemd", "inside", "told"), [(False, True, True), (False, False, False), (True, False, True)]
)
def test_without_systemd_another_directory_is_another_installation(
    tmp_path: Path, systemd: bool, inside: bool, told: bool
) -> None:
    manager: dict[str, Any] = {"service_manager": "systemd", "commands": None} if systemd else {}
    host = make_host(directory=str(tmp_path), **manager)
    command = "celery -A shop worker -n by_hand@web1"
    running = subprocess.Popen([command, "600"], executable=shutil.which("sleep"), cwd=tmp_path if inside else "/")
    try:
        answer = run_fragments(LocalTransport(), {"others": ask_strangers(host)}, timeout_s=30)["others"]
    finally:
        running.kill()
        running.wait()
    runs = {pid: what for one in others("shop", *parse_strangers(answer), ()) for pid, what in one.runs.items()}
    assert (runs.get(running.pid) == "worker by_hand@web1") is told


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        ("/srv/venv/bin/python -m celery -A shop worker -B -n w1@web1 -Q high", "worker w1@web1 -B"),
        ("/srv/venv/bin/celery -A shop worker --beat -n w1@web1", "worker w1@web1 -B"),
        ("[celeryd: w1@web1:MainProcess] -active- (-A shop worker -n w1@web1 -B)", "worker w1@web1 -B"),
        ("/srv/venv/bin/celery -A shop worker -B", "worker -B"),
        ("/srv/venv/bin/celery -A shop worker -n w1@web1", "worker w1@web1"),
        ("/srv/venv/bin/celery -A shop beat", "beat"),
    ],
)
def test_a_worker_that_is_a_beat_too_is_told_as_such(command: str, runs: str) -> None:
    assert what_runs(command) == runs
