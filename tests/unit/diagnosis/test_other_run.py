"""Services that another run restarts are not faults; possible effects of it name the run."""

from msgspec.structs import replace

from runbooks.core.model import Finding, OtherRun, ServiceState, Severity, Snapshot
from runbooks.core.settings import Worker
from runbooks.diagnosis.judge import judge, watch
from runbooks.monitoring.look import unsure
from tests.unit.fleets import (
    NOW,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
    nothing_wanted,
)

WORKERS = (Worker(name="high", queues=("high_q",)), Worker(name="low", queues=("low_q",)))
FLEET = make_fleet(make_host(workers=WORKERS))
RUN = OtherRun("ann on ops1 (pid 7)", "20250615-150000-0000", "remediate", NOW - 60)
RESTARTING = replace(RUN, restarts=frozenset({("web1", "high")}))
GOING_ON = (
    "run 20250615-150000-0000 is in progress: remediate by ann on ops1 (pid 7), since"
    " 2025-06-15T15:05:40Z"
)


def both_down(run: OtherRun | None) -> Snapshot:
    state = make_state(FLEET.hosts[0])
    down = {name: ServiceState(None, None, "inactive") for name in ("high", "low")}
    state = replace(state, services={**state.services, **down})
    return replace(
        make_snapshot(FLEET, broker=make_broker(FLEET, nodes={}), hosts={"web1": state}),
        other_run=run,
    )


def found(run: OtherRun | None) -> dict[tuple[str, str], Finding]:
    findings = judge(FLEET, both_down(run), {"unit": nothing_wanted(FLEET)})
    return {(finding.code, finding.subject): finding for finding in findings}


def test_of_a_service_that_is_being_restarted_all_is_one_finding_that_is_not_a_fault() -> None:
    findings = found(RESTARTING)
    finding = findings.pop(("service.being_restarted", "high on web1"))
    assert (finding.severity, finding.fix, finding.blocks) == (Severity.INFO, (), ())
    assert finding.evidence == ("high is not running", "high_q is empty and no node consumes it")
    alone = found(None)
    assert findings.keys() == alone.keys() - {
        ("worker.not_running", "high on web1"),
        ("queue.no_consumer", "high_q"),
    }
    assert (
        findings["worker.not_running", "low on web1"] == alone["worker.not_running", "low on web1"]
    )


def test_where_it_is_not_known_what_the_run_does_its_likely_traces_name_it() -> None:
    alone, beside = found(None), found(RUN)
    assert alone.keys() == beside.keys()
    for key in (("worker.not_running", "high on web1"), ("queue.no_consumer", "low_q")):
        assert beside[key] == replace(
            alone[key], evidence=(*alone[key].evidence, f"{GOING_ON}; it may be the reason")
        )


def test_what_a_run_has_set_aside_is_its_work_while_it_goes_on() -> None:
    broker = make_broker(FLEET)
    queues = {
        **broker.queues,
        "high_q": replace(broker.queues["high_q"], depths={"high_q": 5}, aside=5),
    }
    snapshot = make_snapshot(FLEET, broker=replace(broker, queues=queues))
    (left,) = [one for one in watch(FLEET, snapshot) if one.code == "queue.aside"]
    assert left.severity is Severity.WARNING
    assert watch(FLEET, replace(snapshot, other_run=RESTARTING)) == ()


def test_what_a_run_may_have_caused_may_still_hold_while_it_goes_on() -> None:
    alone, beside = unsure(both_down(None)), unsure(both_down(RESTARTING))
    for code in ("worker.not_answering", "queue.no_consumer"):
        assert (alone(code, "high@web1"), beside(code, "high@web1")) == (False, True)
