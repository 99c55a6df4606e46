"""The worker step: what is started, what is restarted and for which reasons, and what is left to
run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Connection, Kind, Manager, Options, Unit
from runbooks.core.effects import Change, ControlService, SetEnvironment, WriteFile, sha256
from runbooks.core.errors import Trouble
from runbooks.core.fleet import Fleet
from runbooks.core.logged import Event, Logged, ServiceLog
from runbooks.core.model import (
    Block,
    BrokerState,
    Client,
    DropIn,
    FileState,
    Finding,
    NodeState,
    NotAsked,
    OtherRunner,
    ServiceState,
    Severity,
    Snapshot,
    StartedWith,
    Unreachable,
)
from runbooks.core.needs import Needs
from runbooks.core.settings import Worker
from runbooks.diagnosis import services, workers
from runbooks.diagnosis.judge import judge
from runbooks.diagnosis.since_start import changed_since_start, touched_since_start
from runbooks.diagnosis.step import Fixing
from runbooks.diagnosis.steps import worker_step
from tests.unit.fleets import (
    ENV_FILE,
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
)

HOST = make_host(
    workers=(Worker(name="high", queues=("high_q", "mail")), Worker(name="low", queues=("low_q",)))
)
FLEET = make_fleet(HOST)
SET_ENV = Change(
    "web1",
    "environment",
    "set TIMEOUT",
    SetEnvironment(ENV_FILE, {"TIMEOUT": "30"}, {"TIMEOUT": "x"}, "shell"),
)


def plan(
    services: Mapping[str, ServiceState] | None = None,
    nodes: Mapping[str, NodeState | None] | None = None,
    *,
    since: Mapping[str, float] | None = None,
    earlier: Sequence[Change] = (),
    env_changed_at: float = NOW - 1000,
) -> list[str]:
    """The summaries of what is to do when `services` and `nodes` (None: does not answer) are not as
    they should be.
    """
    state = make_state(HOST)
    env_file = replace(state.files[ENV_FILE], changed_at=env_changed_at)
    state = replace(
        state, services={**state.services, **(services or {})}, files={ENV_FILE: env_file}
    )
    broker = make_broker(FLEET)
    merged = {**broker.nodes, **(nodes or {})}
    broker = replace(broker, nodes={name: node for name, node in merged.items() if node})
    before = Fixing("earlier", Needs(0), lambda _: [Finding("x", "x", "x", fix=tuple(earlier))])
    step = worker_step(FLEET, since or {}, (before,))
    return [
        change.summary
        for change in step.plan(make_snapshot(FLEET, broker=broker, hosts={"web1": state}))
    ]


def node(
    *, registered: tuple[str, ...] = TASKS, queues: tuple[str, ...] = ("high_q", "mail")
) -> NodeState:
    return NodeState("high@web1", frozenset(registered), frozenset(queues))


STOPPED = ServiceState(None, None, "stopped")
RUNNING = ServiceState(7, NOW - 500, "7")


def test_workers_that_run_answer_know_their_tasks_and_consume_are_left_alone() -> None:
    assert plan() == []


def test_a_worker_that_knows_and_consumes_more_than_it_must_is_left_alone() -> None:
    assert (
        plan(nodes={"high@web1": node(registered=(*TASKS, "x"), queues=("high_q", "mail", "more"))})
        == []
    )


def test_what_does_not_run_is_started_beat_too_in_the_inventorys_order() -> None:
    stopped = {"beat": STOPPED, "low": STOPPED, "high": STOPPED}
    assert plan(stopped, {"high@web1": None, "low@web1": None}) == [
        "start high: it is not running",
        "start low: it is not running",
        "start beat: it is not running",
    ]


def test_of_a_service_that_has_failed_it_is_reported_what_its_manager_says() -> None:
    failed = replace(STOPPED, answer="loaded, failed (failed)", gave_up=True)
    assert plan({"beat": failed}) == [
        "start beat: it is not running; its manager says: loaded, failed (failed)"
    ]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "does not answer ping"),
        (node(registered=TASKS[:1]), "does not register shop.tasks.ship"),
        (node(queues=("high_q",)), "does not consume mail"),
        (
            node(registered=(), queues=()),
            "does not consume high_q, mail; does not register shop.tasks.bill, shop.tasks.ship",
        ),
    ],
)
def test_a_worker_that_runs_but_does_not_work_is_restarted_with_the_reason(
    found: NodeState | None, why: str
) -> None:
    assert plan(nodes={"high@web1": found}) == [f"restart high: {why}"]


X_CONF = "/etc/systemd/system/celery-worker@high.service.d/x.conf"
OTHER = {"TIMEOUT": sha256(b"x")}


def seen(
    *, same: bool = True, unsure: bool = False, env: str = "TIMEOUT=30\n", x_conf: str = "x"
) -> StartedWith:
    """What a run saw of worker high: all as it is now, but for what is given; an empty drop-in:
    there was none.
    """
    files, drop_ins = {ENV_FILE: sha256(env.encode())}, {X_CONF: x_conf} if x_conf else {}
    return StartedWith(files, drop_ins, frozenset({ENV_FILE, X_CONF} if unsure else ()), same)


ON_ANOTHER = seen(env="TIMEOUT=29\n", x_conf="")


@pytest.mark.parametrize(
    ("started_with", "changes", "changed", "touched"),
    [
        (None, {}, [], [ENV_FILE, X_CONF]),
        (None, {"environment": OTHER}, [ENV_FILE], [X_CONF]),
        (None, {"drop_ins": {X_CONF: DropIn(0.0, "absent")}}, [X_CONF], [ENV_FILE]),
        (seen(), {}, [], []),
        (seen(), {"needs_reload": True}, [], []),
        (seen(), {"drop_ins": {X_CONF: DropIn(NOW - 900, "y")}}, [X_CONF], []),
        (seen(), {"drop_ins": {}}, [X_CONF], []),
        (seen(x_conf=""), {}, [X_CONF], []),
        (seen(env="TIMEOUT=29\n"), {}, [ENV_FILE], []),
        (seen(env="TIMEOUT=29\n"), {"environment": {"TIMEOUT": sha256(b"30")}}, [], []),
        (seen(unsure=True), {}, [], [ENV_FILE, X_CONF]),
        (seen(unsure=True, x_conf="y"), {}, [X_CONF], [ENV_FILE]),
        (seen(same=False), {}, [], []),
        (seen(same=False, x_conf="y"), {}, [], [X_CONF]),
    ],
)
def test_a_file_that_was_written_after_the_start_is_a_reason_only_where_it_is_known_to_say_something_else(
    started_with: StartedWith | None,
    changes: dict[str, Any],
    changed: list[str],
    touched: list[str],
) -> None:
    host = make_host(service_manager="systemd", commands=None)
    state = make_state(host)
    high = replace(RUNNING, started_with=started_with, drop_ins={X_CONF: DropIn(NOW - 400, "x")})
    files = {ENV_FILE: replace(state.files[ENV_FILE], changed_at=NOW - 400)}
    state = replace(
        state, services={**state.services, "high": replace(high, **changes)}, files=files
    )
    assert changed_since_start(host, "high", state) == changed
    assert touched_since_start(host, "high", state) == touched


@pytest.mark.parametrize("before", [b"Nice=5\n", b"Nice=1\n"])
def test_a_unit_that_was_installed_after_the_start_is_a_reason_where_it_says_something_else(
    before: bytes,
) -> None:
    host = make_host(service_manager="systemd", commands=None)
    state, unit = make_state(host), host.unit_path("high")
    started_with = StartedWith({unit: sha256(before)}, {}, frozenset(), same=True)
    high = replace(RUNNING, started_with=started_with, environment={"TIMEOUT": sha256(b"30")})
    files = {**state.files, unit: FileState(b"Nice=5\n", 0o644, NOW - 10)}
    state = replace(state, services={**state.services, "high": high}, files=files)
    expected = [unit] if before != b"Nice=5\n" else []
    assert changed_since_start(host, "high", state) == expected


def test_a_service_older_than_its_environment_file_is_restarted_beat_too() -> None:
    old = {name: replace(RUNNING, started_with=ON_ANOTHER) for name in ("high", "beat")}
    young = {"low": replace(RUNNING, started_at=NOW - 5)}
    why = f"has been running since before {ENV_FILE} changed"
    assert plan(old | young, env_changed_at=NOW - 10) == [
        f"restart high: {why}",
        f"restart beat: {why}",
    ]


def test_a_file_that_an_earlier_step_is_about_to_write_is_a_reason() -> None:
    assert [line.split(":")[0] for line in plan(earlier=[SET_ENV])] == [
        "restart high",
        "restart low",
        "restart beat",
    ]
    assert (
        plan(earlier=[replace(SET_ENV, do=WriteFile("/etc/cron.d/x", b"", 0o644, "absent"))]) == []
    )


def test_what_is_not_running_is_started_and_not_restarted_even_after_a_change() -> None:
    assert (
        plan({"low": STOPPED}, {"low@web1": None}, earlier=[SET_ENV], since={"web1": NOW})[1]
        == "start low: it is not running"
    )


def test_a_restart_that_was_asked_for_is_done_once() -> None:
    assert plan(since={"web1": NOW - 400}) == [
        "restart high: a restart was requested",
        "restart low: a restart was requested",
        "restart beat: a restart was requested",
    ]
    assert plan(since={"web1": NOW - 500}) == []
    assert plan(since={"web2": NOW}) == []


def test_all_reasons_are_reported_together() -> None:
    high = {"high": replace(RUNNING, started_with=ON_ANOTHER)}
    (line, *_) = plan(high, {"high@web1": None}, since={"web1": NOW}, env_changed_at=NOW)
    assert (
        line
        == f"restart high: has been running since before {ENV_FILE} changed; a restart was requested; does"
        " not answer ping"
    )


def test_undo_stops_what_was_started_and_restarts_what_was_restarted() -> None:
    state = make_state(HOST)
    state = replace(state, services={**state.services, "low": STOPPED})
    broker = make_broker(FLEET)
    broker = replace(broker, nodes={})
    step = worker_step(FLEET, {})
    effects: list[Any] = [
        (c.do, c.undo)
        for c in step.plan(make_snapshot(FLEET, broker=broker, hosts={"web1": state}))
    ]
    assert effects == [
        (ControlService("high", "restart"), ControlService("high", "restart")),
        (ControlService("low", "start"), ControlService("low", "stop")),
    ]


def test_a_host_that_does_not_answer_is_left_out() -> None:
    snapshot = make_snapshot(FLEET, hosts={"web1": Unreachable("gone")})
    assert worker_step(FLEET, {}).plan(snapshot) == ()


def test_a_missing_environment_file_makes_no_worker_outdated() -> None:
    state = replace(make_state(HOST), files={ENV_FILE: FileState(None)})
    step = worker_step(FLEET, {})
    assert step.plan(make_snapshot(FLEET, hosts={"web1": state})) == ()


def silent_solo(connections: tuple[int, ...] | None, *options: str) -> list[str]:
    """What is to do where a worker with these options runs and does not answer."""
    host = make_host(
        workers=(Worker(name="high", queues=("high_q",), options=options),), beat=False
    )
    fleet = make_fleet(host)
    broker = make_broker(fleet, nodes={}, consumer_ages_s=connections)
    return [
        change.summary
        for change in worker_step(fleet, {}).plan(make_snapshot(fleet, broker=broker))
    ]


@pytest.mark.parametrize(
    "options", [("--pool=solo",), ("-P", "solo"), ("-Psolo", "-O", "fair"), ("--pool", "solo")]
)
def test_a_solo_worker_that_is_silent_during_a_task_is_left_to_it(options: tuple[str, ...]) -> None:
    assert silent_solo((400,), *options) == []
    assert silent_solo(None, *options) == []


def test_a_silent_solo_worker_without_a_connection_that_takes_messages_is_restarted() -> None:
    assert silent_solo((), "--pool=solo") == ["restart high: does not answer ping"]


@pytest.mark.parametrize("options", [("--pool=threads",), (), ("--pool=prefork", "--queues=solo")])
def test_a_silent_worker_of_another_pool_is_restarted(options: tuple[str, ...]) -> None:
    assert silent_solo((400,), *options) == ["restart high: does not answer ping"]


def deaf(
    ages_s: Mapping[str, float], connections: tuple[float, ...], silent: tuple[str, ...] = ()
) -> list[str]:
    """What is to do where workers of these ages run on a host each, and these connections take
    messages.
    """
    hosts = [make_host(name, beat=False) for name in ages_s]
    fleet = make_fleet(*hosts)
    states = {
        host.name: make_state(
            host, services={"high": ServiceState(7, NOW - ages_s[host.name], "7")}
        )
        for host in hosts
    }
    old = {
        name: replace(state, files={ENV_FILE: FileState(b"TIMEOUT=30\n", 0o640, 0)})
        for name, state in states.items()
    }
    broker = make_broker(fleet, consumer_ages_s=connections)
    broker = replace(
        broker, nodes={name: node for name, node in broker.nodes.items() if name not in silent}
    )
    snapshot = make_snapshot(fleet, broker=broker, hosts=old)
    return [f"{change.host}: {change.summary}" for change in worker_step(fleet, {}).plan(snapshot)]


def test_a_young_worker_that_is_silent_makes_no_older_one_unseen() -> None:
    ages = {"web1": 5.0, "web2": 500.0, "web3": 900.0}
    assert deaf(ages, (499, 899), ("high@web1",)) == ["web1: restart high: does not answer ping"]


def test_where_one_of_several_is_deaf_and_no_one_knows_which_all_are_left_to_run() -> None:
    assert deaf({"web1": 5.0, "web2": 500.0, "web3": 900.0}, (4, 899)) == []


def test_a_worker_older_than_no_connection_that_takes_messages_has_none() -> None:
    why = "restart high: the broker sees no connection from it that takes messages"
    assert deaf({"web1": 5.0, "web2": 500.0}, (499,)) == [f"web1: {why}"]
    assert deaf({"web1": 5.0, "web2": 500.0}, ()) == [f"web1: {why}", f"web2: {why}"]


def test_two_silent_solo_workers_with_one_connection_are_both_left_alone() -> None:
    names = ("high", "low")
    workers = tuple(Worker(name=name, queues=("q",), options=("--pool=solo",)) for name in names)
    fleet = make_fleet(make_host(workers=workers, beat=False))
    broker = make_broker(fleet, nodes={}, consumer_ages_s=(400,))
    assert worker_step(fleet, {}).plan(make_snapshot(fleet, broker=broker)) == ()


def faults_of(fleet: Fleet, snapshot: Snapshot) -> list[Finding]:
    return [*workers.faults(fleet, snapshot), *services.faults(fleet, snapshot)]


def silent(service: ServiceState, clients: Sequence[Client] = (), **changes: Any) -> Finding:
    """What is found of a service that runs, while no node answers and the broker has these clients."""
    state = make_state(HOST, services={**make_state(HOST).services, "high": service}, **changes)
    seen = make_broker(FLEET, nodes={}, clients=tuple(clients))
    snapshot = make_snapshot(FLEET, broker=seen, hosts={"web1": state})
    found = {
        one.subject: one
        for one in services.at_work(FLEET, snapshot, {})
        if one.code == "worker.not_answering"
    }
    return found["high@web1"]


@pytest.mark.parametrize(
    ("event", "age_s", "why"),
    [
        (Event.NO_CONNECTION, 20, "it cannot reach its broker"),
        (Event.NO_CONNECTION, 300, ""),
        (Event.NO_ANSWER, 20, ""),
    ],
)
def test_a_silence_that_its_log_explains_is_reported_and_restarted_only_where_that_helps(
    event: Event, age_s: float, why: str
) -> None:
    line = Logged(event, "", 1, "what it said", NOW - age_s, NOW - age_s)
    finding = silent(
        ServiceState(
            101, NOW - 500, "", log=ServiceLog(NOW - 500, (line,)), last_lines=("the last",)
        )
    )
    assert bool(finding.fix) is not bool(why)
    assert why in finding.summary
    assert any("what it said" in one for one in finding.evidence)
    assert "  the last" in finding.evidence


@pytest.mark.parametrize(
    ("connections", "expected"),
    [
        ((), "it has no connection to port 1 of the broker"),
        (
            (Connection("10.0.0.5:40", "10.0.0.1:1"),),
            "CLIENT LIST has none of its connections to port 1: 10.0.0.5:40",
        ),
        (
            (Connection("10.0.0.5:41", "10.0.0.1:1"),),
            "CLIENT LIST has its connection from 10.0.0.5:41",
        ),
    ],
)
def test_a_silent_worker_is_reported_with_its_connection_and_its_loop(
    connections: tuple[Connection, ...], expected: str
) -> None:
    options = Options("worker", "shop", node="high@web1", pool="gevent")
    main = CeleryProcess(101, 1, NOW - 500, "S", Kind.MAIN, options, 1, connections=connections)
    client = Client("10.0.0.5:41", 0, takes_messages=True, to="10.0.0.1:1")
    finding = silent(ServiceState(101, NOW - 500, ""), [client], census=Census((main,)))
    assert expected in finding.evidence
    assert any(line.startswith("its pool is gevent") for line in finding.evidence)


@pytest.mark.parametrize(
    ("clients", "dead"),
    [
        ((), True),
        ((Client("10.0.0.5:40", 0, takes_messages=False, to="10.0.0.1:1"),), False),
        ((Client("192.0.2.1:40", 0, takes_messages=True, to="10.0.0.1:1"),), False),
    ],
    ids=["the broker has none", "it has one", "it may be behind NAT"],
)
def test_a_worker_at_dead_connections_is_reported_as_that_and_restarted(
    clients: tuple[Client, ...], dead: bool
) -> None:
    to_broker = (Connection("10.0.0.5:40", "10.0.0.1:1"),)
    main = CeleryProcess(
        101, 1, NOW - 500, "S", Kind.MAIN, Options("worker", "shop"), 1, connections=to_broker
    )
    finding = silent(ServiceState(101, NOW - 500, ""), clients, census=Census((main,)))
    assert ("it waits at dead connections" in finding.summary) is dead
    assert finding.fix


@pytest.mark.parametrize(("idle_s", "fixed"), [(12.0, False), (1.0, True)])
def test_a_loop_that_a_task_holds_is_not_restarted(idle_s: float, fixed: bool) -> None:
    options = Options("worker", "shop", node="high@web1", pool="gevent")
    to_broker = (Connection("10.0.0.5:41", "10.0.0.1:1"),)
    main = CeleryProcess(101, 1, NOW - 500, "R", Kind.MAIN, options, 1, connections=to_broker)
    client = Client("10.0.0.5:41", 0, takes_messages=True, to="10.0.0.1:1", idle_s=idle_s)
    finding = silent(ServiceState(101, NOW - 500, ""), [client], census=Census((main,)))
    assert bool(finding.fix) is fixed
    assert (
        "a task blocks its gevent loop, which has asked Redis for nothing for 12 s"
        in finding.summary
    ) is not fixed


def test_a_worker_that_was_told_to_end_is_left_to_it() -> None:
    line = Logged(Event.ENDS, "", 1, "worker: Warm shutdown (MainProcess)", NOW - 60, NOW - 60)
    finding = silent(ServiceState(101, NOW - 500, "", log=ServiceLog(NOW - 500, (line,))))
    assert not finding.fix
    assert "it was asked to stop at" in finding.summary
    assert "finishes its running tasks before it ends" in finding.summary


@pytest.mark.parametrize(
    ("ahead_s", "broker_s", "expected"),
    [
        ((299.0, 301.0), 0.0, "the clock of web1 is 4 min 59 s ahead of the broker's"),
        ((-301.0, -299.0), 0.0, "the clock of web1 is 4 min 59 s behind the broker's"),
        ((-301.0, -299.0), 300.0, ""),
        ((-30.0, 90.0), 0.0, ""),
        ((60.0, 65.0), 0.0, ""),
        ((61.0, 65.0), 0.0, "the clock of web1 is 1 min 1 s ahead of the broker's"),
    ],
    ids=[
        "ahead",
        "behind",
        "this machine is off, not it",
        "it took long to answer",
        "a minute",
        "more",
    ],
)
def test_a_hosts_clock_is_held_against_the_brokers(
    ahead_s: tuple[float, float], broker_s: float, expected: str
) -> None:
    state = make_state(HOST, clock_ahead_s=ahead_s)
    snapshot = make_snapshot(
        FLEET, broker=make_broker(FLEET, clock_ahead_s=broker_s), hosts={"web1": state}
    )
    reported = [one for one in faults_of(FLEET, snapshot) if one.code == "host.clock"]
    assert [one.summary for one in reported] == [expected] * bool(expected)
    assert all(one.evidence[-1].startswith("timedatectl on web1") for one in reported)


def test_without_a_broker_a_hosts_clock_is_held_against_this_machines() -> None:
    state = make_state(HOST, clock_ahead_s=(299.0, 301.0))
    away = BrokerState.not_seen(NotAsked(Trouble.UNREACHABLE, "it is away", "wait"))
    snapshot = make_snapshot(FLEET, broker=away, hosts={"web1": state})
    (finding,) = [one for one in judge(FLEET, snapshot, {}) if one.code == "host.clock"]
    assert finding.summary == "the clock of web1 is 4 min 59 s ahead of this machine's"


def test_a_worker_that_asks_another_kind_of_broker_is_reported_which() -> None:
    text = "Cannot connect to amqp://guest:**@127.0.0.1:5672//: [Errno 111] Connection refused."
    line = Logged(Event.NO_CONNECTION, "", 9, text, NOW - 60, NOW - 5)
    finding = silent(ServiceState(101, NOW - 500, "", log=ServiceLog(NOW - 500, (line,))))
    assert "it connects to amqp://guest:**@127.0.0.1:5672//, Celery's default if" in finding.summary


def test_a_worker_that_has_reached_its_broker_again_is_not_said_not_to() -> None:
    lost = Logged(Event.NO_CONNECTION, "", 1, "Cannot connect to redis", NOW - 20, NOW - 20)
    back = Logged(Event.CONNECTED, "", 1, "Connected to redis", NOW - 20, NOW - 20)
    for events in ((lost, back), (back, lost)):
        assert silent(ServiceState(101, NOW - 500, "", log=ServiceLog(NOW - 500, events))).fix


def test_a_crash_loop_that_is_seen_while_the_worker_runs_is_reported_as_that() -> None:
    host = make_host(service_manager="systemd", commands=None)
    fleet, unit = make_fleet(host), "celery-worker@high.service"
    for restarts, age_s, loops in ((7, 4, True), (7, 400, False), (1, 4, False)):
        census = Census(units={unit: Unit(unit, restarts=restarts)})
        its = {**make_state(host).services, "high": ServiceState(101, NOW - age_s, "")}
        state = make_state(host, services=its, census=census)
        snapshot = make_snapshot(fleet, broker=make_broker(fleet, nodes={}), hosts={"web1": state})
        [finding] = (
            one
            for one in services.at_work(fleet, snapshot, {})
            if one.code == "worker.not_answering"
        )
        assert ("was restarted 7 times" in finding.summary) is loops
        assert bool(finding.fix) is not loops


@pytest.mark.parametrize(
    "broker",
    [
        {"maxmemory_bytes": 100, "used_memory_bytes": 101},
        {"uptime_s": 5.0},
        {"unheard": True},
    ],
)
def test_silence_that_proves_nothing_is_not_a_reason_for_a_restart(
    broker: Mapping[str, Any],
) -> None:
    fleet = make_fleet(make_host(beat=False))
    snapshot = make_snapshot(fleet, broker=make_broker(fleet, nodes={}, **broker))
    assert worker_step(fleet, {}).plan(snapshot) == ()
    assert worker_step(fleet, {"web1": NOW - 600}).plan(snapshot), (
        "a restart is not proved by silence"
    )
    assert worker_step(fleet, {}).lacking(snapshot), (
        "nor is a start, or a restart for another reason"
    )
    [found] = [one for one in faults_of(fleet, snapshot) if one.code == "worker.not_answering"]
    assert found.remedy is None
    assert "proves nothing" in found.summary


def test_a_worker_that_is_being_stopped_is_left_to_it() -> None:
    stopping = replace(RUNNING, answer="loaded, deactivating (stop-sigterm)")
    assert plan({"high": stopping}, {"high@web1": None}) == []


@pytest.mark.parametrize("runs", ["worker high@web1", "worker high@%h", "worker high@web1 -B"])
def test_a_service_whose_work_another_unit_does_is_not_started(runs: str) -> None:
    fleet = make_fleet(make_host(beat=False))
    state = make_state(fleet.hosts[0], services={"high": STOPPED})
    other = OtherRunner(
        "celery.service", {9: runs}, Manager.SYSTEMD, "/etc/systemd/system/celery.service"
    )
    snapshot = make_snapshot(
        fleet, broker=make_broker(fleet, nodes={}), hosts={"web1": replace(state, others=(other,))}
    )
    blocks = [block for one in faults_of(fleet, snapshot) for block in one.blocks]
    assert Block("web1", "high") in blocks


def test_a_worker_of_which_its_status_says_nothing_is_not_reported_as_another_beside_itself() -> (
    None
):
    fleet = make_fleet(make_host(beat=False))
    unknown = replace(STOPPED, why_unknown="its status command ended with exit code 4")
    runs = OtherRunner("process 9", {9: "worker high@web1"}, None)
    state = replace(make_state(fleet.hosts[0], services={"high": unknown}), others=(runs,))
    assert [one.code for one in faults_of(fleet, make_snapshot(fleet, hosts={"web1": state}))] == [
        "service.untold"
    ]


def test_a_service_whose_node_answers_is_not_started() -> None:
    fleet = make_fleet(make_host(beat=False))
    snapshot = make_snapshot(
        fleet, hosts={"web1": make_state(fleet.hosts[0], services={"high": STOPPED})}
    )
    [found] = faults_of(fleet, snapshot)
    assert found.code == "service.runs_elsewhere"
    assert found.blocks == (Block("web1", "high"),)
    assert found.evidence == (
        "inspect ping: high@web1 answers; end that worker, or give it another name with -n",
    )


@pytest.mark.parametrize("runs", ["beat", "worker w1@web1 -B"])
def test_a_beat_is_not_started_beside_another(runs: str) -> None:
    fleet = make_fleet()
    state = make_state(fleet.hosts[0])
    other = OtherRunner(
        "celerybeat.service", {9: runs}, Manager.SYSTEMD, "/etc/systemd/system/celerybeat.service"
    )
    state = replace(state, services={**state.services, "beat": STOPPED}, others=(other,))
    found = faults_of(fleet, make_snapshot(fleet, hosts={"web1": state}))
    assert Block("web1", "beat") in [block for one in found for block in one.blocks]


def test_a_beat_is_not_started_while_another_units_runs_on_another_host() -> None:
    fleet = make_fleet(make_host(), make_host("web2", beat=False))
    first, second = (make_state(host) for host in fleet.hosts)
    other = OtherRunner(
        "celerybeat.service", {9: "beat"}, Manager.SYSTEMD, "/etc/systemd/system/celerybeat.service"
    )
    first = replace(first, services={**first.services, "beat": STOPPED})
    found = faults_of(
        fleet, make_snapshot(fleet, hosts={"web1": first, "web2": replace(second, others=(other,))})
    )
    (finding,) = (one for one in found if one.code == "service.runs_elsewhere")
    assert finding.blocks == (Block("web1", "beat"),)
    assert "celerybeat.service on web2" in finding.evidence[0]
    end = "end it on web2: sudo systemctl disable --now celerybeat.service"
    assert end in finding.evidence
    assert "beat.not_running" not in [one.code for one in found]


@pytest.mark.parametrize(("consumes", "blocked"), [({"high_q", "low_q"}, True), ({"low_q"}, False)])
def test_a_worker_is_not_started_beside_another_units_at_all_its_queues(
    consumes: set[str], blocked: bool
) -> None:
    fleet = make_fleet(make_host(beat=False))
    other = OtherRunner(
        "celery.service",
        {9: "worker w1@web1"},
        Manager.SYSTEMD,
        "/etc/systemd/system/celery.service",
        forking=True,
    )
    state = replace(make_state(fleet.hosts[0], services={"high": STOPPED}), others=(other,))
    w1 = NodeState("w1@web1", frozenset(fleet.app.expected_tasks), frozenset(consumes))
    broker = make_broker(fleet, nodes={"w1@web1": w1})
    found = faults_of(fleet, make_snapshot(fleet, broker=broker, hosts={"web1": state}))
    assert (Block("web1", "high") in [block for one in found for block in one.blocks]) is blocked


def test_nothing_of_a_name_that_several_answer_to_is_restarted() -> None:
    fleet = make_fleet(make_host(beat=False))
    broker = make_broker(fleet)
    broker = replace(
        broker, nodes={name: replace(one, twins=2) for name, one in broker.nodes.items()}
    )
    [found] = [
        one
        for one in faults_of(fleet, make_snapshot(fleet, broker=broker))
        if one.code == "worker.twins"
    ]
    assert found.blocks == (Block("web1", "high"),)
    assert any("-n " in line for line in found.evidence)


def test_twins_are_reported_with_their_processes_and_who_runs_each() -> None:
    fleet = make_fleet(make_host(beat=False))
    broker = make_broker(fleet)
    broker = replace(
        broker, nodes={name: replace(one, twins=2) for name, one in broker.nodes.items()}
    )
    options = Options("worker", "shop", "high@web1")
    mains = [
        CeleryProcess(pid, 4000, NOW - 120, "S", Kind.MAIN, options, 1, unit=unit)
        for pid, unit in ((7, ""), (8, "old.service"), (9, "session-3.scope"))
    ]
    units = {"old.service": Unit("old.service", names_celery=True)}
    state = make_state(fleet.hosts[0], census=Census(tuple(mains), units))
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    [found] = [one for one in faults_of(fleet, snapshot) if one.code == "worker.twins"]
    assert [line for line in found.evidence if line.startswith("seen:")] == [
        "seen: pid 7 on web1; it has been running for 2 min",
        "seen: pid 8 on web1, which old.service runs; it has been running for 2 min",
        "seen: pid 9 on web1, in session-3.scope; it has been running for 2 min",
    ]
    assert [line for line in found.evidence if line.startswith("to end")] == [
        "to end pid 7, on web1: sudo kill -TERM 7",
        "to end pid 8, on web1: sudo systemctl disable --now old.service",
        "to end pid 9, on web1: sudo kill -TERM 9",
    ]


@pytest.mark.parametrize(
    ("pids", "answering", "proves"),
    [
        ({7: 7, 8: 8}, {7}, True),
        ({7: 7, 8: 8}, {8}, True),  # below a launcher
        ({7: 1}, {1}, True),  # in a container
        ({7: 7, 8: 8}, {99}, False),
        ({7: 7}, set(), True),  # no one answered
        ({}, {99}, True),
    ],
)
def test_only_an_answer_of_the_services_own_process_proves_a_restart(
    pids: dict[int, int], answering: set[int], proves: bool
) -> None:
    fleet = make_fleet(make_host(beat=False))
    broker = make_broker(fleet)
    broker = replace(
        broker,
        nodes={name: replace(one, pids=frozenset(answering)) for name, one in broker.nodes.items()},
    )
    state = make_state(fleet.hosts[0], services={"high": replace(RUNNING, pids=pids)})
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    lacking = [change.summary for change in worker_step(fleet, {"web1": NOW - 600}).plan(snapshot)]
    assert lacking == (
        []
        if proves
        else ["restart high: pid 99 answers in its name, and is not one of its processes"]
    )
    blocks = [(one.code, one.blocks) for one in faults_of(fleet, snapshot)]
    assert blocks == ([] if proves else [("worker.answered_by_another", (Block("web1", "high"),))])


def test_of_a_worker_in_whose_name_another_process_answers_nothing_else_is_reported() -> None:
    fleet = make_fleet(make_host(beat=False))
    other = NodeState("high@web1", frozenset(), frozenset({"else"}), pids=frozenset({99}))
    broker = make_broker(fleet, nodes={other.name: other}, consumer_ages_s=())
    state = make_state(fleet.hosts[0], services={"high": replace(RUNNING, pids={7: 7})})
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    (finding,) = services.faults(fleet, snapshot)
    assert finding.code == "worker.answered_by_another"
    assert finding.evidence == (
        "inspect stats: pid 99; high is pid 7",
        "end the other one, or give it another name with -n; if the worker was just restarted,"
        " diagnose again",
    )


@pytest.mark.parametrize("option", ["-B", "--beat", "-EB", "-Bs/tmp/schedule"])
def test_a_worker_with_a_beat_and_beat_are_not_started_beside_each_other(option: str) -> None:
    bundled = make_host(
        "web2", workers=(Worker(name="high", queues=("high_q",), options=(option,)),), beat=False
    )
    fleet = make_fleet(make_host(), bundled)
    first, second = (make_state(host) for host in fleet.hosts)
    down = {"web1": replace(first, services={**first.services, "beat": STOPPED}), "web2": second}
    found = faults_of(fleet, make_snapshot(fleet, hosts=down))
    (twice,) = (one for one in found if one.code == "service.runs_elsewhere")
    assert twice.blocks == (Block("web1", "beat"),)
    assert "so there is a beat already: remove one of the two" in twice.evidence[0]
    nodes = {name: node for name, node in make_broker(fleet).nodes.items() if name != "high@web2"}
    down = {"web1": first, "web2": replace(second, services={"high": STOPPED})}
    found = faults_of(
        fleet, make_snapshot(fleet, broker=make_broker(fleet, nodes=nodes), hosts=down)
    )
    assert [one.blocks for one in found if one.code == "service.runs_elsewhere"] == [
        (Block("web2", "high"),)
    ]


@pytest.mark.parametrize(
    ("environment", "outdated"),
    [
        ({"TIMEOUT": "30", "PATH": "/usr/bin"}, False),
        ({"TIMEOUT": "31"}, True),
        ({"TIMEOUT": "30", "NOT_IN_THE_FILE": "1"}, None),
        ({}, True),
        (None, None),
    ],
)
def test_an_environment_file_that_says_what_the_service_was_started_with_is_not_a_reason_to_restart(
    environment: dict[str, str] | None, outdated: bool | None
) -> None:
    host = make_host(service_manager="systemd", commands=None)
    seen = make_state(host)
    digests = (
        None
        if environment is None
        else {name: sha256(value.encode()) for name, value in environment.items()}
    )
    services = {**seen.services, "high": replace(seen.services["high"], environment=digests)}
    files = {
        ENV_FILE: replace(seen.files[ENV_FILE], changed_at=NOW - 10)
    }  # touched after the start
    state = replace(seen, services=services, files=files)
    assert changed_since_start(host, "high", state) == [ENV_FILE] * (outdated is True)
    assert touched_since_start(host, "high", state) == [ENV_FILE] * (outdated is None)


@pytest.mark.parametrize("pending", [True, False])
def test_a_restart_whose_worker_still_runs_says_whether_term_is_pending(pending: bool) -> None:
    host = make_host(workers=(), beat=True)
    fleet, seen = make_fleet(host), make_state(host)
    answer = f"loaded, {'deactivating (stop-sigterm)' if pending else 'active (running)'}"
    there = {"beat": replace(seen.services["beat"], answer=answer)}
    snapshot = make_snapshot(fleet, hosts={"web1": replace(seen, services=there)})
    (change,) = worker_step(fleet, {"web1": NOW}).plan(snapshot)
    assert ("systemd sent it TERM" in change.summary) is pending
    (finding,) = services.at_work(fleet, snapshot, {"web1": NOW})
    assert (finding.code, finding.severity) == ("service.restart_asked", Severity.INFO)
    assert list(services.at_work(fleet, snapshot, {})) == [], "it is well"
