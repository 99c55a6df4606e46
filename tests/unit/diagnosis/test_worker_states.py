"""What `inv workers` shows of each row of the census."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import Ancestor, CeleryProcess, Census, Kind, Manager
from runbooks.core.errors import Trouble
from runbooks.core.model import NodeState, NotAsked, RunningTask, ServiceState
from runbooks.core.views import HostTotal, WorkerLine
from runbooks.diagnosis.census import SeenBy, table
from runbooks.reports.workers import cells
from runbooks.workers import _line, _totals
from tests.unit.diagnosis.test_census import UNITS, a_node, a_process
from tests.unit.fleets import NOW, make_broker, make_fleet, make_host, make_snapshot, make_state

DOWN = ServiceState(None, None, "stopped")
BEAT = a_process(101, Kind.BEAT, role="beat")


def lines_of(
    *processes: Any,
    nodes: dict[str, NodeState] | None = None,
    answered: frozenset[tuple[str, str]] = frozenset(),
    unasked: NotAsked | None = None,
    **services: ServiceState,
) -> list[WorkerLine]:
    """The lines of a host whose service `high` is pid 100, and beat pid 101, or as is given."""
    fleet = make_fleet(make_host())
    state = make_state(fleet.hosts[0], census=Census(processes, UNITS))
    state = replace(state, services={**state.services, **services})
    broker = make_broker(fleet, nodes=nodes or {}, unasked=unasked)
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    return [_line(row, snapshot, answered) for row in table(fleet, snapshot)]


@pytest.mark.parametrize(
    ("state", "lines"),
    [
        ("answers", lines_of(a_process(), nodes=a_node("high@web1", 100))),
        ("silent", lines_of(a_process())),
        ("runs", lines_of(a_process(), unasked=NotAsked(Trouble.UNREACHABLE, "away", ""))),
        ("stopped", lines_of(replace(a_process(), state="T"))),
        ("stopped", lines_of(replace(a_process(), state="t"))),
        ("left over", lines_of(a_process(300, Kind.CHILD, leftover=True), high=DOWN)),
        ("left over", lines_of(a_process(300, Kind.EMBEDDED_BEAT, leftover=True), high=DOWN)),
        ("unclear", lines_of(a_process(300, Kind.UNCLEAR), high=DOWN)),
        ("not running", lines_of(high=DOWN)),
        ("starting", lines_of(high=replace(DOWN, starting=True))),
        ("unknown", lines_of(high=replace(DOWN, why_unknown="nonsense"))),
        ("runs, process not seen", lines_of(high=ServiceState(7, NOW, "7"))),
        ("another answers", lines_of(high=DOWN, answered=frozenset({("web1", "high")}))),
        ("answers, process not seen", lines_of(nodes=a_node("high@web1", 7))),
        ("answers, process not seen", lines_of(nodes=a_node("other@else", 7), high=DOWN)),
    ],
)
def test_a_worker_is_shown_in_the_state_that_was_seen(state: str, lines: list[WorkerLine]) -> None:
    assert state in [line.state for line in lines]


def test_all_that_is_seen_of_a_worker_is_in_its_line_and_of_a_service_without_a_process_nothing() -> (
    None
):
    process = a_process(
        unit="old.service",
        above=(Ancestor(90, "sh"), Ancestor(80, "tini"), Ancestor(1, "systemd")),
        memory_bytes=5,
        cpu_s=2.0,
    )
    node = a_node(
        "high@web1",
        100,
        pool="prefork",
        pool_size=4,
        holds=frozenset("abcdef"),
        running=(RunningTask("a", "t", None, acknowledged=True),),
        reserved=frozenset("bc"),
        later=frozenset("def"),
        rate_limits={"shop.b": "5/s", "shop.a": "10/m"},
    )
    high, beat = lines_of(process, nodes=node, beat=DOWN)
    assert high == WorkerLine(
        host="web1",
        worker="high@web1",
        service="high",
        state="answers",
        run_by="old.service",
        wrappers=("sh", "tini"),
        pid=100,
        age_s=500.0,
        pool="prefork",
        size=4,
        processes=1,
        queues=("high_q",),
        active=1,
        reserved=2,
        scheduled=3,
        memory_bytes=5,
        cpu_s=2.0,
        broker="127.0.0.1:1/0",
        broker_seen_by="it answers through it",
        rate_limits={"shop.a": "10/m", "shop.b": "5/s"},
        twins=(),
    )
    assert beat == WorkerLine(
        host="web1",
        worker="beat",
        service="beat",
        state="not running",
        run_by=None,
        wrappers=(),
        pid=None,
        age_s=None,
        pool=None,
        size=None,
        processes=0,
        queues=(),
        active=None,
        reserved=None,
        scheduled=None,
        memory_bytes=0,
        cpu_s=0.0,
        broker=None,
        broker_seen_by=None,
        rate_limits={},
        twins=(),
    )


def test_what_is_no_service_or_on_no_host_that_was_checked_is_a_line_without_it() -> None:
    nodes = a_node("stray@elsewhere", 8) | a_node("high@web1", 100)
    lines = lines_of(a_process(), a_process(200), nodes=nodes)
    assert [(line.host, line.worker, line.service) for line in lines] == [
        ("web1", "high@web1", "high"),
        ("web1", "beat", "beat"),
        ("web1", "worker", None),
        (None, "stray@elsewhere", None),
    ]
    (high, *_) = lines
    assert (high.reserved, high.scheduled) == (None, None), "the node was not asked"


@pytest.mark.parametrize(
    ("process", "run_by"),
    [
        (a_process(container="c1" * 32, engine=Manager.DOCKER, inner_pid=1), "container c1c1c1c1c1c1"),
        (a_process(above=(Ancestor(5, "supervisord"),), program="shop:high"), "supervisord (shop:high)"),
        (a_process(), None),
    ],
)  # fmt: skip
def test_what_runs_a_worker_is_its_unit_its_container_or_its_program(
    process: CeleryProcess, run_by: str | None
) -> None:
    assert next(line.run_by for line in lines_of(process) if line.pid == 100) == run_by


def test_a_beat_runs_for_it_never_answers() -> None:
    (beat,) = (line for line in lines_of(BEAT) if line.pid == 101)
    assert (beat.worker, beat.state) == ("beat", "runs")


def test_memory_and_cpu_are_those_of_the_worker_and_what_it_forked() -> None:
    main = a_process(memory_bytes=5, cpu_s=2.0)
    child = a_process(110, Kind.CHILD, parent=100, memory_bytes=3, cpu_s=1.0)
    (high, *_) = lines_of(main, child)
    assert (high.processes, high.memory_bytes, high.cpu_s) == (2, 8, 3.0)


def test_queues_and_tasks_are_the_nodes_own_report_else_the_queues_of_its_command_line() -> None:
    process = a_process()
    process = replace(process, options=replace(process.options, queues=("typed",)))
    (silent, *_) = lines_of(process)
    assert (silent.queues, silent.size, silent.active) == (("typed",), None, None)
    running = (RunningTask("id-1", "t", None, acknowledged=True),)
    (high, *_) = lines_of(process, nodes=a_node("high@web1", 100, running=running, pool_size=4))
    assert (high.queues, high.size, high.active) == (("high_q",), 4, 1)


def test_twins_have_a_line_each_that_names_the_others_pid_and_both_have_the_report_of_all() -> None:
    twins = a_process(node="high@web1"), a_process(200, node="high@web1")
    both = [
        line
        for line in lines_of(*twins, nodes=a_node("high@web1", 100, 200, twins=2))
        if line.pid in (100, 200)
    ]
    assert [line.queues for line in both] == [("high_q",)] * 2
    assert ["same name as pid" in cells(line)["other facts"] for line in both] == [True, True]
    assert {line.twins for line in both} == {("pid 200 on web1",), ("pid 100 on web1",)}


def test_a_hosts_sums_are_of_this_application_and_count_the_processes_of_others() -> None:
    fleet = make_fleet(make_host(), make_host("web2"))
    here, away = fleet.hosts
    processes = (
        a_process(memory_bytes=5),
        a_process(110, Kind.CHILD, parent=100, memory_bytes=3),
        a_process(200, here=False, memory_bytes=90),
    )
    census = Census(processes, UNITS)
    states = {
        "web1": make_state(here, census=census, clock_ahead_s=(-9.0, -5.0)),
        "web2": make_state(away, census=Census((), {})),
    }
    snapshot = make_snapshot(fleet, broker=make_broker(fleet, nodes={}), hosts=states)
    rows = [row for row in table(fleet, snapshot) if row.of_app is not False]
    assert list(_totals(snapshot, rows)) == [
        HostTotal("web1", 2, 8, 1, clock_ahead_s=-7.0, clock_margin_s=2.0),
        HostTotal("web2", 0, 0, 0, clock_ahead_s=None, clock_margin_s=None),
    ]


def test_the_evidence_for_a_broker_is_in_the_words_of_the_page() -> None:
    assert [one.value for one in SeenBy] == [
        "it answers through it",
        "CLIENT LIST has its connection",
        "its environment or command line names it",
    ]
