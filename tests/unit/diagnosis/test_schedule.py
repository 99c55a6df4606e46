"""The path of scheduled and routed tasks: each broken link, and no other, is a finding."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.application import (
    Application,
    KeptEntry,
    KeptSchedule,
    Parameter,
    Place,
    RegisteredTask,
    Route,
    ScheduleEntry,
)
from runbooks.core.command import Command
from runbooks.core.errors import Trouble
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    BrokerState,
    Finding,
    ImportProbe,
    NodeState,
    NotAsked,
    ServiceState,
    Severity,
    Snapshot,
    Stray,
)
from runbooks.core.settings import Worker
from runbooks.core.views import EntryLine
from runbooks.diagnosis.schedule import Path, faults, paths
from runbooks.schedule import _line
from tests.unit.fleets import NOW, make_broker, make_fleet, make_host, make_snapshot, make_state

WORKERS = (
    Worker(name="high", queues=("high_priority",)),
    Worker(name="low", queues=("low_priority",)),
)
HOST = make_host(workers=WORKERS)
CHECK, REPORT = "integrations.tasks.check_all_devices", "integrations.tasks.export_report"
FLEET = make_fleet(HOST, queue_rules=(), expected_tasks=())
DEVICE = Parameter("device", "positional_or_keyword", required=True)


def task(
    name: str, queue: str = "low_priority", *parameters: Parameter, **changes: Any
) -> RegisteredTask:
    return RegisteredTask(name, Route(queue), parameters=parameters, **changes)


def entry(
    name: str = "daily", task: str = CHECK, queue: str = "high_priority", **changes: Any
) -> ScheduleEntry:
    whole = ScheduleEntry(
        name, task, args=(), kwargs={}, route=Route(queue, priority=5), schedule="0 2 * * *"
    )
    return replace(whole, **changes)


def node(name: str, queue: str, *tasks: str, **changes: Any) -> NodeState:
    return replace(
        NodeState(f"{name}@web1", frozenset(tasks or (CHECK, REPORT)), frozenset({queue})),
        **changes,
    )


def nodes(*each: NodeState) -> BrokerState:
    every = each or (node("high", "high_priority"), node("low", "low_priority"))
    return make_broker(FLEET, nodes={one.name: one for one in every})


def found(
    *entries: ScheduleEntry, broker: BrokerState | None = None, fleet: Fleet = FLEET, probe: ImportProbe | None = None,
    tasks: Sequence[RegisteredTask] = (task(CHECK), task(REPORT)), **said: Any,
) -> Sequence[Finding]:  # fmt: skip
    own = Application(tasks=tuple(tasks), schedule=entries, default_queue="low_priority", **said)
    state = make_state(HOST, application=own, imports_now=probe)
    snapshot = make_snapshot(fleet, broker=broker or nodes(), hosts={HOST.name: state})
    return tuple(faults(fleet, snapshot))


def only(findings: Sequence[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_entries_that_lead_to_a_worker_give_no_finding_by_both_versions_of_the_incident() -> None:
    v1 = entry(queue="low_priority", route=Route("low_priority", priority=1))
    v2 = entry(route=Route("high_priority", priority=5))
    assert found(v1) == found(v2) == ()
    cleanup = entry("backend_cleanup", "celery.backend_cleanup")
    assert found(cleanup, tasks=[task("celery.backend_cleanup")]) == ()


@pytest.mark.parametrize(
    ("scheme", "codes"), [("disabled", []), ("redis", []), ("django-db", ["schedule.no_consumer"])]
)
def test_celerys_own_cleanup_needs_a_worker_only_where_results_do_not_expire_by_themselves(
    scheme: str, codes: list[str]
) -> None:
    cleanup = entry("celery.backend_cleanup", "celery.backend_cleanup", queue="celery")
    said = found(cleanup, tasks=[task("celery.backend_cleanup")], backend=(Place(scheme),))
    assert [one.code for one in said] == codes


def test_of_many_entries_a_misspelt_queue_and_a_misspelt_task_are_named_with_the_nearest() -> None:
    many = [entry(f"entry {n}") for n in range(21)]
    typos = [
        entry("one", queue="hgih_priority"),
        entry("two", task="integrations.tasks.chek_all_devices"),
    ]
    queue, name = found(*many, *typos)
    assert (queue.code, queue.subject, queue.severity) == (
        "schedule.no_consumer",
        "one",
        Severity.ERROR,
    )
    assert queue.summary.endswith(
        "so its messages pile up there: correct the queue, or add it to a worker; did you mean"
        " 'high_priority'?"
    )
    assert (name.code, name.subject) == ("schedule.unknown_task", "two")
    assert "the worker that takes it discards it: correct the name in the schedule" in name.summary
    assert name.summary.endswith(
        f"or make the application import its module; did you mean '{CHECK}'?"
    )
    assert name.evidence[1] == "inspect registered: none of high@web1, low@web1 knows it"


def test_a_queue_whose_worker_is_down_is_left_to_the_findings_of_that_worker() -> None:
    assert found(entry(), broker=nodes(node("low", "low_priority"))) == ()


def test_a_name_that_is_not_close_is_not_offered() -> None:
    assert "did you mean" not in only(found(entry(queue="stock"))).summary
    assert "did you mean" not in only(found(entry(task="integrations.tasks.bill"))).summary


def test_what_only_a_node_knows_is_not_an_unknown_task() -> None:
    assert (
        found(entry(task="old.task"), broker=nodes(node("high", "high_priority", "old.task"))) == ()
    )


def test_what_the_application_of_another_host_knows_is_not_an_unknown_task() -> None:
    other = make_host("web2", beat=False, workers=())
    fleet = make_fleet(HOST, other, queue_rules=(), expected_tasks=())
    of_beat = Application(schedule=(entry(task="new.task", queue="low_priority"),))
    for tasks, codes in (((), ["schedule.unknown_task"]), ((task("new.task"),), [])):
        states = {
            "web1": make_state(HOST, application=of_beat),
            "web2": make_state(other, application=Application(tasks=tasks)),
        }
        findings = faults(fleet, make_snapshot(fleet, broker=nodes(), hosts=states))
        assert [one.code for one in findings if one.code == "schedule.unknown_task"] == codes


def test_a_task_whose_module_fails_to_import_is_reported_as_that_alone() -> None:
    probe = ImportProbe(frozenset(), {"integrations.tasks": "ValueError: x"})
    silent = make_broker(FLEET, nodes={})
    assert found(entry(), broker=silent, probe=probe, tasks=[]) == ()


def test_arguments_that_do_not_fit_are_reported_with_what_the_task_takes() -> None:
    one = [task(CHECK, "low_priority", DEVICE)]
    finding = only(found(entry(kwargs={"devise": 1}), tasks=one))
    assert finding.code == "schedule.bad_arguments"
    assert "so beat cannot send it: missing a required argument: 'device'" in finding.summary
    assert finding.summary.endswith("; correct its args and kwargs in the schedule")
    assert finding.evidence == (
        "args [], kwargs {'devise': 1}", f"loaded on web1, {CHECK} takes device",
    )  # fmt: skip
    assert found(entry(args=(1,)), tasks=one) == found(entry(args=("no device",)), tasks=one) == ()
    unchecked = [task(CHECK, "low_priority", DEVICE, checks_arguments=False)]
    assert "so each run fails" in only(found(entry(), tasks=unchecked)).summary


def test_what_the_router_refuses_is_reported() -> None:
    finding = only(found(entry(route=Route(error="QueueNotFound: 'x'"))))
    assert (finding.code, finding.subject) == ("schedule.unsendable", "daily")
    assert "correct its options or the application's task_queues" in finding.summary
    assert finding.evidence[0].endswith(f"reports for {CHECK}: QueueNotFound: 'x'")


def test_a_silent_node_may_consume_the_queue_so_that_no_one_does_is_a_warning_then() -> None:
    assert (
        only(found(entry(queue="x"), broker=replace(nodes(), unheard=True))).severity
        is Severity.WARNING
    )


def test_where_nodes_could_not_be_asked_the_consumer_is_not_known() -> None:
    unasked = NotAsked(Trouble.UNREACHABLE, "it does not answer", "")
    assert (
        found(entry(queue="x"), broker=replace(make_broker(FLEET, nodes={}), unasked=unasked)) == ()
    )


def test_a_worker_that_takes_it_and_does_not_know_it_is_reported_once() -> None:
    old = nodes(node("high", "high_priority", REPORT), node("more", "high_priority"))
    finding = only(found(entry(), broker=old))
    assert finding.code == "schedule.not_registered"
    assert "deploy the code with the task there and restart it, or give it" in finding.summary
    assert finding.evidence == (f"inspect registered: high@web1 lacks {CHECK}",)
    named = make_fleet(HOST, queue_rules=(), expected_tasks=(CHECK,))
    assert found(entry(), broker=old, fleet=named) == (), "task.not_registered says it"


@pytest.mark.parametrize(
    ("priority", "codes"), [(5, ["schedule.unpolled_priority"]), (2, []), (None, [])]
)
def test_a_list_that_the_worker_does_not_poll_is_reported(
    priority: int | None, codes: list[str]
) -> None:
    old = nodes(
        node("high", "high_priority", options={"priority_steps": [0, 9]}),
        node("more", "high_priority", options={"priority_steps": [0, 3, 6, 9]}),
    )
    findings = found(entry(route=Route("high_priority", priority=priority)), broker=old)
    assert [finding.code for finding in findings] == codes
    assert all(
        finding.summary.endswith(
            "into the list of priority 3 of high_priority, which high@web1 does not poll: set the"
            " same priority_steps for both"
        )
        for finding in findings
    )


def test_an_exchange_without_a_queue_is_not_known_and_no_fault() -> None:
    own = Application(
        tasks=(task(CHECK),), schedule=(entry(route=Route(exchange="all", routing_key="x")),)
    )
    snapshot = make_snapshot(
        FLEET, broker=nodes(), hosts={"web1": make_state(HOST, application=own)}
    )
    (path,) = paths(FLEET, snapshot)
    assert path.broken == ()
    assert path.unknown == (
        "its worker is not known: it goes to exchange all with the routing key 'x'",
    )


def test_a_route_to_a_queue_that_no_one_consumes_names_its_tasks_and_the_nearest() -> None:
    typo = [task(CHECK, "hgih_priority"), task(REPORT, "hgih_priority")]
    finding = only(found(tasks=typo))
    assert (finding.code, finding.subject, finding.severity) == (
        "route.no_consumer", "hgih_priority", Severity.WARNING,
    )  # fmt: skip
    assert CHECK in finding.summary
    advice = "correct the route, or add the queue to a worker; did you mean 'high_priority'?"
    assert finding.summary.endswith(advice)
    named = make_fleet(HOST, queue_rules=(), expected_tasks=(CHECK, REPORT))
    assert only(found(tasks=typo, fleet=named)).severity is Severity.ERROR


def test_what_is_left_to_a_default_queue_of_no_one_is_not_a_fault_unless_it_waits_there() -> None:
    own = Application(tasks=(task(CHECK, "celery"),), default_queue="celery")
    fleet = make_fleet(HOST, queue_rules=(), expected_tasks=(CHECK,))
    hosts = {"web1": make_state(HOST, application=own)}
    assert not list(faults(fleet, make_snapshot(fleet, broker=nodes(), hosts=hosts)))
    waits = replace(nodes(), strays={"celery": Stray("celery", 0, 1, {CHECK: 1}, {})})
    finding = only(list(faults(fleet, make_snapshot(fleet, broker=waits, hosts=hosts))))
    assert (finding.code, finding.subject) == ("route.no_consumer", "celery")


def test_of_several_hosts_only_what_those_of_beat_say_counts() -> None:
    other = make_host("web2", beat=False, workers=WORKERS)
    fleet = make_fleet(HOST, other, queue_rules=(), expected_tasks=())
    states = {
        host.name: make_state(
            host, application=Application(tasks=(task(CHECK),), schedule=(entry(queue=queue),))
        )
        for host, queue in ((HOST, "high_priority"), (other, "nowhere"))
    }
    assert list(faults(fleet, make_snapshot(fleet, broker=nodes(), hosts=states))) == []


def beats(kept: KeptSchedule, started_at: float = NOW - 9000, **changes: Any) -> Snapshot:
    """Beat's scheduler keeps this; beat has been running since."""
    own = Application(tasks=(task(CHECK),), schedule=(HOURLY,))
    services = {HOST.beat: ServiceState(1, started_at, "1")}
    state = make_state(HOST, application=own, kept=kept, services=services, **changes)
    return make_snapshot(FLEET, broker=nodes(), hosts={"web1": state})


HOURLY = entry(schedule="1 h", every_s=3600.0)
OTHER = KeptEntry(entry("other"), last_sent_at=NOW - 30)


@pytest.mark.parametrize(
    ("last_s", "started_s", "codes"),
    [(7500, 9000, ["schedule.overdue"]), (7500, 3700, []), (3500, 9000, []), (3640, 9000, [])],
    ids=[
        "due long ago",
        "due before beat was started",
        "not due yet",
        "due when beat wrote down what it had sent",
    ],
)
def test_an_entry_that_beat_did_not_send_when_it_was_due_is_reported(
    last_s: int, started_s: int, codes: list[str]
) -> None:
    own = KeptEntry(HOURLY, True, NOW - last_s, NOW - last_s)
    snapshot = beats(KeptSchedule("tables", "django", (own, OTHER)), NOW - started_s)
    findings = list(faults(FLEET, snapshot))
    assert [finding.code for finding in findings] == codes
    assert all(str(Command("tail-logs", "--grep", "daily")) in one.summary for one in findings)
    off = KeptSchedule("tables", "django", (replace(own, enabled=False), OTHER))
    assert list(faults(FLEET, beats(off, NOW - started_s))) == []


def test_beats_file_was_written_when_its_time_says() -> None:
    own = KeptEntry(HOURLY, True, NOW - 7500, NOW - 7500)
    alone = KeptSchedule("file", "celery.beat:PersistentScheduler", (own,))
    assert (
        only(tuple(faults(FLEET, beats(alone, beat_sent_at=NOW - 100)))).code == "schedule.overdue"
    )
    assert list(faults(FLEET, beats(alone, beat_sent_at=NOW - 7400))) == []


def test_when_it_was_sent_is_not_known_where_the_scheduler_could_not_be_read_and_what_is_off_is_not_a_fault() -> (
    None
):
    (path,) = paths(FLEET, beats(KeptSchedule(error="no such table")))
    assert (path.why_unknown, path.last_sent_at) == (
        "beat's schedule could not be read: no such table",
        None,
    )
    off = KeptEntry(entry(queue="nowhere"), enabled=False)
    (path,) = paths(FLEET, beats(KeptSchedule("tables", "django", (off,))))
    assert (path.enabled, path.broken) == (False, ())


@pytest.mark.parametrize("kind", ["tables", "redbeat"])
def test_an_entry_of_the_code_that_its_scheduler_lacks_counts_as_well(kind: Any) -> None:
    both = paths(FLEET, beats(KeptSchedule(kind, "", (OTHER,))))
    assert [path.entry.name for path in both] == ["other", "daily"]


def line_of(kept: KeptSchedule, **changes: Any) -> EntryLine:
    """The line of the only entry."""
    (path,) = paths(FLEET, beats(kept, **changes))
    return _line(path)


def test_an_entry_is_shown_with_its_task_its_queue_its_consumers_and_its_times() -> None:
    sent = KeptEntry(HOURLY, True, NOW - 600, NOW - 600)
    assert line_of(KeptSchedule("tables", "django", (sent,))) == EntryLine(
        entry="daily",
        host="web1",
        task=CHECK,
        schedule="every 1 h",
        enabled=True,
        queue="high_priority",
        priority=5,
        consumers=("high@web1",),
        last_sent_at=NOW - 600,
        next_due_at=NOW + 3000,
        untold="",
        broken=(),
        unknown=(),
    )
    written = _line(Path(entry(), "web1"))
    assert (written.schedule, written.last_sent_at, written.untold) == ("0 2 * * *", None, "")
    unrouted = _line(Path(entry(route=None), "web1"))
    assert (unrouted.queue, unrouted.priority) == (None, None)


def test_when_an_entry_is_due_is_null_where_it_is_late_or_off_and_when_it_was_sent_where_never() -> (
    None
):
    new = line_of(KeptSchedule("tables", "django", (KeptEntry(HOURLY, True, None, NOW - 600),)))
    assert (new.last_sent_at, new.untold, new.next_due_at) == (None, "", NOW + 3000)
    late = KeptEntry(HOURLY, True, NOW - 7500, NOW - 7500)
    overdue = line_of(KeptSchedule("redbeat", "", (late,)))
    assert (overdue.last_sent_at, overdue.next_due_at) == (NOW - 7500, None)
    assert overdue.broken == ("it was due 1 h 5 min ago, and beat has not sent it",)
    off = line_of(KeptSchedule("tables", "", (KeptEntry(HOURLY, False, NOW - 600, NOW - 600),)))
    assert (off.enabled, off.last_sent_at, off.next_due_at) == (False, NOW - 600, None)
    unread = line_of(KeptSchedule(error="no such table"))
    assert (unread.last_sent_at, unread.untold) == (
        None,
        "beat's schedule could not be read: no such table",
    )


def test_an_entry_is_of_the_host_of_beat_or_without_one_of_a_host_that_has_the_application() -> (
    None
):
    other = make_host("web0", beat=False, workers=WORKERS)
    own = Application(tasks=(task(CHECK),), schedule=(entry(),))
    for host, name in ((HOST, "web1"), (make_host(beat=False, workers=WORKERS), "web0")):
        fleet = make_fleet(other, host, queue_rules=(), expected_tasks=())
        states = {each.name: make_state(each, application=own) for each in fleet.hosts}
        (path,) = paths(fleet, make_snapshot(fleet, broker=nodes(), hosts=states))
        assert _line(path).host == name


def test_what_keeps_an_entry_from_being_run_and_what_is_not_known_of_it_are_told_apart() -> None:
    def shown(*entries: ScheduleEntry) -> EntryLine:
        own = Application(tasks=(task(CHECK),), schedule=entries)
        states = {"web1": make_state(HOST, application=own)}
        (path,) = paths(FLEET, make_snapshot(FLEET, broker=nodes(), hosts=states))
        return _line(path)

    broken = shown(entry(queue="nowhere"))
    assert (broken.consumers, broken.unknown) == ((), ())
    assert broken.broken == ("no worker consumes nowhere",)
    unknown = shown(entry(route=None))
    assert unknown.broken == ()
    assert unknown.unknown == ("its queue is not known: only beat can create its arguments",)


def test_a_queue_of_a_worker_of_the_inventorys_that_is_away_is_that_workers_fault() -> None:
    low = nodes(node("low", "low_priority"))
    assert found(entry(), broker=low) == ()
    assert found(tasks=[task(CHECK, "high_priority"), task(REPORT)], broker=low) == ()
