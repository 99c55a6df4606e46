"""Beats are counted by their processes, whoever runs them."""

from typing import Any

from msgspec.structs import replace

from runbooks.core.application import Application, ScheduleEntry
from runbooks.core.census import BrokerPlace, CeleryProcess, Census, Kind, Manager, Options, Unit
from runbooks.core.command import Command
from runbooks.core.fleet import Fleet, Found
from runbooks.core.model import (
    Finding,
    HostState,
    NodeState,
    OtherRunner,
    ServiceState,
    Severity,
    Unreachable,
)
from runbooks.core.settings import Worker
from runbooks.diagnosis.census import table
from runbooks.diagnosis.census_beats import running, several
from runbooks.diagnosis.workers import faults
from tests.unit.fleets import (
    NOW,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
)

UNITS = {
    "old-beat.service": Unit(
        "old-beat.service", "/etc/systemd/system/old-beat.service", names_celery=True
    )
}
BESIDE = make_fleet(make_host(beat=False))


def a_beat(pid: int, *, scheduler: str = "", schedule: str = "", **more: Any) -> CeleryProcess:
    options = Options("beat", "shop", scheduler=scheduler, schedule=schedule)
    return CeleryProcess(pid, 4000, NOW, "S", Kind.BEAT, options, 1, **{"here": True} | more)


def a_worker(pid: int = 100, **more: Any) -> CeleryProcess:
    return CeleryProcess(
        pid,
        4000,
        NOW,
        "S",
        Kind.MAIN,
        Options("worker", "shop", "high@web1", with_beat=True),
        1,
        **more,
    )


def an_embedded(pid: int, parent: int, **more: Any) -> CeleryProcess:
    return CeleryProcess(
        pid, 4000, NOW, "S", Kind.EMBEDDED_BEAT, Options("worker", "shop"), parent, **more
    )


def found_on(fleet: Fleet, **hosts: HostState | tuple[CeleryProcess, ...]) -> list[Finding]:
    states = {
        host.name: make_state(host, census=Census(its, UNITS)) if isinstance(its, tuple) else its
        for host in fleet.hosts
        if (its := hosts.get(host.name, ()))
    }
    snapshot = make_snapshot(fleet, hosts=states)
    return list(several(fleet, snapshot, running(fleet, snapshot, table(fleet, snapshot))))


def test_four_beats_are_an_error_that_says_what_runs_each_and_how_often_each_entry_is_sent() -> (
    None
):
    fleet = make_fleet(
        make_host(),
        make_host(
            "web2", beat=False, workers=(Worker(name="high", queues=("high_q",), options=("-B",)),)
        ),
    )
    first = make_state(
        fleet.hosts[0],
        census=Census((a_beat(101), a_beat(200, unit="old-beat.service"), a_beat(201)), UNITS),
        application=Application(
            schedule=(ScheduleEntry("nightly", "shop.tasks.bill", schedule="every 5 min"),)
        ),
    )
    [finding] = found_on(fleet, web1=first, web2=(a_worker(), an_embedded(110, 100)))
    assert (finding.severity, finding.subject) == (Severity.ERROR, "web1, web2")
    assert finding.summary == "4 beats run, so each entry of the schedule is sent 4 times"
    assert finding.evidence == (
        "pid 101 on web1 (the inventory's beat)",
        "pid 200 on web1, which old-beat.service runs",
        "pid 201 on web1",
        "pid 110 on web2, the -B of pid 100 on web2 (the inventory's high)",
        "the schedule has nightly (every 5 min)",
        (
            "the inventory itself has 2 of them (beat on web1, high on web2): keep one celery_beat, or one worker with -B"
        ),
        "to end pid 200, on web1: sudo systemctl disable --now old-beat.service",
        "to end pid 201, on web1: sudo kill -TERM 201",
    )


def test_what_is_left_of_a_worker_with_b_is_a_beat() -> None:
    [finding] = found_on(
        BESIDE,
        web1=(a_worker(), an_embedded(110, 100), an_embedded(120, 1, leftover=True, here=True)),
    )
    assert "pid 120 on web1, left of a worker with -B that has ended" in finding.evidence
    assert "to end pid 120, on web1: sudo kill -TERM 120" in finding.evidence


def test_one_beat_is_not_one_too_many_whatever_else_there_is() -> None:
    elsewhere = a_beat(200, named_broker=BrokerPlace("127.0.0.1", 1, 5))
    another = replace(a_beat(201), options=Options("beat", "bakery"))
    assert found_on(make_fleet(), web1=(a_beat(101), elsewhere, another)) == []
    assert found_on(BESIDE, web1=(a_worker(), an_embedded(110, 100))) == []


def test_two_names_of_one_machine_have_its_beats_once() -> None:
    fleet = make_fleet(make_host(beat=False), make_host("web2", beat=False))
    states = {
        host.name: make_state(host, census=Census((a_beat(200),), UNITS), machine="a/b/c")
        for host in fleet.hosts
    }
    assert found_on(fleet, **states) == []


def test_a_beat_whose_process_does_not_show_counts_by_its_service() -> None:
    fleet = make_fleet()
    [finding] = found_on(fleet, web1=(a_beat(200),))
    assert finding.evidence[:2] == ("pid 101 on web1, the inventory's beat", "pid 200 on web1")


def test_beats_that_take_turns_are_not_a_fault() -> None:
    turns = "redbeat.RedBeatScheduler"
    [finding] = found_on(
        make_fleet(), web1=(a_beat(101, scheduler=turns), a_beat(200, scheduler=turns))
    )
    assert finding.severity is Severity.INFO
    [finding] = found_on(make_fleet(), web1=(a_beat(101, scheduler=turns), a_beat(200)))
    assert finding.severity is Severity.ERROR, "of one of them that is not known"


NIGHTLY = Application(
    schedule=(ScheduleEntry("nightly", "shop.tasks.bill", schedule="every 5 min"),)
)


def none_found(
    fleet: Fleet = BESIDE, *its: CeleryProcess, application: Application = NIGHTLY, **hosts: Any
) -> list[Finding]:
    """What is found of the schedule where web1 has these processes."""
    first = make_state(fleet.hosts[0], census=Census(its, UNITS), application=application)
    snapshot = make_snapshot(fleet, hosts={"web1": first} | hosts)
    return [one for one in faults(fleet, snapshot) if one.code == "beat.none"]


def test_a_schedule_that_no_beat_sends_is_a_warning() -> None:
    [finding] = none_found(BESIDE, a_worker())
    assert (finding.severity, finding.subject) == (Severity.WARNING, "shop")
    assert finding.summary == (
        "no beat runs on web1, and the schedule has 1 entry: unless a beat runs elsewhere, it is"
        " never sent"
    )
    assert finding.evidence[0] == "the schedule has nightly (every 5 min)"
    assert (
        finding.remedy
        == f"set celery_beat on the host that should run it, and apply that with {Command('remediate')}"
    )


def test_without_an_inventory_it_is_the_same_warning_with_advice_that_fits() -> None:
    fleet = replace(make_fleet(make_host(beat=False), nodes=("*",)), found=Found())
    [finding] = none_found(fleet, a_worker())
    assert (finding.severity, finding.remedy) == (
        Severity.WARNING,
        "start a beat; if one runs on another host, check that host, too",
    )


def test_while_a_beat_of_any_kind_runs_no_beat_is_missed() -> None:
    beats = (
        (a_beat(101),),
        (a_worker(), an_embedded(110, 100)),
        (a_beat(200, named_broker=BrokerPlace("127.0.0.1", 1, 5)),),
    )
    assert [none_found(BESIDE, *its) for its in beats] == [[], [], []]


def test_no_beat_is_missed_where_the_inventory_has_one_or_nothing_is_scheduled() -> None:
    assert none_found(make_fleet()) == []
    assert none_found(replace(BESIDE, has_beat=True)) == [], "on a host that --limit leaves out"
    assert none_found(application=Application()) == []


def test_no_beat_is_missed_while_a_host_where_it_may_run_was_not_checked() -> None:
    both = make_fleet(make_host(beat=False), make_host("web2", beat=False))
    assert none_found(both, web2=Unreachable("connection refused")) == []
    assert none_found(replace(BESIDE, unchecked={"web2": ("celery_python",)})) == []
    assert none_found(make_fleet(make_host(beat=False), nodes=("pod@*",))) == []


def test_where_workers_answer_from_hosts_that_were_not_checked_it_is_a_note() -> None:
    names = [f"high@web{number}" for number in (5, 6, 7, 8)]
    nodes = {name: NodeState(name, frozenset(), frozenset()) for name in names}
    fleet = BESIDE
    state = make_state(fleet.hosts[0], census=Census((), UNITS), application=NIGHTLY)
    snapshot = make_snapshot(fleet, hosts={"web1": state}, broker=make_broker(fleet, nodes=nodes))
    [finding] = [one for one in faults(fleet, snapshot) if one.code == "beat.none"]
    assert finding.severity is Severity.INFO
    shown = "high@web5, high@web6, high@web7, …"
    assert finding.evidence[-1] == f"4 nodes answer from hosts that were not checked: {shown}"


def silence(**host: Any) -> list[tuple[str, str]]:
    fleet = make_fleet(thresholds={"beat_silence": "10m"})
    state = make_state(fleet.hosts[0], **host)
    return [
        (one.code, one.summary)
        for one in faults(fleet, make_snapshot(fleet, hosts={"web1": state}))
    ]


def test_of_a_beat_that_runs_it_is_not_said_that_it_never_sent_anything() -> None:
    seen = Census((a_beat(101),), UNITS)
    assert [code for code, _ in silence(census=seen, beat_sent_at=None)] == ["beat.untold"]
    assert [
        code for code, _ in silence(census=Census((), UNITS), services={}, beat_sent_at=None)
    ] == ["beat.silent"]


def test_the_age_of_a_schedule_that_no_beat_keeps_says_nothing_of_it() -> None:
    other = Census((a_beat(101, schedule="run/other"),), UNITS)
    assert [code for code, _ in silence(census=other, beat_sent_at=NOW - 9000)] == ["beat.untold"]
    kept = Census((a_beat(101, schedule="/var/lib/celery-beat/schedule"),), UNITS)
    assert [code for code, _ in silence(census=kept, beat_sent_at=NOW - 9000)] == ["beat.silent"]


def test_a_unit_that_runs_nothing_but_one_of_several_beats_is_reported_once() -> None:
    fleet = make_fleet()
    census = Census((a_beat(101), a_beat(200, unit="old-beat.service")), UNITS)
    other = OtherRunner(
        "old-beat.service", {200: "beat"}, Manager.SYSTEMD, "/etc/systemd/system/old-beat.service"
    )
    state = make_state(fleet.hosts[0], census=census, others=(other,))
    found = list(faults(fleet, make_snapshot(fleet, hosts={"web1": state})))
    assert [one.code for one in found] == ["beat.several"]
    alone = replace(
        state,
        services={**state.services, "beat": ServiceState(None, None, "")},
        census=Census(census.processes[1:], UNITS),
    )
    found = list(faults(fleet, make_snapshot(fleet, hosts={"web1": alone})))
    assert found == [], "service.runs_elsewhere has it"
