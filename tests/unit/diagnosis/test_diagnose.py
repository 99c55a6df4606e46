"""Findings: each appears exactly when its fault is there, with the evidence an operator needs to
believe it.
"""

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.application import Application, RegisteredTask, Route, ScheduleEntry
from runbooks.core.census import Manager
from runbooks.core.command import Command
from runbooks.core.effects import Change, ControlService, Effect, EnableService, ReloadUnits
from runbooks.core.errors import HostTrouble, Trouble
from runbooks.core.fleet import Fleet, mark_of
from runbooks.core.model import (
    Binding,
    Block,
    BrokerState,
    DropIn,
    FileState,
    Finding,
    Form,
    Hoard,
    HostState,
    ImportProbe,
    Lasting,
    NodeState,
    NotAsked,
    OtherRunner,
    ProbeResult,
    QueueState,
    Selection,
    ServiceState,
    Severity,
    StartedWith,
    Stray,
    TaskCount,
    Unreachable,
)
from runbooks.core.rules import QueueRule
from runbooks.core.settings import BrokerOptions, ExpectedQueue, Probe, Worker
from runbooks.diagnosis.judge import can_be_fixed, watch
from runbooks.diagnosis.judge import judge as diagnose
from runbooks.diagnosis.steps import unit_steps
from runbooks.diagnosis.wanted_files import Kind, Wanted
from tests.unit.fleets import (
    ENV_FILE,
    NOW,
    TASKS,
    in_place,
    make_broker,
    make_fleet,
    make_host,
    make_queue,
    make_snapshot,
    make_state,
    nothing_wanted,
)

HOST = make_host()
FLEET = make_fleet(HOST)
UNIT, CRON = "/etc/systemd/system/celery-beat.service", "/etc/cron.d/celery-shop"


def findings(
    fleet: Fleet = FLEET,
    *,
    broker: BrokerState | None = None,
    hosts: Mapping[str, HostState | Unreachable] | None = None,
    units: Mapping[str, bytes] | None = None,
    cron: Mapping[str, bytes] | None = None,
) -> tuple[Finding, ...]:
    snapshot = make_snapshot(fleet, broker=broker, hosts=hosts)
    wanted = nothing_wanted(fleet)
    files: dict[Kind, Wanted] = {
        "unit": {**wanted, "web1": units or {}},
        "cron": {**wanted, "web1": cron or {}},
    }
    return diagnose(fleet, snapshot, files)


def only(found: tuple[Finding, ...], code: str) -> Finding:
    """The one finding there is, which is of this code."""
    assert [finding.code for finding in found] == [code]
    return found[0]


def one(found: tuple[Finding, ...], code: str) -> Finding:
    """The one finding of this code among others."""
    (finding,) = [finding for finding in found if finding.code == code]
    return finding


def state(**changes: Any) -> HostState:
    return make_state(HOST, **changes)


def broker(**changes: Any) -> BrokerState:
    return make_broker(FLEET, **changes)


def node(**changes: Any) -> NodeState:
    return replace(NodeState("high@web1", frozenset(TASKS), frozenset(["high_q"])), **changes)


def test_a_fleet_that_is_right_has_no_findings() -> None:
    assert findings() == ()


def test_a_fleet_without_rules_tasks_or_environment_has_no_findings() -> None:
    fleet = make_fleet(make_host(beat=False, env={}), expected_tasks=(), queue_rules=())
    assert findings(fleet) == ()


def test_an_inventory_without_workers_is_not_said_to_be_well_and_hosts_outside_the_limit_count() -> (
    None
):
    fleet = make_fleet(make_host(workers=(), beat=False, env={}), expected_tasks=(), queue_rules=())
    (finding,) = findings(fleet)
    assert (finding.code, finding.severity) == ("inventory.no_workers", Severity.ERROR)
    assert watch(fleet, make_snapshot(fleet)) == (finding,)
    limited = replace(fleet, all_workers=(Worker(name="low", queues=("low_q",)),))
    assert [finding.code for finding in findings(limited)] == ["queue.no_consumer"]
    expected: dict[str, Any] = {"nodes": ("high@*",), "queues": {"low_q": ExpectedQueue()}}
    for name, value in expected.items():
        app = fleet.app.model_copy(update={name: value})
        codes = {finding.code for finding in findings(replace(fleet, app=app))}
        assert "inventory.no_workers" not in codes


# --- the broker


@pytest.mark.parametrize(
    ("policy", "limit", "reported"),
    [
        ("allkeys-lru", 1000, True), ("allkeys-random", 1000, True), ("noeviction", 1000, False),
        ("allkeys-lru", 0, False), ("volatile-lru", 1000, False), ("volatile-ttl", 1000, False),
    ],
)  # fmt: skip
def test_eviction_is_reported_only_where_it_may_take_queues(
    policy: str, limit: int, reported: bool
) -> None:
    found = findings(broker=broker(maxmemory_bytes=limit, maxmemory_policy=policy))
    assert [finding.code for finding in found] == ["broker.evicts"] * reported
    if reported:
        assert found[0].evidence == (
            f"maxmemory 1,000 bytes, maxmemory-policy {policy}",
            "evicted_keys 0",
        )
        assert "CONFIG SET maxmemory-policy noeviction" in found[0].summary
        assert found[0].severity is Severity.WARNING


def test_keys_that_were_evicted_are_reported() -> None:
    finding = only(
        findings(
            broker=broker(maxmemory_bytes=1000, maxmemory_policy="allkeys-lru", evicted_keys=12)
        ),
        "broker.evicts",
    )
    assert finding.evidence[1] == "evicted_keys 12: queues may have been among them"


@pytest.mark.parametrize(
    ("ahead_s", "expected"),
    [(59, ""), (61, "1 min 1 s ahead of"), (7200, "2 h ahead of"), (-7200, "2 h behind")],
)
def test_a_clock_that_is_not_the_brokers_is_reported(ahead_s: float, expected: str) -> None:
    found = findings(broker=broker(clock_ahead_s=ahead_s))
    assert [finding.code for finding in found] == ["broker.clock"] * bool(expected)
    if expected:
        assert found[0].summary == f"this machine's clock is {expected} the broker's"
        assert "decides which messages are overdue, expired or fetched" in found[0].evidence[0]


@pytest.mark.parametrize(
    ("policy", "used", "expected"),
    [
        ("noeviction", 900, None),
        (
            "noeviction",
            901,
            ("broker.nearly_full", "when it is full, it refuses writes, and publishing fails"),
        ),
        (
            "noeviction",
            1001,
            ("broker.full", "Redis is full: it refuses writes, and publishing fails"),
        ),
        (
            "volatile-lru",
            901,
            ("broker.nearly_full", "such as results; once none are left, it refuses writes, and"),
        ),
        (
            "volatile-lru",
            1001,
            ("broker.full", "Redis is full: it evicts keys with a time to live"),
        ),
        (
            "allkeys-lru",
            900,
            ("broker.evicts", "Redis deletes whole queues when memory runs out"),
        ),
        (
            "allkeys-lru",
            901,
            ("broker.evicts", "has little memory left, and deletes whole queues when memory"),
        ),
        (
            "allkeys-lru",
            1001,
            ("broker.evicts", "has little memory left, and deletes whole queues when memory"),
        ),
    ],
)
def test_what_becomes_of_a_broker_without_memory_is_reported_by_its_policy(
    policy: str, used: int, expected: tuple[str, str] | None
) -> None:
    found = findings(
        broker=broker(maxmemory_bytes=1000, used_memory_bytes=used, maxmemory_policy=policy)
    )
    assert [finding.code for finding in found] == ([expected[0]] if expected else [])
    if expected:
        assert expected[1] in found[0].summary
        assert (f"{used:,} of 1,000 bytes used" in found[0].evidence) is (used > 900)


@pytest.mark.parametrize(
    ("seen", "code", "expected"),
    [
        (
            {"connected": 9_001, "max_clients": 10_000},
            "broker.many_clients",
            "9,001 of at most 10,000 clients",
        ),
        ({"connected": 9_000, "max_clients": 10_000}, "", ""),
        (
            {"not_saved": "the last background save (BGSAVE)"},
            "broker.saves_fail",
            "(BGSAVE) of Redis has failed: messages that were sent since the last successful one may",
        ),
        ({"replies_left": Lasting(9, 2**22)}, "broker.replies_left", "9 lists of replies"),
        ({"replies_left": Lasting(9, 2**20)}, "broker.replies_left", "hold 1,048,576 bytes"),
        ({"replies_left": Lasting(9, 2**20 - 1)}, "", ""),
        ({"results_left": Lasting(90_000)}, "results.never_expire", "about 90,000 results in db 0"),
    ],
)
def test_what_will_keep_the_broker_from_its_work_is_reported_before(
    seen: dict[str, Any], code: str, expected: str
) -> None:
    found = findings(broker=broker(**seen))
    assert [one.code for one in found] == ([code] if code else [])
    assert all(expected in one.summary for one in found)
    if code == "results.never_expire":
        assert found[0].evidence == (
            "more than half of a sample of keys are celery-task-meta-… with a TTL of -1",
            "with result_expires in the application, new results expire; old ones stay",
        )


def test_what_runs_out_is_reported_with_what_shows_the_cause_and_what_helps() -> None:
    (clients,) = findings(broker=broker(connected=99, max_clients=100))
    assert clients.evidence == (
        "INFO clients: connected_clients 99, maxclients 100",
        "CLIENT LIST shows the clients; CONFIG SET maxclients raises the limit",
    )
    failed = broker(not_saved="the last background save (BGSAVE)")
    (saves,) = findings(broker=failed)
    assert "Redis' log says why, such as a full disk" in saves.evidence[0]
    why = NotAsked(Trouble.CANNOT_SAVE, "redis refuses: MISCONF", "see its log")
    assert [one.code for one in findings(broker=replace(failed, unasked=why))] == [
        "broker.cannot_save"
    ]


def test_a_broker_that_cannot_be_used_is_reported_in_its_own_words() -> None:
    answer = "redis:6379 has no such db: ERR DB index is out of range"
    why = NotAsked(Trouble.UNUSABLE, answer, "check the number")
    (found,) = findings(broker=BrokerState.not_seen(why))
    assert (found.code, found.summary) == ("broker.unusable", answer)
    assert found.evidence[0] == "check the number"


@pytest.mark.parametrize(
    ("expired", "of", "reported"), [(40, 50, True), (10, 20, True), (9, 9, False), (10, 21, False)]
)
def test_a_queue_of_which_half_has_expired_is_reported(
    expired: int, of: int, reported: bool
) -> None:
    queue = make_queue(depth=of, by_task={"shop.bill": TaskCount(of, 0, 0, None, None, expired)})
    found = [
        one
        for one in findings(broker=broker(queues={"high_q": queue}))
        if one.code == "queue.expired"
    ]
    assert [
        one.summary.startswith(f"{expired} of {of} messages in high_q have expired")
        for one in found
    ] == [True] * reported
    assert all("add workers, or send with a longer expires" in one.evidence[1] for one in found)
    selection = Selection("too late", expired, {"shop.bill": expired})
    both = findings(broker=broker(queues={"high_q": replace(queue, selected=(selection,))}))
    codes = {one.code for one in both if one.code.startswith("queue.")}
    assert codes == {"queue.selected", *["queue.expired"] * reported}


def test_another_applications_worker_that_gives_our_messages_back_is_reported() -> None:
    fleet = replace(FLEET, all_nodes=("high@web1",))

    def found(**changes: Any) -> list[Finding]:
        other = replace(NodeState("bank@web9", frozenset(), frozenset({"bank"})), **changes)
        nodes = {**broker().nodes, other.name: other}
        reported = findings(fleet, broker=broker(nodes=nodes))
        return [one for one in reported if one.code == "worker.gives_back_early"]

    (early,) = found(options={"visibility_timeout": 60})
    assert early.evidence == (
        "inspect conf: visibility_timeout 60 s",
        "inspect active_queues: bank",
        "use a separate db for each application, or the same visibility_timeout for both",
    )
    assert not found(name="high@web1", options={"visibility_timeout": 60}), "one of the inventory's"
    assert not found(options={})
    assert not found()
    assert not found(options={"visibility_timeout": 60}, queues=frozenset({"high_q"})), (
        "worker.unknown reports it"
    )


@pytest.mark.parametrize(
    ("kind", "severity"), [("topic", Severity.ERROR), ("direct", Severity.WARNING)]
)
def test_a_queue_that_is_not_bound_any_more_is_reported_with_who_consumes_it(
    kind: str, severity: Severity
) -> None:
    binding = Binding("orders", kind, "order.*", "high_q")
    seen = broker(unbound=(binding,), nodes={"high@web1": node(bindings=frozenset({binding}))})
    finding = one(findings(broker=seen), "queue.unbound")
    assert (finding.subject, finding.severity) == ("high_q", severity)
    assert f"high@web1 consumes it from exchange orders ({kind})" in finding.evidence[0]
    still = "messages that are sent to the queue by its name still arrive"
    assert (still in finding.evidence) is (kind == "direct")
    assert finding.evidence[-1].endswith(str(Command("restart-workers")))


def test_what_fills_a_broker_is_reported_before_that_it_is_nearly_full() -> None:
    full: dict[str, Any] = {
        "maxmemory_bytes": 1000,
        "used_memory_bytes": 901,
        "maxmemory_policy": "noeviction",
    }
    found = findings(broker=broker(replies_left=Lasting(9, 2**22), **full))
    assert [one.code for one in found] == ["broker.replies_left", "broker.nearly_full"]
    assert [one.code for one in found[1].caused_by] == ["broker.replies_left"]


def test_a_refusal_for_want_of_memory_is_reported_once() -> None:
    why = NotAsked(Trouble.FULL, "redis refuses: OOM", "raise it")
    found = findings(broker=broker(maxmemory_bytes=1000, used_memory_bytes=1001, unasked=why))
    assert [finding.code for finding in found] == ["broker.full"]
    assert found[0].summary == "Redis is full and refuses writes, so nothing can be published"
    assert found[0].evidence[:2] == ("redis refuses: OOM", "raise it")
    assert not found[0].blocks, "everything else is still fixed"


def test_what_a_host_saw_of_a_broker_that_is_away_is_reported_with_it_and_is_not_a_fault_of_the_host() -> (
    None
):
    def diagnosed(
        trouble: Trouble, error: str, at: str = "redis://127.0.0.1:1/0"
    ) -> tuple[list[str], str]:
        tried = ImportProbe(frozenset(TASKS), {}, broker_at=at, broker_error=error)
        state = make_state(HOST, imports_now=tried, imports_wanted=tried)
        away = BrokerState.not_seen(NotAsked(trouble, "it is away", "wait"))
        found = findings(broker=away, hosts={"web1": state})
        return [finding.code for finding in found], " ".join(found[0].evidence)

    codes, evidence = diagnosed(Trouble.UNREACHABLE, "Connection refused")
    assert codes == ["broker.unreachable"]
    assert "also tried on web1: Connection refused" in evidence
    assert "also tried on web1: a worker can connect there" in diagnosed(Trouble.UNREACHABLE, "")[1]
    codes, evidence = diagnosed(
        Trouble.UNREACHABLE, "Connection refused", at="redis://elsewhere:6379/0"
    )
    assert codes == ["broker.unreachable", "worker.would_be_locked_out"]
    assert "tried on" not in evidence
    codes, evidence = diagnosed(Trouble.WRONG_PASSWORD, "invalid password")
    assert codes == ["broker.wrong_password", "worker.would_be_locked_out"]
    assert "also tried on web1: invalid password" in evidence


def test_of_a_broker_that_was_not_seen_nothing_else_is_said_and_nothing_may_be_touched() -> None:
    why = NotAsked(Trouble.LOADING, "it is still loading", "wait")
    solo = Worker(name="high", queues=("high_q",), options=("-P", "solo"))
    fleet = make_fleet(make_host(workers=(solo,)))
    (found,) = findings(fleet, broker=BrokerState.not_seen(why))
    assert (found.code, found.summary, found.blocks) == (
        "broker.loading",
        "it is still loading",
        (Block(),),
    )


def test_workers_that_are_not_back_yet_since_redis_was_started_are_not_a_fault_nor_are_their_queues() -> (
    None
):
    for uptime_s, severity in ((5.0, Severity.INFO), (90.0, Severity.ERROR)):
        reported = findings(broker=broker(uptime_s=uptime_s, nodes={}))
        silent = [one for one in reported if one.code == "worker.not_answering"]
        assert {one.severity for one in silent} == {severity}
        assert ("queue.no_consumer" in {one.code for one in reported}) is (
            severity is Severity.ERROR
        )
        crossed = watch(FLEET, make_snapshot(FLEET, broker=broker(uptime_s=uptime_s, nodes={})))
        assert bool(
            {one.code for one in crossed} & {"worker.not_answering", "queue.no_consumer"}
        ) is (uptime_s > 60)


def test_queues_in_another_db_are_reported_with_both_depths() -> None:
    finding = only(findings(broker=broker(depths_by_db={3: 1500})), "broker.other_db")
    assert finding.subject == "db 3"
    assert finding.evidence == ("db 0 of the inventory holds 0; db 3 holds 1,500 of these names",)


# --- queues


def test_messages_that_a_killed_worker_held_are_reported_with_the_command_that_gives_them_back() -> (
    None
):
    finding = only(findings(broker=broker(orphans={"high_q": 8}, unacked=9)), "queue.orphaned")
    assert finding.summary.startswith(
        "8 messages of high_q were fetched by a worker that no longer exists"
    )
    assert "`inv clean-queues --queue high_q --unacked --requeue-to high_q`" in finding.summary
    assert (finding.severity, finding.evidence[0]) == (
        Severity.WARNING,
        "9 messages are fetched and not acknowledged",
    )


def test_messages_that_a_rule_means_are_not_reported_once_more_as_those_of_a_killed_worker() -> (
    None
):
    held = replace(make_queue(), unacked=(Selection("stuck", 8, {"t": 8}),))
    codes = [
        one.code for one in findings(broker=broker(orphans={"high_q": 8}, queues={"high_q": held}))
    ]
    assert ("queue.unacked_selected" in codes, "queue.orphaned" in codes) == (True, False)
    more = findings(broker=broker(orphans={"high_q": 9}, queues={"high_q": held}))
    (orphan,) = (one for one in more if one.code == "queue.orphaned")
    assert orphan.summary.startswith("1 message of high_q was")


def test_what_a_silent_worker_may_hold_is_not_said_to_be_orphaned_unless_it_does_not_run() -> None:
    fleet, silent = (
        replace(FLEET, all_nodes=("high@web1",)),
        broker(orphans={"high_q": 8}, nodes={}),
    )
    assert "queue.orphaned" not in [finding.code for finding in findings(fleet, broker=silent)]
    services = {**state().services, "high": ServiceState(None, None, "stopped")}
    reported = findings(fleet, broker=silent, hosts={"web1": state(services=services)})
    assert "queue.orphaned" in [finding.code for finding in reported]
    elsewhere = replace(FLEET, all_nodes=("high@web1", "low@web9"))
    all_of_ours = broker(orphans={"high_q": 8}, nodes={"high@web1": node(holds=frozenset())})
    assert findings(elsewhere, broker=all_of_ours) == ()


def test_a_solo_worker_at_its_task_is_reported_and_neither_it_nor_its_queue_is_a_fault() -> None:
    host = make_host(workers=(Worker(name="high", queues=("high_q",), options=("--pool=solo",)),))
    fleet = make_fleet(host)
    silent = make_broker(
        fleet, nodes={}, consumer_ages_s=(400,), queues={"high_q": make_queue(depth=7)}
    )
    finding = only(findings(fleet, broker=silent), "worker.busy")
    assert (finding.severity, finding.remedy, finding.subject) == (Severity.INFO, None, "high@web1")
    assert "inv tail-logs --limit web1" in finding.summary
    dead = findings(fleet, broker=replace(silent, consumer_ages_s=()))
    assert [finding.code for finding in dead] == ["worker.not_answering", "queue.no_consumer"]


def test_a_solo_worker_at_its_task_counts_among_the_consumers_of_its_queue() -> None:
    solo = make_host(workers=(Worker(name="high", queues=("high_q",), options=("-P", "solo")),))
    queues = {"high_q": {"consumers": 3}}
    fleet = make_fleet(solo, make_host("web2", beat=False), queues=queues)
    fleet = replace(fleet, all_nodes=("high@web1", "high@web2"))
    nodes = {"high@web2": node(name="high@web2")}
    seen = make_broker(fleet, nodes=nodes, consumer_ages_s=(400, 450))
    finding = one(findings(fleet, broker=seen), "queue.few_consumers")
    assert finding.summary == "2 workers consume high_q, and the inventory expects 3"
    assert finding.evidence[0] == "inspect active_queues: high@web2, high@web1"


def test_a_queue_that_no_one_consumes_is_reported_with_its_depth_and_who_should() -> None:
    queues = {"high_q": replace(make_queue(), depths={"high_q": 1200, "high_q\x06\x163": 34})}
    nodes = {"high@web1": node(queues=frozenset(["other"]))}
    finding = one(findings(broker=broker(queues=queues, nodes=nodes)), "queue.no_consumer")
    assert finding.summary == "1,234 messages wait in high_q and no node consumes it"
    assert finding.evidence == (
        "LLEN 'high_q' = 1,200, LLEN 'high_q\\x06\\x163' = 34",
        "1 node answers and none lists it in active_queues; high@web1: other",
        "the inventory expects high@web1 to consume it",
    )
    assert (finding.severity, finding.remedy) == (Severity.ERROR, "start its workers")


def test_a_queue_that_another_applications_node_consumes_has_a_consumer() -> None:
    nodes = {"x@elsewhere": node(name="x@elsewhere")}
    assert "queue.no_consumer" not in [f.code for f in findings(broker=broker(nodes=nodes))]


@pytest.mark.parametrize(("depth", "severity"), [(0, Severity.INFO), (1, Severity.ERROR)])
def test_a_queue_that_no_worker_should_consume_is_a_fault_once_messages_wait(
    depth: int, severity: Severity
) -> None:
    fleet = make_fleet(HOST, queue_rules=(QueueRule(reason="r", queue="orphan"),))
    queues = {"high_q": make_queue(), "orphan": make_queue("orphan", depth)}
    finding = only(findings(fleet, broker=make_broker(fleet, queues=queues)), "queue.no_consumer")
    assert (finding.severity, finding.remedy) == (severity, None)
    assert finding.evidence[-1] == "the inventory expects no worker to consume it"


def test_with_a_limit_a_queue_of_another_hosts_worker_is_not_said_to_be_nobodys() -> None:
    fleet = replace(FLEET, all_workers=(*FLEET.all_workers, Worker(name="low", queues=("low_q",))))
    finding = only(
        findings(
            fleet, broker=broker(queues={"high_q": make_queue(), "low_q": make_queue("low_q")})
        ),
        "queue.no_consumer",
    )
    assert (
        finding.evidence[-1]
        == "the inventory expects low to consume it, on a host that was not checked"
    )
    assert (finding.severity, finding.remedy) == (Severity.WARNING, None)


def test_what_a_rule_selects_is_reported_with_its_reason_tasks_and_samples() -> None:
    selection = Selection("too late", 1200, {"shop.tasks.bill": 1200})
    queues = {"high_q": make_queue("high_q", 5000, selected=(selection,))}
    finding = only(findings(broker=broker(queues=queues)), "queue.selected")
    assert finding.summary == "1,200 of 5,000 messages are to be archived: too late"
    assert finding.evidence == ("1,200 × shop.tasks.bill",)


def test_malformed_items_are_reported_with_what_they_look_like() -> None:
    malformed = Selection("malformed", 2, {}, (), ("b'{' no JSON",))
    finding = only(
        findings(broker=broker(queues={"high_q": make_queue(depth=2, malformed=malformed)})),
        "queue.malformed",
    )
    assert finding.evidence == ("b'{' no JSON",)
    assert finding.severity is Severity.ERROR


@pytest.mark.parametrize(("depth", "reported"), [(15_000, False), (15_001, True)])
def test_a_queue_is_too_deep_above_its_threshold(depth: int, reported: bool) -> None:
    queue = make_queue(
        depth=depth, by_task={"shop.tasks.bill": TaskCount(depth, 0, 0, None, None, 0)}
    )
    found = findings(broker=broker(queues={"high_q": queue}))
    assert [finding.code for finding in found] == ["queue.depth"] * reported
    assert not reported or found[0].evidence == ("15,001 × shop.tasks.bill",)


@pytest.mark.parametrize(("retries", "reported"), [(2, False), (3, True)])
def test_messages_with_too_many_retries_are_reported(retries: int, reported: bool) -> None:
    queue = make_queue(
        depth=5, by_task={"shop.tasks.bill": TaskCount(5, retries, 0, None, None, 0)}
    )
    found = findings(broker=broker(queues={"high_q": queue}))
    assert [finding.code for finding in found] == ["queue.retries"] * reported


@pytest.mark.parametrize(("late_s", "reported"), [(3600, False), (3700, True), (-3700, False)])
def test_messages_long_past_their_eta_are_reported(late_s: float, reported: bool) -> None:
    queue = make_queue(
        depth=5, by_task={"shop.tasks.bill": TaskCount(5, 0, 4, NOW - late_s, NOW - late_s, 0)}
    )
    found = findings(broker=broker(queues={"high_q": queue}))
    codes = [finding.code for finding in found]
    assert codes == (["queue.eta_overdue"] * reported if late_s > 0 else ["queue.redelivered"])
    assert (
        not reported
        or found[0].summary
        == "messages of shop.tasks.bill wait 1 h 1 min past their ETA, more than 1 h"
    )
    assert not reported or found[0].evidence == ("the ETA of 4 of 5 has passed",)


@pytest.mark.parametrize(("held_s", "reported"), [(3600, False), (4800, True)])
@pytest.mark.parametrize("waiting", [True, False])
def test_messages_that_are_held_for_longer_than_celery_leaves_them_to_a_worker_are_reported(
    held_s: float, reported: bool, waiting: bool
) -> None:
    by_task = (
        {"shop.tasks.bill": TaskCount(1, 0, 0, NOW + held_s, NOW + held_s, 0)} if waiting else {}
    )
    queues = {"high_q": make_queue(depth=len(by_task), by_task=by_task)}
    found = findings(
        broker=broker(queues=queues, held_s={} if waiting else {"shop.tasks.bill": held_s})
    )
    assert [finding.code for finding in found] == ["queue.redelivered"] * reported
    assert (
        not reported
        or "are held for up to 1 h 20 min until their ETA, but after 1 h" in found[0].summary
    )
    assert all("raise visibility_timeout in the application's" in one.evidence[0] for one in found)
    patient = make_fleet(HOST, broker_options=BrokerOptions(visibility_timeout=7200))
    assert findings(patient, broker=broker(queues=queues, held_s={})) == ()


@pytest.mark.parametrize(("selected", "reported"), [(5, False), (4, True)])
def test_messages_that_a_rule_takes_out_anyway_are_not_reported_twice(
    selected: int, reported: bool
) -> None:
    selection = Selection("too late", selected, {"shop.tasks.bill": selected})
    by_task = {"shop.tasks.bill": TaskCount(5, 9, 5, NOW - 9999, NOW - 9999, 0)}
    queue = make_queue(depth=5, by_task=by_task, selected=(selection,))
    codes = [finding.code for finding in findings(broker=broker(queues={"high_q": queue}))]
    assert codes == ["queue.selected", *["queue.retries", "queue.eta_overdue"] * reported]


def test_other_lists_are_reported_and_only_those_with_celery_messages_are_a_warning() -> None:
    found = findings(broker=broker(other_lists={"hgih_q": (7, True), "sessions": (9, False)}))
    assert [(f.code, f.subject, f.severity) for f in found] == [
        ("queue.unknown", "hgih_q", Severity.WARNING),
        ("queue.foreign_list", "sessions", Severity.INFO),
    ]
    assert [(f.fix, f.remedy) for f in found] == [((), None)] * 2, "neither is changed"


def test_a_queue_that_only_another_worker_consumes_belongs_into_the_inventory() -> None:
    theirs = node(name="x@elsewhere", queues=frozenset({"theirs"}))
    nodes = {**broker().nodes, theirs.name: theirs}
    stray = Stray("theirs", 0, 3, {TASKS[0]: 3}, {})
    seen = broker(nodes=nodes, other_lists={"theirs": (3, True)}, strays={"theirs": stray})
    finding = only(findings(broker=seen), "queue.unknown")
    assert finding.evidence[-1] == "x@elsewhere consumes it: add it to the inventory"


def test_what_waits_in_a_queue_of_no_one_is_reported_with_its_tasks_its_senders_and_what_to_do() -> (
    None
):
    lists = {"hgih_q": (7, True)}
    stray = Stray("hgih_q", 0, 7, {TASKS[0]: 7}, {"gen12@web9": 7})
    said = Application(
        tasks=(RegisteredTask(TASKS[0], Route("hgih_q")),),
        schedule=(ScheduleEntry("daily", TASKS[0], route=Route("hgih_q")),),
    )
    known = broker(other_lists=lists, strays={"hgih_q": stray})
    finding = one(findings(broker=known, hosts={"web1": state(application=said)}), "queue.unknown")
    assert finding.summary.endswith(
        "wait in 'hgih_q', which is not a queue of the inventory; did you mean 'high_q'?"
    )
    assert finding.evidence[:4] == (
        f"7 × {TASKS[0]}, of 7 read", "sent by gen12@web9", f"the schedule's daily sends {TASKS[0]} there",
        f"the application, loaded on web1, routes {TASKS[0]} there",
    )  # fmt: skip
    assert (
        str(Command("clean-queues", "--queue", "hgih_q", "--requeue-to", "high_q"))
        in finding.evidence[4]
    )


def test_messages_that_unpack_to_more_than_the_limit_are_reported_with_their_tasks() -> None:
    queue = make_queue(depth=3, too_large={TASKS[0]: 2, "": 1}, unreadable=3)
    finding = only(findings(broker=broker(queues={"high_q": queue})), "queue.too_large")
    assert finding.summary.startswith("3 compressed messages unpack to more than ")
    assert finding.evidence == (f"2 × {TASKS[0]}", "1 × a task whose name was not read")


def test_lists_of_priorities_that_no_worker_polls_are_reported_as_one_fault() -> None:
    lists = {f"high_q\\x06\\x16{step}": (1, True) for step in (4, 1)}
    strays = {key: Stray("high_q", int(key[-1]), 1, {TASKS[0]: 1}, {}) for key in lists}
    finding = only(findings(broker=broker(other_lists=lists, strays=strays)), "queue.unpolled")
    assert finding.subject == "high_q"
    assert finding.summary == "2 messages wait as priority 1 and 4 of high_q, which no worker polls"
    assert finding.evidence[0] == f"2 × {TASKS[0]}, of 2 read"
    assert finding.evidence[1].startswith("workers poll the priorities 0, 3, 6, 9: ")
    moves = Command(
        "clean-queues", "--queue", "high_q", "--priority", "4", "--requeue-to", "high_q"
    )
    assert finding.evidence[-1] == f"{moves} moves the messages to a list that workers poll"
    assert "set the same priority_steps in the sender's" in finding.evidence[1]
    nodes = {"high@web1": node(options={"priority_steps": [0, 4]})}
    polls_4 = findings(broker=broker(other_lists=lists, strays=strays, nodes=nodes))
    assert " as priority 1 of high_q, which " in one(polls_4, "queue.unpolled").summary
    unread = one(polls_4, "queue.unknown")
    assert unread.summary.endswith(
        "polled as priority 4 of high_q, but not in celery_broker_options"
    )
    assert unread.evidence[-1].endswith("set its priority_steps in celery_broker_options")
    of_no_one = {key: replace(stray, queue="spare") for key, stray in strays.items()}
    found = findings(broker=broker(other_lists=lists, strays=of_no_one))
    assert [one.code for one in found] == ["queue.unknown"] * 2, "no worker consumes it at all"


def test_lists_of_a_queue_with_another_separator_are_reported_as_that_and_not_as_a_misspelt_queue() -> (
    None
):
    stray = Stray("high_q", 3, 1, {TASKS[0]: 1}, {}, sep=":")
    finding = only(findings(broker=broker(other_lists={"high_q:3": (5, True)}, strays={"high_q:3": stray})),
                   "queue.unpolled")  # fmt: skip
    assert (
        finding.summary
        == "5 messages wait in high_q:3, which is high_q with another separator, so no worker"
        " polls it"
    )
    assert (
        str(Command("clean-queues", "--queue", "high_q:3", "--requeue-to", "high_q"))
        in finding.evidence[-1]
    )
    assert finding.evidence[-2].startswith("the sender has the sep ':' in broker_transport_options")
    assert finding.evidence[-2].endswith(": use the same on both sides")


# --- hosts and workers


def test_a_host_that_does_not_answer_is_reported_with_the_reason_and_nothing_is_guessed_about_it() -> (
    None
):
    found = findings(hosts={"web1": Unreachable("No route to host")}, units={UNIT: b"x"})
    assert only(found, "host.unreachable").evidence == ("No route to host",)
    silent = findings(broker=broker(nodes={}), hosts={"web1": Unreachable("No route to host")})
    assert [one.code for one in silent] == ["host.unreachable", "queue.no_consumer"], (
        "its queues say whether its workers run"
    )


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        (HostTrouble.UNREACHABLE, "host.unreachable"), (HostTrouble.KEY_CHANGED, "host.key_changed"),
        (HostTrouble.KEY_UNKNOWN, "host.key_unknown"), (HostTrouble.LOGIN_REFUSED, "host.login_refused"),
        (HostTrouble.SUDO_REFUSED, "host.sudo_refused"), (HostTrouble.OTHER_SHELL, "host.other_shell"),
        (HostTrouble.NO_ROOM, "host.no_room"), (HostTrouble.LACKS_TOOLS, "host.lacks_tools"),
    ],
)  # fmt: skip
def test_what_keeps_a_host_from_being_asked_has_a_code_of_its_own(
    trouble: HostTrouble, code: str
) -> None:
    found = findings(hosts={"web1": Unreachable("it says why", trouble)})
    assert only(found, code).evidence == ("it says why",)


def test_a_temporary_folder_without_room_is_reported_and_all_else_is_judged() -> None:
    services = {**state().services, "beat": ServiceState(None, None, "stopped")}
    full = state(full_folder="/tmp", services=services)
    found = findings(hosts={"web1": full})
    assert {finding.code for finding in found} == {"host.no_room", "beat.not_running"}
    assert "df -h /tmp" in one(found, "host.no_room").evidence[0]


def test_a_host_without_the_applications_directory_is_left_as_it_is() -> None:
    found = findings(hosts={"web1": state(lacks_directory="is not a directory")})
    finding = only(found, "host.no_directory")
    assert finding.summary.startswith(
        "/srv/shop is not a directory, so the application cannot be started on web1"
    )
    assert finding.evidence == ("celery_directory of the inventory names it",)
    assert finding.blocks == (Block("web1"),)


@pytest.mark.parametrize(
    ("name", "code"), [("high", "worker.not_running"), ("beat", "beat.not_running")]
)
def test_a_service_that_does_not_run_is_reported_with_what_its_status_command_said(
    name: str, code: str
) -> None:
    services = {**state().services, name: ServiceState(None, None, "stopped")}
    silent = make_broker(FLEET, nodes={}) if name == "high" else None
    [finding] = (
        one
        for one in findings(broker=silent, hosts={"web1": state(services=services)})
        if one.code == code
    )
    assert finding.subject == f"{name} on web1"
    assert finding.evidence == ("its status command says: stopped",)


def test_a_worker_that_runs_but_does_not_answer_is_reported_with_its_pid_and_who_answers() -> None:
    other = node(name="x@elsewhere", queues=frozenset(["theirs"]))
    found = findings(broker=broker(nodes={"x@elsewhere": other}))
    finding = one(found, "worker.not_answering")
    since = "pid 100 has been running since 2025-06-15T14:58:20Z (8 min 20 s)"
    assert finding.evidence == (since, "inspect ping was answered by x@elsewhere")
    found = findings(broker=broker(nodes={}))
    assert "answered by no node" in one(found, "worker.not_answering").evidence[1]


@pytest.mark.parametrize(
    ("name", "code"), [("high", "worker.other_process"), ("beat", "beat.other_process")]
)
def test_a_status_command_that_names_another_process_is_reported_and_its_service_is_not_changed(
    name: str, code: str
) -> None:
    other = ServiceState(None, NOW - 500, "9", other_process="pid 9 (sleep)")
    found = findings(
        broker=broker(nodes={}) if name == "high" else None,
        hosts={"web1": state(services={**state().services, name: other})},
    )
    assert one(found, code).blocks == (Block("web1", name),)
    assert f"names pid 9 (sleep), which is not {name} of this application" in found[0].summary
    assert one(found, code).evidence[1] == (
        "a pid file may have outlived its service: remove it, and make the status command check"
        " the process (celery_commands.status)"
    )
    assert "because whether it runs is not known" in found[0].summary
    assert code.replace("other_process", "not_running") not in [finding.code for finding in found]


def test_a_service_manager_that_cannot_be_asked_is_one_finding_that_blocks_its_host() -> None:
    away = state(manager_away=("supervisord does not answer", "start it"), slow_shell="after 9 s")
    unknown = {name: ServiceState(None, None, "", why_unknown="x") for name in HOST.services}
    found = findings(broker=broker(), hosts={"web1": replace(away, services=unknown)})
    assert [finding.code for finding in found] == ["service.manager_away", "host.slow_shell"], (
        "everything else is judged"
    )
    assert (found[0].blocks, found[0].evidence) == ((Block("web1"),), ("start it",))


def test_where_one_of_several_workers_gets_no_messages_it_is_reported_that_it_is_not_known_which() -> (
    None
):
    nodes = {name: node(name=name) for name in ("high@web1", "high@web2")}
    fleet = make_fleet(HOST, make_host("web2", beat=False))

    def found(*ages_s: float) -> tuple[Finding, ...]:
        seen = make_broker(fleet, nodes=nodes, consumer_ages_s=ages_s)
        return findings(fleet, broker=seen)

    deaf = only(found(490.0), "worker.deaf")
    assert "CLIENT LIST: the connections whose last command is BRPOP" in deaf.evidence
    advice = f"{Command('restart-workers')} restarts them all; then diagnose again"
    assert (deaf.evidence[-1], deaf.fix) == (advice, ())
    assert found(490.0, 490.0) == ()
    assert [finding.code for finding in found(600.0)] == ["worker.takes_nothing"] * 2


def test_a_worker_that_is_stopped_is_not_also_said_not_to_answer() -> None:
    services = {**state().services, "high": ServiceState(None, None, "")}
    found = findings(broker=broker(nodes={}), hosts={"web1": state(services=services)})
    assert [finding.code for finding in found] == ["worker.not_running", "queue.no_consumer"]


def test_a_worker_that_does_not_consume_its_queue_is_reported_with_what_it_consumes() -> None:
    nodes = {"high@web1": node(queues=frozenset(["b", "a"]))}
    finding = one(findings(broker=broker(nodes=nodes)), "worker.not_consuming")
    assert (finding.subject, finding.summary) == ("high@web1", "high does not consume high_q")
    assert finding.evidence == ("inspect active_queues: a, b",)


def test_services_older_than_their_environment_file_are_outdated() -> None:
    files = {ENV_FILE: replace(state().files[ENV_FILE], changed_at=NOW - 400)}
    services = {**state().services, "beat": ServiceState(9, NOW - 300, "9")}
    started_with = StartedWith({ENV_FILE: "another"}, {}, frozenset(), same=True)
    services["high"] = replace(services["high"], started_with=started_with)
    finding = only(
        findings(hosts={"web1": state(files=files, services=services)}), "worker.outdated"
    )
    assert finding.subject == "high on web1"
    assert ENV_FILE in finding.evidence[0]


def test_a_probe_that_failed_is_reported_with_its_command_and_the_end_of_its_output() -> None:
    command = "curl https://ops:hunter2@shop.example.com/health"
    fleet = make_fleet(make_host(probes=(Probe(name="health", command=command),)))

    def found(output: str) -> Finding:
        result = ProbeResult("exited with 22, not 0", output)
        seen = make_state(fleet.hosts[0], probes={"health": result})
        return only(findings(fleet, hosts={"web1": seen}), "probe.failed")

    finding = found("\n".join(f"line {n}" for n in range(30)))
    assert (finding.subject, finding.summary) == (
        "health on web1",
        "the probe health exited with 22, not 0",
    )
    shown = command.replace("ops:hunter2", "********")
    assert finding.evidence == (f"$ {shown}", *(f"line {n}" for n in range(20, 30)))
    assert found("").evidence[1:] == ("it printed nothing",)


# --- code

BROKEN = (
    "Traceback (most recent call last):\n  File tasks.py\nValueError: invalid literal for int():"
    " 'thirty'"
)
UNKNOWING = {"high@web1": node(registered=frozenset(TASKS[:1]))}


def with_imports(
    now: ImportProbe, wanted: ImportProbe | None = None, timeout: str = "30"
) -> HostState:
    files = {ENV_FILE: replace(state().files[ENV_FILE], content=f"TIMEOUT={timeout}\n".encode())}
    return state(imports_now=now, imports_wanted=wanted or now, files=files)


GOOD = ImportProbe(frozenset(TASKS), {})
BAD = ImportProbe(frozenset(), {"shop.tasks": BROKEN})


def test_a_running_worker_that_lacks_tasks_is_reported_by_name() -> None:
    finding = only(findings(broker=broker(nodes=UNKNOWING)), "task.not_registered")
    assert finding.subject == "high@web1"
    assert finding.evidence == ("inspect registered: high@web1 lacks shop.tasks.ship",)


def test_another_applications_node_need_not_know_our_tasks() -> None:
    nodes = {
        **broker().nodes,
        "x@elsewhere": node(
            name="x@elsewhere", queues=frozenset(["theirs"]), registered=frozenset()
        ),
    }
    assert findings(broker=broker(nodes=nodes)) == ()


NEW_TASK = "shop.tasks.refund"
TWO_HOSTS = make_fleet(HOST, make_host("web2", beat=False))
KNOWING = node(name="high@web2", registered=frozenset({*TASKS, NEW_TASK}))


def two_nodes(here: NodeState, there: NodeState = KNOWING, **changes: Any) -> BrokerState:
    return make_broker(TWO_HOSTS, nodes={here.name: here, there.name: there}, **changes)


PICKLED, PACKED, NAMELESS = (
    Form("application/x-python-serialize"),
    Form(compression="zstd"),
    Form(protocol=0),
)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (PICKLED, "12 messages in high_q are application/x-python-serialize, which it does not accept"),
        (PACKED, "12 messages in high_q are compressed with zstd, which its Python cannot decompress"),
        (NAMELESS, "12 messages in high_q are without a task"), (Form(compression="gzip"), ""), (Form(protocol=1), ""),
        (Form("application/x-own"), "12 messages in high_q are application/x-own, for which it has no decoder"),
        (Form("application/text", "klingon"), "12 messages in high_q are encoded as klingon, which its"),
        (Form("application/text"), ""), (Form(encoding="klingon"), ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("runs", [False, True])
def test_messages_that_an_application_does_not_accept_are_reported_with_whom_they_wait_for(
    form: Form, expected: str, runs: bool
) -> None:
    own = {"high@web1": node()} if runs else {}
    found = findings(
        broker=broker(nodes=own, queues={"high_q": written(form)}),
        hosts={"web1": with_imports(READER)},
    )
    code, blocks = (
        ("message.discarded", ())
        if runs
        else ("message.would_be_discarded", (Block("web1", "high"),))
    )
    refused = [finding for finding in found if finding.code.startswith("message.")]
    assert [finding.code for finding in refused] == [code] * bool(expected)
    assert all(f.summary.startswith(expected) and f.blocks == blocks for f in refused)
    advice = ("make the application accept them", *["and restart it"] * runs)
    assert all(words in f.summary for words in advice for f in refused)


READER = replace(
    GOOD,
    accepts=frozenset({"application/json", "application/text", "application/x-own"}),
    decodes=frozenset({"application/json", "application/text"}),
    compressions=frozenset({"gzip"}),
    encodings=frozenset({"utf-8"}),
)


def written(*forms: Form) -> QueueState:
    """The queue, with 12 messages that are written so each."""
    count = 12 * len(forms)
    unusual = {form: 12 for form in forms if form != Form()}
    return make_queue(
        depth=count, forms=unusual, by_task={TASKS[0]: TaskCount(count, 0, 0, None, None, 0)}
    )


def test_what_celery_writes_by_default_is_judged_too() -> None:
    probe = replace(READER, accepts=frozenset({"application/x-python-serialize"}), decodes=None)
    queues = {"high_q": written(Form(), PICKLED)}
    found = findings(broker=broker(nodes={}, queues=queues), hosts={"web1": with_imports(probe)})
    refused = [finding.summary for finding in found if finding.code == "message.would_be_discarded"]
    assert [summary.partition(", which")[0] for summary in refused] == [
        "12 messages in high_q are application/json"
    ]


@pytest.mark.parametrize(("form", "reported"), [(PICKLED, True), (PACKED, True), (Form(), False)])
@pytest.mark.parametrize("runs", [False, True])
def test_what_no_one_can_judge_is_reported_and_starts_no_worker(
    form: Form, reported: bool, runs: bool
) -> None:
    own = {"high@web1": node()} if runs else {}
    found = findings(
        broker=broker(nodes=own, queues={"high_q": written(form)}),
        hosts={"web1": with_imports(GOOD)},
    )
    unjudged = [finding for finding in found if finding.code.startswith("message.")]
    assert [finding.code for finding in unjudged] == ["message.unjudged"] * reported
    assert all(f.blocks == (() if runs else (Block("web1", "high"),)) for f in unjudged)


def test_messages_that_a_rule_takes_out_first_keep_no_worker_from_its_start() -> None:
    probe = replace(GOOD, accepts=frozenset({"application/json"}))
    chosen = Selection("pickled", 12, {TASKS[0]: 12}, by_form={PICKLED: 12})
    queue = make_queue(depth=12, forms={PICKLED: 12}, selected=(chosen,))
    found = findings(
        broker=broker(nodes={}, queues={"high_q": queue}), hosts={"web1": with_imports(probe)}
    )
    assert "message.would_be_discarded" not in {finding.code for finding in found}


def test_a_worker_with_older_code_than_another_at_its_queue_is_reported() -> None:
    finding = only(findings(TWO_HOSTS, broker=two_nodes(node())), "task.discarded")
    assert (finding.subject, finding.severity) == ("high@web1", Severity.ERROR)
    assert finding.evidence == (
        f"inspect registered: high@web2, which shares high_q with it, knows {NEW_TASK}",
    )
    assert finding.summary.endswith(
        "give it the code that has it and restart it, or make it consume other queues"
    )


def test_what_is_routed_to_a_worker_that_does_not_know_it_is_reported() -> None:
    said = Application(tasks=(RegisteredTask(NEW_TASK, Route("high_q")),))
    finding = one(findings(hosts={"web1": state(application=said)}), "task.discarded")
    assert finding.evidence == (
        f"the application, loaded on web1, sends {NEW_TASK} to high_q, which it consumes",
    )


def test_what_another_knows_for_a_queue_of_its_own_is_not_a_fault() -> None:
    more = replace(KNOWING, queues=frozenset({"high_q", "theirs"}))
    assert findings(TWO_HOSTS, broker=two_nodes(node(), more)) == ()


@pytest.mark.parametrize(
    ("task", "expected"),
    [(NEW_TASK, ["task.discarded"]), ("celery.chord_unlock", []), (TASKS[0], [])],
)
def test_what_waits_for_a_running_worker_that_does_not_know_it_is_reported(
    task: str, expected: list[str]
) -> None:
    queue = make_queue(depth=26, by_task={task: TaskCount(26, 0, 0, None, None, 0)})
    found = findings(broker=broker(queues={"high_q": queue}))
    assert [finding.code for finding in found] == expected
    assert all(
        finding.evidence == (f"26 × {NEW_TASK} wait in high_q, which it consumes",)
        for finding in found
    )


def test_what_the_schedule_sends_and_no_one_knows_is_reported() -> None:
    own = node(
        scheduled=frozenset((task, "") for task in (TASKS[0], NEW_TASK, "celery.backend_cleanup"))
    )
    finding = only(findings(broker=broker(nodes={own.name: own})), "schedule.unknown_task")
    assert (finding.subject, finding.severity) == (NEW_TASK, Severity.ERROR)
    found = findings(TWO_HOSTS, broker=make_broker(TWO_HOSTS, nodes={own.name: own}))
    assert "schedule.unknown_task" not in {finding.code for finding in found}, (
        "the silent one may know it"
    )


def test_an_import_that_works_by_now_leaves_only_the_worker_to_be_restarted() -> None:
    only(
        findings(broker=broker(nodes=UNKNOWING), hosts={"web1": with_imports(GOOD)}),
        "task.not_registered",
    )


def test_an_import_that_the_inventorys_environment_fixes_has_a_remedy_and_its_proof() -> None:
    found = findings(hosts={"web1": with_imports(BAD, GOOD, timeout="thirty")})
    finding = only(found, "task.import_fails")
    assert (
        finding.summary
        == "shop.tasks fails to import, so shop.tasks.bill, shop.tasks.ship cannot be registered: "
        "ValueError: invalid literal for int(): 'thirty'"
    )
    assert finding.evidence == (
        *BROKEN.splitlines(),
        f"{ENV_FILE}: TIMEOUT is 'thirty', the inventory says '30'",
        (
            "tried on the host: with the inventory's values the import works and these tasks are"
            " registered"
        ),
    )
    assert (finding.blocks, finding.remedy is not None) == ((), True)


def test_an_import_that_the_inventorys_environment_does_not_fix_blocks() -> None:
    tried = "tried on the host: with the inventory's values"
    for wanted, expected in (
        (replace(BAD), f"{tried} the import still fails"),
        (ImportProbe(frozenset(), {"": "OSError: x"}), f"{tried} the import still fails"),
        (
            ImportProbe(frozenset(), {"shop.tasks": ""}),
            f"{tried} the import works, but these tasks are not registered",
        ),
        (
            ImportProbe(frozenset(), {}, failed="no setpriv\nx"),
            f"{tried} it does not load: no setpriv",
        ),
        (BAD, f"{ENV_FILE}: TIMEOUT is 'thirty', the inventory says '30'"),  # not tried
    ):
        found = findings(hosts={"web1": with_imports(BAD, wanted, timeout="thirty")})
        finding = one(found, "task.import_fails")
        assert (finding.blocks, finding.remedy) == ((Block("web1"),), None)
        assert finding.evidence[-1] == expected
    assert "environment.differs" in [f.code for f in found]


def test_an_import_that_fails_with_the_right_environment_is_the_codes_fault_and_blocks() -> None:
    finding = only(findings(hosts={"web1": with_imports(BAD)}), "task.import_fails")
    assert finding.blocks
    assert finding.evidence[-1] == "/srv/shop/shop.env has the inventory's values: TIMEOUT"


def test_an_application_that_fails_with_every_environment_is_not_said_to_be_fixed() -> None:
    fleet, broken = (
        make_fleet(expected_tasks=()),
        ImportProbe(frozenset(), {"": "ModuleNotFoundError: x"}),
    )
    state = with_imports(broken, replace(broken), timeout="thirty")
    finding = one(findings(fleet, hosts={"web1": state}), "task.import_fails")
    assert "so none of its tasks is registered" in finding.summary
    assert (finding.blocks, finding.remedy) == ((Block("web1"),), None)
    assert (
        finding.evidence[-1]
        == "tried on the host: with the inventory's values the import still fails"
    )


def test_an_application_that_could_not_be_loaded_for_want_of_a_container_is_only_a_note() -> None:
    found = findings(hosts={"web1": state(not_loaded="no container runs")})
    assert only(found, "host.not_loaded").severity is Severity.INFO
    assert found[0].summary.endswith("what it registers is not known: no container runs")
    services = {**state().services, "beat": ServiceState(None, None, "exited")}
    down = state(not_loaded="no container runs", services=services)
    assert [one.code for one in findings(hosts={"web1": down})] == [
        "beat.not_running",
        "host.not_loaded",
    ]


def test_a_long_traceback_is_shown_by_its_last_eight_lines() -> None:
    probe = ImportProbe(frozenset(), {"shop.tasks": "\n".join(f"line {n}" for n in range(20))})
    finding = only(findings(hosts={"web1": with_imports(probe)}), "task.import_fails")
    assert finding.evidence[:-1] == tuple(f"line {n}" for n in range(12, 20))


def test_an_application_that_does_not_load_at_all_is_named_itself() -> None:
    probe = ImportProbe(frozenset(), {"": "SyntaxError: invalid syntax"})
    finding = only(findings(hosts={"web1": with_imports(probe)}), "task.import_fails")
    assert finding.summary.startswith("shop fails to import, so ")


def test_each_failing_module_is_reported_with_its_own_tasks() -> None:
    fleet = make_fleet(HOST, expected_tasks=("a.one", "b.two"))
    probe = ImportProbe(frozenset(), {"a": "ImportError: x", "b": "KeyError: y"})
    found = findings(fleet, hosts={"web1": with_imports(probe)})
    assert [f.summary for f in found] == [
        "a fails to import, so a.one cannot be registered: ImportError: x",
        "b fails to import, so b.two cannot be registered: KeyError: y",
    ]


def test_a_module_that_imports_but_is_never_imported_by_the_application_blocks() -> None:
    probe = ImportProbe(frozenset(["celery.backend_cleanup"]), {"shop.tasks": ""})
    finding = only(findings(hosts={"web1": with_imports(probe)}), "task.never_imported")
    assert finding.blocks
    assert finding.evidence == (
        "loaded as a worker loads it, `shop` registers 1 task, but not these",
        "importing shop.tasks directly works",
    )


# --- files


def test_missing_and_differing_files_are_told_apart_and_counted() -> None:
    mark = f"{mark_of('shop')}\n".encode()
    units = {UNIT: mark + b"new", "/u/1": b"x", "/u/2": b"x"}
    files = {
        **state().files,
        UNIT: in_place(mark + b"old"),
        "/u/1": FileState(None),
        "/u/2": FileState(None),
    }
    found = findings(hosts={"web1": state(files=files)}, units=units)
    assert [(f.code, f.evidence, f.severity) for f in found] == [
        ("unit.missing", ("/u/1", "/u/2"), Severity.WARNING),
        ("unit.differs", (UNIT, "  -old", "  +new"), Severity.WARNING),
    ]
    assert [f.summary for f in found] == [
        "2 of 3 unit files: not installed",
        "1 of 3 unit files: edited",
    ]


def test_what_an_operator_wrote_into_a_file_of_ours_is_reported_as_what_differs() -> None:
    mark = f"{mark_of('shop')}\n".encode()
    wanted = mark + b"".join(b"%d * * * * deploy true\n" % minute for minute in range(9))
    edited = wanted.replace(
        mark, mark + b"# ours, too\nMAILTO=ops@example.com\nSMTP_PASSWORD=hunter2\n"
    )
    for content, edits in (
        (edited, ("  -# ours, too", "  -MAILTO=ops@example.com", "  -SMTP_PASSWORD=********")),
        (
            b"",
            (
                f"  +{mark_of('shop')}",
                *(f"  +{minute} * * * * deploy true" for minute in range(5)),
                "  4 more lines",
            ),
        ),
    ):
        files = {**state().files, CRON: in_place(content)}
        finding = only(
            findings(hosts={"web1": state(files=files)}, cron={CRON: wanted}), "cron.differs"
        )
        assert finding.evidence == (CRON, *edits)
    files = {**state().files, CRON: in_place(wanted, 0o666)}
    finding = only(
        findings(hosts={"web1": state(files=files)}, cron={CRON: wanted}), "cron.differs"
    )
    assert finding.evidence == (CRON, "  mode 666")


def test_a_shell_that_begins_late_is_reported_with_what_it_said() -> None:
    finding = only(
        findings(hosts={"web1": state(slow_shell="after 10 s, with this output: sudo: …")}),
        "host.slow_shell",
    )
    assert finding.evidence[0] == "it started after 10 s, with this output: sudo: …"
    assert "the host's own name is not in its /etc/hosts" in finding.evidence[1]


def test_a_host_where_a_planned_file_may_not_be_written_is_left_as_it_is() -> None:
    files = {**state().files, CRON: FileState(None)}
    unwritable = {CRON.rpartition("/")[0]: "deploy", "/elsewhere": "deploy"}
    found = findings(hosts={"web1": state(files=files, unwritable=unwritable)}, cron={CRON: b"x"})
    finding = next(finding for finding in found if finding.code == "host.cannot_write")
    assert finding.summary.startswith(
        "deploy may not write in /etc/cron.d, so nothing is changed on web1"
    )
    assert finding.blocks == (Block("web1"),)
    assert finding.evidence[0].endswith("ansible_become: true runs them as root")
    assert "cron.missing" in {finding.code for finding in found}, "what was read is judged"
    of_root = dict.fromkeys(unwritable, "root")
    as_root = findings(hosts={"web1": state(files=files, unwritable=of_root)}, cron={CRON: b"x"})
    assert one(as_root, "host.cannot_write").evidence == ("is the file system read-only?",)
    assert not can_be_fixed(found)
    healthy = findings(hosts={"web1": state(unwritable=unwritable)})
    assert "host.cannot_write" not in {finding.code for finding in healthy}


@pytest.mark.parametrize(
    ("file", "codes"),
    [
        (in_place(b"x"), []),
        (in_place(b"x", 0o666), ["cron.differs"]),
        (in_place(b"y"), ["cron.not_ours"]),
        (in_place(mark_of("shop").encode()), ["cron.differs"]),
        (in_place(b""), ["cron.differs"]),
        (FileState(None), ["cron.missing"]),
    ],
)
def test_a_cron_file_is_right_only_with_its_bytes_and_mode(
    file: FileState, codes: list[str]
) -> None:
    found = findings(hosts={"web1": state(files={**state().files, CRON: file})}, cron={CRON: b"x"})
    assert [finding.code for finding in found] == codes


def test_environment_drift_is_reported_variable_by_variable_without_the_files_secrets() -> None:
    files = {ENV_FILE: replace(state().files[ENV_FILE], content=b"TOKEN=s3cret\n")}
    finding = only(findings(hosts={"web1": state(files=files)}), "environment.differs")
    assert finding.evidence == ("TIMEOUT: not set, the inventory says '30'",)
    assert "s3cret" not in repr(finding)


def test_a_variable_that_holds_a_password_is_reported_without_it_and_left_to_the_operator() -> None:
    files = {
        ENV_FILE: replace(state().files[ENV_FILE], content=b"TIMEOUT=redis://:s3cret@cache/1\n")
    }
    finding = only(findings(hosts={"web1": state(files=files)}), "environment.password")
    assert (finding.subject, finding.remedy) == ("web1", None)
    assert finding.evidence[0].endswith("change it on the host")
    assert "s3cret" not in repr(finding)


# --- all together


def test_errors_come_first_and_information_last() -> None:
    files = {ENV_FILE: replace(state().files[ENV_FILE], content=b"")}
    services = {**state().services, "beat": ServiceState(None, None, "")}
    found = findings(
        broker=broker(other_lists={"sessions": (1, False)}),
        hosts={"web1": state(files=files, services=services)},
    )
    assert [f.code for f in found] == [
        "beat.not_running",
        "environment.differs",
        "queue.foreign_list",
    ]


def test_one_unreachable_host_does_not_hide_the_faults_of_another() -> None:
    fleet = make_fleet(make_host("web1"), make_host("web2"))
    services = {**make_state(fleet.hosts[1]).services, "beat": ServiceState(None, None, "")}
    found = findings(
        fleet,
        hosts={"web1": Unreachable("gone"), "web2": make_state(fleet.hosts[1], services=services)},
    )
    assert {f.code for f in found} == {"host.unreachable", "beat.not_running"}


def test_a_worker_that_may_take_longer_to_stop_than_celery_waits_is_reported() -> None:
    finding = only(findings(make_fleet(make_host(stop_timeout=7200.0))), "worker.stops_late")
    assert (finding.subject, finding.severity) == ("web1", Severity.WARNING)
    assert "may take 2 h to stop, but after 1 h Celery delivers" in finding.summary
    assert finding.summary.endswith("its remaining messages again, so that they run twice")
    assert finding.evidence == (
        "make celery_stop_timeout shorter than visibility_timeout (celery_broker_options)",
    )
    longer = BrokerOptions(visibility_timeout=7201.0)
    assert findings(make_fleet(make_host(stop_timeout=7200.0), broker_options=longer)) == ()


def test_an_expected_task_whose_name_says_no_module_is_reported_without_an_error_of_ours() -> None:
    fleet = make_fleet(make_host(), expected_tasks=(*TASKS, "ship"))
    probe = ImportProbe(frozenset(TASKS), {})
    finding = only(
        findings(fleet, hosts={"web1": state(imports_now=probe, imports_wanted=probe)}),
        "task.never_imported",
    )
    assert finding.summary == "ship: the application never imports it, or has no such task"


@pytest.mark.parametrize(
    ("name", "manager", "path", "advice"),
    [
        ("celery.service", Manager.SYSTEMD, "/etc/systemd/system/celery.service",
         "sudo systemctl disable --now celery.service"),
        ("session-3.scope", None, "", "sudo kill -TERM 7 8"),
        ("container 0123456789ab", Manager.DOCKER, "", "sudo docker stop 0123456789ab"),
        ("supervisord", Manager.SUPERVISORD, "", "status shows for its pid"),
    ],
)  # fmt: skip
def test_anyone_else_who_runs_workers_is_named_with_what_ends_them(
    name: str, manager: Manager | None, path: str, advice: str
) -> None:
    unit = OtherRunner(name, {7: "worker a@web1", 8: "beat"}, manager, path, forking=bool(path))
    found = findings(hosts={"web1": make_state(HOST, others=(unit,))})
    finding = only(found, "worker.other_unit")
    assert "runs worker a@web1, beat" in finding.summary
    assert (finding.severity, finding.fix) == (Severity.WARNING, ())
    assert finding.evidence[-1].endswith(advice)
    assert ("its file is " in str(finding.evidence)) == bool(path)


def test_an_application_without_remote_control_is_the_cause_of_its_workers_silence() -> None:
    mute = replace(GOOD, remote_control=False)
    silent = make_broker(FLEET, nodes={})
    finding = only(findings(broker=silent, hosts={"web1": state(imports_now=mute, imports_wanted=mute)}),
                   "worker.no_remote_control")  # fmt: skip
    assert finding.blocks
    assert "set worker_enable_remote_control to True; without it, what they run" in finding.summary


def test_kombu_that_hears_nothing_under_a_prefix_is_the_cause_of_its_workers_silence() -> None:
    old = Application(transport_options={"global_keyprefix": "shop_"}, versions={"kombu": "5.2.3"})
    silent = make_broker(FLEET, nodes={})

    def found(said: Application) -> tuple[Finding, ...]:
        tried = replace(GOOD, application=said)
        return findings(
            broker=silent, hosts={"web1": state(imports_now=tried, imports_wanted=tried)}
        )

    for version in ("5.2.0", "5.2.3"):
        finding = only(found(replace(old, versions={"kombu": version})), "worker.no_remote_control")
        assert f"kombu {version} receives no remote control" in finding.summary
        assert "install kombu 5.2.4 or later, and restart them" in finding.summary
        assert finding.evidence[-1].startswith("they may be healthy; left running, because")
    for well in (
        replace(old, versions={"kombu": "5.1.0"}),
        replace(old, versions={"kombu": "5.2.4"}),
        replace(old, transport_options={}),
    ):
        assert "worker.not_answering" in {one.code for one in found(well)}


def test_a_masked_unit_is_reported_as_such_and_not_as_edited() -> None:
    files = {**state().files, UNIT: in_place(b"")}
    finding = only(
        findings(hosts={"web1": state(files=files)}, units={UNIT: b"[Unit]"}), "unit.masked"
    )
    assert finding.summary.startswith("celery-beat.service is masked, ")
    assert finding.evidence[-2:] == (
        f"{UNIT} is empty, or a link to /dev/null",
        "to run it again, on web1: sudo systemctl unmask celery-beat.service",
    )
    assert (finding.blocks, finding.remedy) == ((), None), "without systemd a unit starts nothing"


def test_a_masked_unit_blocks_its_service_and_is_not_a_missing_file_or_a_service_to_start() -> None:
    host = make_host(service_manager="systemd", commands=None, workers=())
    path = "/etc/systemd/system/celery-beat.service"
    masked = ServiceState(None, None, "masked, inactive (dead)", enabled=False, masked=True)
    seen = make_state(host, services={"beat": masked})
    seen = replace(seen, files={**seen.files, path: FileState(None)})  # as with `mask --runtime`
    fleet = make_fleet(host)
    wanted: dict[Kind, Wanted] = {"unit": {"web1": {path: b"[Unit]"}}}
    found = diagnose(fleet, make_snapshot(fleet, hosts={"web1": seen}), wanted)
    assert one(found, "unit.masked").blocks == (Block("web1", "beat"),)
    assert not {"unit.missing", "beat.not_running", "unit.not_enabled"} & {
        finding.code for finding in found
    }
    for step in unit_steps(fleet, wanted["unit"]):
        assert not step.plan(make_snapshot(fleet, hosts={"web1": seen}))


def test_a_name_that_is_an_alias_of_another_unit_is_reported_and_neither_written_nor_started() -> (
    None
):
    host = make_host(service_manager="systemd", commands=None, workers=())
    path = "/etc/systemd/system/celery-beat.service"
    alias = ServiceState(None, None, "", alias_of="printer-beat.service")
    seen = make_state(host, services={"beat": alias})
    seen = replace(seen, files={**seen.files, path: in_place(b"[Unit]\nDescription=theirs\n")})
    fleet = make_fleet(host)
    wanted: dict[Kind, Wanted] = {"unit": {"web1": {path: b"[Unit]"}}}
    found = diagnose(fleet, make_snapshot(fleet, hosts={"web1": seen}), wanted)
    finding = one(found, "unit.alias")
    assert finding.blocks == (Block("web1", "beat"),)
    assert finding.summary.startswith("celery-beat.service is an alias of printer-beat.service")
    assert finding.evidence[0] == "systemctl show celery-beat.service: Id=printer-beat.service"
    assert "sudo systemctl disable --now printer-beat.service" in finding.evidence[1]
    assert "remove the Alias= or the link" in finding.evidence[1]
    assert not {"unit.differs", "beat.not_running", "unit.not_enabled"} & {
        finding.code for finding in found
    }
    for step in unit_steps(fleet, wanted["unit"]):
        assert not step.plan(make_snapshot(fleet, hosts={"web1": seen}))


@pytest.mark.parametrize(
    ("changes", "code", "do"),
    [
        ({"needs_reload": True}, "unit.not_loaded", ReloadUnits),
        ({"enabled": False}, "unit.not_enabled", EnableService),
    ],
)
def test_a_unit_of_ours_that_runs_is_read_again_or_enabled_and_not_restarted(
    changes: dict[str, bool], code: str, do: type[ReloadUnits | EnableService]
) -> None:
    host = make_host(service_manager="systemd", commands=None)
    seen = make_state(host)
    high = replace(seen.services["high"], **changes)
    seen = replace(seen, services={**seen.services, "high": high})
    fleet = make_fleet(host)
    finding = only(findings(fleet, hosts={"web1": seen}), code)
    assert finding.evidence[0].startswith("systemctl show: ")
    assert [type(change.do) for change in finding.fix] == [do]
    assert units_planned(fleet, seen) == [change.do for change in finding.fix]


def units_planned(fleet: Fleet, seen: HostState) -> list[Effect]:
    """What `install-units` and `remediate` do with the units of a host that is to have no file."""
    snapshot = make_snapshot(fleet, hosts={"web1": seen})
    steps = unit_steps(fleet, nothing_wanted(fleet))
    return [change.do for step in steps for change in step.plan(snapshot)]


def test_a_unit_of_ours_that_is_not_expected_is_stopped_with_the_tasks_that_run_there_and_removed() -> (
    None
):
    host = make_host(service_manager="systemd", commands=None)
    path = "/etc/systemd/system/celery-worker@old.service"
    old = ServiceState(7, NOW - 500, "loaded, active (running)", enabled=True)
    seen = make_state(host, stale={"old": old}, managed={path: in_place(b"x")})
    fleet = make_fleet(host)
    finding = only(findings(fleet, hosts={"web1": seen}), "unit.stale")
    assert finding.evidence == ("systemd says: loaded, active (running)",), "it runs"
    assert [change.do for change in finding.fix[:2]] == [
        EnableService("old", False),
        ControlService("old", "stop"),
    ]
    assert finding.fix[2].summary.startswith(f"remove {path}")
    assert units_planned(fleet, seen) == [change.do for change in finding.fix]


def test_a_service_that_systemd_is_still_starting_is_left_as_it_is() -> None:
    starting = ServiceState(None, None, "loaded, activating (start)", starting=True)
    found = findings(hosts={"web1": state(services={**state().services, "beat": starting})})
    finding = only(found, "worker.starting")
    assert (finding.blocks, finding.remedy) == ((Block("web1", "beat"),), None)
    assert finding.summary == (
        "systemd is still starting beat, and has no main process for it; not changed"
    )
    assert not {"beat.not_running", "worker.leaked_processes"} & {finding.code for finding in found}


def test_remediate_is_suggested_only_where_it_has_something_to_fix_and_would_not_refuse() -> None:
    start = Change("web1", "workers", "start beat", ControlService("beat", "start"))
    mendable, hopeless = (
        Finding("a", "web1", "x", remedy="start it", fix=(start,)),
        Finding("b", "web1", "y"),
    )
    assert can_be_fixed([hopeless, mendable])
    assert not can_be_fixed([hopeless])
    assert not can_be_fixed([])
    assert not can_be_fixed([mendable, replace(hopeless, blocks=(Block("web1"),))])
    assert can_be_fixed([mendable, replace(hopeless, blocks=(Block("web2"),))])
    assert not can_be_fixed([mendable, replace(hopeless, blocks=(Block(),))])


def test_an_application_with_another_visibility_timeout_than_the_inventorys_is_reported_with_both() -> (
    None
):
    probe = replace(
        GOOD,
        options={"visibility_timeout": 43200, "sep": "\x06\x16", "priority_steps": [0, 3, 6, 9]},
    )
    finding = only(
        findings(hosts={"web1": state(imports_now=probe, imports_wanted=probe)}),
        "broker.options_differ",
    )
    assert (finding.subject, finding.severity, finding.blocks) == ("web1", Severity.WARNING, ())
    assert finding.evidence == (
        "visibility_timeout: the application has 43200, the inventory 3600.0",
    )
    assert "celery_broker_options" in finding.summary


@pytest.mark.parametrize("option", ["global_keyprefix", "sep"])
def test_an_application_whose_keys_have_other_names_is_why_its_workers_do_not_answer(
    option: str,
) -> None:
    probe = replace(GOOD, options={option: "shop:"})
    silent = make_broker(FLEET, nodes={})
    found = findings(broker=silent, hosts={"web1": state(imports_now=probe, imports_wanted=probe)})
    assert only(found, "broker.options_differ").blocks


def test_an_option_that_the_inventorys_environment_sets_right_is_not_a_finding() -> None:
    now, wanted = replace(GOOD, options={"visibility_timeout": 1}), replace(GOOD, options={})
    assert findings(hosts={"web1": state(imports_now=now, imports_wanted=wanted)}) == ()


ELSEWHERE = {
    ENV_FILE: FileState(b"TIMEOUT=30\nREDIS=redis://127.0.0.1:7777/0\n", 0o640, NOW - 1000)
}


def test_where_the_workers_use_another_broker_no_finding_says_to_restart_or_start_them() -> None:
    silent = make_broker(FLEET, nodes={})
    finding = only(
        findings(broker=silent, hosts={"web1": state(files=ELSEWHERE)}), "broker.not_the_workers"
    )
    assert finding.blocks


def test_what_another_host_lacks_is_reported_beside_the_one_whose_workers_use_another_broker() -> (
    None
):
    other = make_host("web2", workers=(Worker(name="low", queues=("low_q",)),), beat=False)
    fleet = make_fleet(HOST, other)
    silent = make_broker(fleet, nodes={})
    found = findings(fleet, broker=silent, hosts={"web1": state(files=ELSEWHERE)})
    assert [(finding.code, finding.subject) for finding in found] == [
        ("broker.not_the_workers", "web1"),
        ("worker.not_answering", "low@web2"),
        ("queue.no_consumer", "low_q"),
    ]


def test_a_worker_that_may_run_without_a_drop_in_of_its_unit_is_left_running_and_that_is_reported() -> (
    None
):
    path = "/etc/systemd/system/celery-worker@high.service.d/x.conf"
    high = replace(state().services["high"], drop_ins={path: DropIn(NOW, "x")})
    found = findings(hosts={"web1": state(services={**state().services, "high": high})})
    assert path in one(found, "worker.touched_files").summary
    assert "`inv restart-workers --limit web1`" in one(found, "worker.touched_files").evidence[1]
    assert one(found, "worker.touched_files").fix == ()
    assert one(found, "unit.drop_in").severity is Severity.INFO
    assert not {"unit.differs", "unit.missing"} & {finding.code for finding in found}


HOARD = Hoard("high@web1", "high_q", 6, NOW - 300)
BUSY, IDLE = frozenset({"running", "waits"}), frozenset[str]()


@pytest.mark.parametrize(
    ("hoard", "other", "reported"),
    [
        (HOARD, {"holds": IDLE}, True),
        (replace(HOARD, since_at=NOW - 50), {"holds": IDLE}, False),
        (HOARD, {"holds": BUSY}, False),
        (HOARD, {"holds": None}, False),
        (HOARD, {"holds": IDLE, "queues": frozenset({"low_q"})}, False),
    ],
)
def test_messages_that_a_busy_node_hoards_are_reported_where_another_has_nothing_to_do(
    hoard: Hoard, other: Mapping[str, Any], reported: bool
) -> None:
    hosts = (make_host(), make_host("web2", beat=False))
    nodes = {"high@web1": node(holds=BUSY), "high@web2": node(name="high@web2", **other)}
    fleet = make_fleet(*hosts)
    found = [
        f
        for f in findings(fleet, broker=make_broker(fleet, nodes=nodes, hoards=(hoard,)))
        if "hoard" in f.code
    ]
    assert [finding.code for finding in found] == ["queue.hoarded"] * reported
    if reported:
        assert (found[0].subject, found[0].severity, found[0].remedy) == (
            "high_q",
            Severity.WARNING,
            None,
        )
        assert found[0].summary.startswith(
            "6 messages of high_q wait in high@web1 for up to 5 min, behind its running tasks"
        )
        assert found[0].summary.endswith(
            ": set worker_prefetch_multiplier = 1, and task_acks_late = True for tasks that may run"
            " twice, or start workers with --disable-prefetch (Celery 5.6); then restart them"
        )
        assert "high@web2" in found[0].evidence[0]


@pytest.mark.parametrize(
    ("options", "reported"), [({}, False), ({"visibility_timeout": 43200}, True)]
)
def test_a_running_worker_with_another_visibility_timeout_is_reported_whatever_prefix_there_is(
    options: dict[str, Any], reported: bool
) -> None:
    fleet = make_fleet(HOST, broker_options=BrokerOptions(global_keyprefix="shop:"))
    found = findings(fleet, broker=make_broker(fleet, nodes={"high@web1": node(options=options)}))
    assert [finding.code for finding in found] == ["broker.options_differ"] * reported
    if reported:
        assert found[0].evidence == (
            "visibility_timeout: the application has 43200, the inventory 3600.0",
        )


def test_a_probe_that_could_not_run_accuses_no_application_and_blocks_its_host() -> None:
    probe = ImportProbe(
        frozenset(), {}, failed="celery_app is x, and there is none\nTraceback\n  x"
    )
    finding = only(findings(hosts={"web1": with_imports(probe)}), "host.probe_failed")
    assert finding.summary.endswith("what it registers: celery_app is x, and there is none")
    assert (finding.evidence, finding.blocks, finding.remedy) == (
        ("Traceback", "  x"),
        (Block("web1"),),
        None,
    )


@pytest.mark.parametrize(
    "probe",
    [
        ImportProbe(frozenset(), {}, failed="celery_app is x, and there is none"),
        ImportProbe(frozenset(), {"": "ValueError: x"}),
    ],
)
def test_what_an_application_registers_and_accepts_is_said_only_where_it_was_loaded(
    probe: ImportProbe,
) -> None:
    waiting = make_queue(
        depth=9, by_task={NEW_TASK: TaskCount(9, 0, 0, None, None, 0)}, forms={NAMELESS: 9}
    )
    asleep = broker(nodes={}, queues={"high_q": waiting})
    found = findings(broker=asleep, hosts={"web1": with_imports(probe)})
    assert not {"task.never_imported", "task.would_be_discarded"} & {one.code for one in found}
    assert one(found, "message.would_be_discarded").evidence == ()
    loaded = with_imports(GOOD)
    found = findings(broker=asleep, hosts={"web1": loaded})
    expected = f"imported on the host, the application does not register {NEW_TASK}"
    assert one(found, "task.would_be_discarded").evidence == (expected,)
    assert one(found, "task.would_be_discarded").blocks == (Block("web1", "high"),)
    found = findings(broker=asleep, hosts={"web1": replace(loaded, imports_wanted=replace(GOOD))})
    assert one(found, "task.would_be_discarded").evidence == (
        f"{expected}, not even with the inventory's values",
    )


def test_a_probe_that_works_with_the_inventorys_environment_has_a_remedy_and_its_proof() -> None:
    probe = ImportProbe(frozenset(), {}, failed="celery_app is x, and there is none")
    finding = only(
        findings(hosts={"web1": with_imports(probe, GOOD, timeout="thirty")}), "host.probe_failed"
    )
    assert (finding.blocks, finding.remedy is not None) == ((), True)
    assert finding.evidence == (
        f"{ENV_FILE}: TIMEOUT is 'thirty', the inventory says '30'",
        (
            "tried on the host: with the inventory's values it loads, and registers the"
            " expected tasks"
        ),
    )


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            "Error 111 connecting to ssl-host:1. Connection refused.",
            "nothing listens there, or a firewall refuses",
        ),
        (
            "invalid username-password pair or user is disabled.",
            "the broker refuses its user or password",
        ),
        ("PSUBSCRIBE /0.celery.pidbox: No permissions to access a channel", "ACL SETUSER"),
        ("an unknown error", "the broker does not accept it"),
    ],
)
def test_a_worker_that_would_be_locked_out_keeps_its_host_as_it_is(error: str, why: str) -> None:
    out = replace(GOOD, broker_at="redis://cache:6379/0", broker_error=error)
    finding = only(findings(hosts={"web1": with_imports(out)}), "worker.would_be_locked_out")
    assert finding.summary.startswith(
        "a worker started on web1 now would get no messages from redis://cache:6379/0: "
    )
    assert why in finding.summary
    assert error in finding.evidence[0]
    assert finding.blocks == (Block("web1"),)
    assert finding.evidence[-1].startswith(
        "workers that run there answer: they keep their connections"
    )


def test_the_inventorys_environment_may_let_a_worker_in_or_lock_it_out() -> None:
    out = replace(GOOD, broker_error="Connection refused")
    mended = [
        one
        for one in findings(hosts={"web1": with_imports(out, GOOD, "5")})
        if "locked_out" in one.code
    ]
    assert [(one.blocks, bool(one.remedy)) for one in mended] == [((), True)]
    broken = [
        one
        for one in findings(hosts={"web1": with_imports(GOOD, out, "5")})
        if "locked_out" in one.code
    ]
    assert [one.blocks for one in broken] == [(Block("web1"),)]
    assert "with the inventory's celery_env" in broken[0].summary


@pytest.mark.parametrize(
    ("runs", "expected"), [(False, ["cron.not_running"]), (True, []), (None, [])]
)
def test_a_host_with_entries_for_cron_and_no_cron_is_reported(
    runs: bool | None, expected: list[str]
) -> None:
    found = findings(hosts={"web1": state(runs_cron=runs)})
    assert [one.code for one in found] == expected
    assert all("sudo systemctl enable --now cron (on Red Hat: crond)" in str(one) for one in found)
    assert all("if there is no such unit, install its package" in str(one) for one in found)
    timers = make_host(service_manager="systemd", commands=None, cron_scheduler="systemd")
    seen = make_state(timers, runs_cron=runs)
    assert findings(make_fleet(timers), hosts={"web1": seen}) == (), "timers run the entries"


def test_what_is_said_of_a_queue_that_was_not_read_to_its_end_is_said_to_be_of_a_sample() -> None:
    malformed = Selection("malformed", 2, {})
    queue = replace(make_queue(depth=1000, malformed=malformed), unseen=700)
    found = findings(broker=broker(queues={"high_q": queue}))
    finding = one(found, "queue.sampled")
    assert (finding.severity, finding.summary.partition(":")[0]) == (
        Severity.INFO,
        "only 300 of 1,000 messages in high_q were read in time",
    )
    assert one(found, "queue.malformed").summary.startswith(
        "at least 2 items are not Celery messages"
    )
    assert "queue.depth" not in {finding.code for finding in found}
