"""A worker that lacks a queue is restarted if that helps; if a file causes it, its line is shown."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind, Unit
from runbooks.core.model import DropIn, Finding, NodeState, OptionLine, ServiceState
from runbooks.core.settings import Commands, Worker
from runbooks.diagnosis.services import at_work
from runbooks.hosts.celery_argv import options_of
from runbooks.hosts.option_lines import ask_option_lines, parse_option_lines
from tests.unit.fleets import (
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
)
from tests.unit.hosts.test_facts import ask

SCRIPT = "./start.sh"
UNIT = "/etc/u/celery-worker@high.service"
WORKER = Worker(name="high", queues=("high_q", "mail"))


def found(
    argv: str,
    *lines: str,
    start: str = SCRIPT,
    since: float | None = None,
    unit: str = UNIT,
    **service: object,
) -> Finding:
    """The finding on a worker that consumes high_q, and not mail."""
    systemd = bool(service)
    manager = (
        {"service_manager": "systemd", "commands": None}
        if systemd
        else {"commands": Commands(start=start, stop="x")}
    )
    host = make_host(workers=(WORKER,), beat=False, **manager)
    fleet = make_fleet(host)
    options = options_of(["celery", "-A", "shop", "worker", *argv.split()])
    assert options
    process = CeleryProcess(7, 700, NOW - 500, "S", Kind.MAIN, options, 1, here=True)
    state = make_state(host)
    option_lines = tuple(OptionLine(*line.split(": ", 1)) for line in lines)
    units = {"celery-worker@high.service": Unit("celery-worker@high.service", path=unit)}
    running = replace(ServiceState(7, NOW - 500, "", pids={7: 7}), **service)
    state = replace(
        state,
        census=Census((process,), units),
        services={"high": running},
        option_lines=option_lines,
    )
    node = NodeState("high@web1", frozenset(TASKS), frozenset({"high_q"}))
    broker = replace(make_broker(fleet), nodes={"high@web1": node})
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    (finding,) = (
        one
        for one in at_work(fleet, snapshot, {"web1": since} if since else {})
        if "queue" in one.summary or "consume" in one.summary
    )
    assert finding.code == "worker.not_consuming"
    return finding


@pytest.mark.parametrize(
    "lines",
    [
        (f"{SCRIPT}:3: -Q high_q",),
        (f"{SCRIPT}:3: --queues=high_q", f"{SCRIPT}:9: mail"),  # another worker's
        (f'{SCRIPT}:3: -Q "$2"', f"{SCRIPT}:9: high_q"),
        ("celery_commands.start: -Q high_q",),
    ],
)
def test_where_a_file_starts_it_so_again_the_line_is_reported_and_no_restart_planned(
    lines: tuple[str, ...],
) -> None:
    finding = found("-Q high_q", *lines)
    assert (finding.fix, finding.remedy) == ((), None)
    assert finding.evidence[1] == "pid 7 was started with -Q high_q"
    assert finding.evidence[2] == lines[0]
    assert finding.evidence[-1].startswith(
        "a restart starts it the same way: add mail there, then "
    )


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        ("-Q high_q,mail", (f"{SCRIPT}:3: -Q high_q,mail",)),  # a remote command cancelled one
        ("-Q high_q", (f"{SCRIPT}:3: -Q high_q,mail",)),  # the script was corrected
        ("-Q high_q", (f'{SCRIPT}:3: -Q "$2"', f"{SCRIPT}:9: mail")),
        ("-Q high_q", ("celery_commands.start: -Q {queues}",)),
        ("-Q high_q", ("/etc/other.service:3: -Q high_q",)),  # nothing of what starts it
        ("-Q high_q", ()),
        ("", (f"{SCRIPT}:3: -Q high_q",)),
    ],
)  # fmt: skip
def test_where_a_restart_may_help_it_is_made(argv: str, lines: tuple[str, ...]) -> None:
    finding = found(argv, *lines)
    assert (len(finding.fix), finding.remedy) == (1, "restart it")


def test_a_restart_that_was_made_is_not_proved_by_a_worker_that_lacks_its_queue() -> None:
    assert found("-Q high_q", f"{SCRIPT}:3: -Q high_q", since=NOW - 600).fix


def test_of_a_unit_the_line_of_its_file_or_drop_in_is_reported() -> None:
    unit, drop_in = UNIT, f"{UNIT}.d/q.conf"
    finding = found("-Q high_q", f"{drop_in}:2: -Q high_q", drop_ins={drop_in: DropIn(0.0, "")})
    assert finding.evidence[2] == f"{drop_in}:2: -Q high_q"
    finding = found("-Q high_q", f"{unit}:9: -Q high_q", exists=True)
    assert (finding.fix, finding.evidence[2]) == ((), f"{unit}:9: -Q high_q")


def test_of_this_tools_own_unit_the_remedy_is_to_install_it() -> None:
    ours = "/etc/systemd/system/celery-worker@high.service"
    finding = found("-Q high_q", f"{ours}:9: -Q high_q", exists=True, unit=ours)
    assert (len(finding.fix), finding.remedy) == (1, "install its unit, then restart it")
    assert finding.evidence[-1] == f"{ours}:9: -Q high_q"


def test_the_lines_of_a_start_script_are_found_and_nothing_else_of_them_is_reported(
    tmp_path: Path,
) -> None:
    script = tmp_path / "start.sh"
    script.write_text(
        'set -a; PASSWORD=hunter2\ncelery -b redis://:hunter2@h worker -Q high_q -n "$1@%h" -c 4\n['
        " -n x ]\n# mail\n"
    )
    host = make_host(
        directory=str(tmp_path),
        workers=(WORKER,),
        commands=Commands(start="env X=1 ./start.sh", stop="x"),
    )
    lines = [str(line) for line in parse_option_lines(host, ask(ask_option_lines(host)))]
    mine = [line for line in lines if line.startswith("./start.sh")]
    assert mine == [
        "./start.sh:2: -Q high_q", './start.sh:2: -n "$1@%h"', "./start.sh:2: -c 4",
        "./start.sh:2: high_q", "./start.sh:4: mail",
    ]  # fmt: skip
