"""Over thousands of snapshots, every planned change belongs to a finding, and is planned."""

import random
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from runbooks.core.census import Manager as RunBy
from runbooks.core.effects import Change, Effect, TakeUnacked
from runbooks.core.errors import Trouble
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    BrokerState,
    Finding,
    HostState,
    ImportProbe,
    NodeState,
    NotAsked,
    OtherRunner,
    Process,
    Selection,
    ServiceState,
    Snapshot,
    Unreachable,
)
from runbooks.core.rules import QueueRule
from runbooks.core.settings import Worker
from runbooks.diagnosis.judge import can_be_fixed, is_free, judge
from runbooks.diagnosis.step import Step
from runbooks.diagnosis.steps import (
    environment_step,
    file_steps,
    leaked_step,
    queue_step,
    unit_steps,
    worker_step,
)
from runbooks.diagnosis.wanted_files import MODE, Kind, Wanted
from tests.unit.fleets import (
    ENV_FILE,
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_queue,
    make_snapshot,
    make_state,
)

WORKERS = (
    Worker(name="high", queues=("high_q",)),
    Worker(name="low", queues=("low_q",), options=("-P", "solo")),
)
RULES = (
    QueueRule(reason="too late", queue="high_q", retries=">3"),
    QueueRule(reason="belongs there", queue="low_q", requeue_to="high_q"),
    QueueRule(reason="orphaned", queue="high_q", unacked=True),
)
CRON = "/etc/cron.d/celery-shop"
PATHS = {
    "unit": ("/etc/systemd/system/celery-worker@high.service", "/etc/systemd/system/celery-worker@low.service",
             "/etc/systemd/system/celery-beat.service"),
    "cron": (CRON,),
    "timer": ("/etc/systemd/system/celery-cron-shop-1.service", "/etc/systemd/system/celery-cron-shop-1.timer"),
    "logrotate": ("/etc/logrotate.d/celery-shop",),
}  # fmt: skip

LOOKS = 2000


class Draw(random.Random):
    """Draws what is wrong with a fleet; one number makes it again."""

    def maybe(self) -> bool:
        return self.random() < 0.5


def services(draw: Draw, systemd: bool) -> ServiceState:
    if not draw.choice([True, True, True, False]):
        return draw.choice(
            [
                ServiceState(None, None, "stopped"),
                ServiceState(None, None, "loaded, failed (failed)", gave_up=True),
                ServiceState(None, None, "loaded, activating (start)", starting=systemd),
                ServiceState(None, None, "loaded, inactive", masked=systemd),
            ]
        )
    return ServiceState(
        draw.randint(100, 120),
        NOW - draw.choice([10.0, 500.0, 5000.0]),
        draw.choice(["active", "loaded, deactivating (stop-sigterm)"]),
        enabled=draw.maybe() if systemd else False,
        needs_reload=draw.maybe() if systemd else False,
        leaked=(Process(7, 1, "celery"),) if systemd and draw.choice([False, False, True]) else (),
    )


def hosts(
    draw: Draw, fleet: Fleet, name: str, wanted: Mapping[Kind, Wanted]
) -> HostState | Unreachable:
    if draw.choice([False] * 9 + [True]):
        return Unreachable("gone")
    host = next(host for host in fleet.hosts if host.name == name)
    file = [b"wanted\n", b"edited\n", b"", None]
    contents: dict[str, bytes | None] = {
        path: draw.choice(file) for files in wanted.values() for path in files[name]
    }
    environment = draw.choice(
        [b"TIMEOUT=30\n", b"TIMEOUT=thirty\n", None, b"TIMEOUT=http://:pw@h\n"]
    )
    contents[ENV_FILE] = environment
    changed_at = NOW - draw.choice([1.0, 1000.0, 9000.0])
    systemd = host.manager.starts_from_units
    good = ImportProbe(frozenset(TASKS), {})
    broken = ImportProbe(frozenset(), {"shop.tasks": "Traceback\nValueError: no"})
    now = draw.choice([None, good, broken, ImportProbe(frozenset(), {}, failed="no Python there")])
    return HostState(
        NOW,
        {path: _file(content, changed_at) for path, content in contents.items()},
        {service: services(draw, systemd) for service in host.services},
        managed={
            path: _file(b"x", changed_at)
            for path in (CRON, PATHS["unit"][0], PATHS["timer"][1])
            if draw.maybe()
        },
        lacks_cron=systemd and draw.maybe(),
        timers=(
            {"celery-cron-shop-1.timer": services(draw, systemd)}
            if systemd and draw.maybe()
            else {}
        ),
        stale={"old": services(draw, systemd)} if systemd and draw.maybe() else {},
        imports_now=now,
        imports_wanted=(
            draw.choice([now, good]) if now and environment in (None, b"TIMEOUT=thirty\n") else now
        ),
        others=(
            (OtherRunner("celery.service", {9: "worker high@web1"}, RunBy.SYSTEMD),)
            if draw.maybe()
            else ()
        ),
    )


def _file(content: bytes | None, changed_at: float) -> Any:
    from runbooks.core.model import FileState

    return FileState(
        content, MODE if content is not None else 0, changed_at if content is not None else 0.0
    )


def looks(draw: Draw) -> tuple[Fleet, Snapshot, Mapping[Kind, Wanted]]:
    """A fleet of two hosts, one under systemd, with anything wrong in it."""
    managers: list[dict[str, Any]] = [{"service_manager": "systemd", "commands": None}, {}]
    fleet = make_fleet(
        *(
            make_host(f"web{n}", workers=WORKERS, **manager)
            for n, manager in enumerate(managers, 1)
        ),
        queue_rules=RULES,
    )
    wanted: dict[Kind, Wanted] = {
        kind: {
            host.name: dict.fromkeys(PATHS[kind], b"wanted\n") if draw.maybe() else {}
            for host in fleet.hosts
        }
        for kind in ("unit", "cron", "timer", "logrotate")
    }
    selection: list[tuple[Selection, ...]] = [(), (Selection("too late", 3, {TASKS[0]: 3}),)]
    moved: list[tuple[Selection, ...]] = [
        (),
        (Selection("belongs there", 2, {TASKS[1]: 2}, to="high_q"),),
    ]
    queues = {
        name: make_queue(
            name,
            draw.choice([0, 9, 90_000]),
            selected=draw.choice(moved if name == "low_q" else selection),
            unacked=draw.choice(selection) if name == "high_q" else (),
            aside=draw.choice([0, 4]),
            malformed=Selection("malformed", draw.choice([0, 2]), {}),
        )
        for name in ("high_q", "low_q")
    }
    queues_of = {"high": frozenset({"high_q"}), "low": frozenset({"low_q"})}
    nodes = {
        name: NodeState(
            name,
            frozenset(draw.choice([TASKS, TASKS[:1], ()])),
            draw.choice([queues_of[name.partition("@")[0]], frozenset()]),
            twins=draw.choice([1, 1, 1, 2]),
            holds=frozenset(),
        )
        for host in fleet.hosts
        for name in (host.node(worker) for worker in host.settings.workers)
        if draw.choice([True, True, False])
    }
    broker = make_broker(
        fleet,
        queues=queues,
        nodes=nodes,
        consumer_ages_s=draw.choice([None, (), (3, 400), (3, 9, 400, 4000, 4000)]),
        unasked=draw.choice([None, None, NotAsked(Trouble.CANNOT_SAVE, "no disk", "free it")]),
    )
    if draw.choice([False, False, False, True]):
        broker = BrokerState.not_seen(NotAsked(Trouble.LOADING, "it loads", "wait"))
    states = {host.name: hosts(draw, fleet, host.name, wanted) for host in fleet.hosts}
    return fleet, make_snapshot(fleet, broker=broker, hosts=states), wanted


def all_steps(fleet: Fleet, wanted: Mapping[Kind, Wanted]) -> tuple[Step, ...]:
    loaded = (environment_step(fleet), *unit_steps(fleet, wanted["unit"]))
    return (
        *loaded,
        *file_steps(fleet, wanted),
        queue_step(fleet),
        leaked_step(fleet),
        worker_step(fleet, {}, loaded),
    )


def effects(changes: Any) -> set[tuple[str, str]]:
    return {(change.host, repr(_comparable(change.do))) for change in changes}


def _comparable(effect: Effect) -> Effect:
    return replace(effect, stopped=()) if isinstance(effect, TakeUnacked) else effect


def test_a_plan_is_the_changes_of_the_findings_and_nothing_else() -> None:
    for seed in range(LOOKS):
        fleet, snapshot, wanted = looks(Draw(seed))
        _agree(fleet, snapshot, wanted, seed)


def _agree(fleet: Fleet, snapshot: Snapshot, wanted: Mapping[Kind, Wanted], seed: int) -> None:
    findings: tuple[Finding, ...] = judge(fleet, snapshot, wanted)
    blocks = [block for finding in findings for block in finding.blocks]
    planned: list[Change] = [
        change
        for step in all_steps(fleet, wanted)
        for change in step.plan(snapshot)
        if is_free(change, blocks)
    ]
    fixes = [change for finding in findings for change in finding.fix if is_free(change, blocks)]
    assert effects(planned) == effects(fixes), seed
    assert can_be_fixed(findings) == bool(planned), seed
    for finding in findings:
        assert not finding.remedy or finding.fix, (
            f"{finding.code} promises what no step does ({seed})"
        )
        blocked = all(not is_free(change, blocks) for change in finding.fix)
        assert not finding.fix or finding.remedy or blocked, (
            f"{finding.code} is fixed without a word ({seed})"
        )


# --- where the findings and the plan once said different things

NOTHING: dict[Kind, Wanted] = {"unit": {"web1": {}}, "cron": {"web1": {}}, "timer": {"web1": {}}}


def _judged(code: str, **changes: Any) -> Finding:
    host = make_host(**changes.pop("host", {}))
    fleet = replace(make_fleet(host, queue_rules=RULES), all_nodes=("high@web1",))
    queues = {name: make_queue(name, 9, **changes.get(name, {})) for name in fleet.queues}
    nodes = {
        "high@web1": NodeState(
            "high@web1", frozenset(TASKS), frozenset({"high_q"}), holds=frozenset()
        )
    }
    state = make_state(host, **changes.get("state", {}))
    snapshot = make_snapshot(
        fleet, broker=make_broker(fleet, queues=queues, nodes=nodes), hosts={"web1": state}
    )
    (found,) = [finding for finding in judge(fleet, snapshot, NOTHING) if finding.code == code]
    return found


def test_messages_that_a_rule_moves_are_not_said_to_go_into_the_archive() -> None:
    found = _judged(
        "queue.selected",
        high_q={"selected": (Selection("wrong", 2, {TASKS[1]: 2}, to="low_q\x06\x169"),)},
    )
    assert found.summary == r"2 of 9 messages are to be moved into low_q\x06\x169: wrong"
    assert found.remedy == r"move them into low_q\x06\x169"
    assert [change.summary for change in found.fix] == [
        r"move 2 of 9 messages from high_q into low_q\x06\x169"
    ]


def test_unacked_messages_that_a_rule_means_are_a_finding() -> None:
    found = _judged(
        "queue.unacked_selected", high_q={"unacked": (Selection("orphaned", 2, {TASKS[1]: 2}),)}
    )
    assert [change.summary for change in found.fix] == [
        "archive 2 unacked messages that no node holds from high_q"
    ]


def test_a_disabled_service_that_is_down_is_a_finding_too() -> None:
    down = {
        "high": ServiceState(None, None, "inactive", enabled=False),
        "beat": ServiceState(7, NOW - 5, "7", True),
    }
    found = _judged(
        "unit.not_enabled",
        host={"service_manager": "systemd", "commands": None},
        state={"services": down},
    )
    assert [change.summary for change in found.fix] == ["enable high, so that it starts at boot"]
