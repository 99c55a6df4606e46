"""What an operator accepts is shown and not counted, until its date."""

from datetime import UTC, date, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.fleet import Fleet
from runbooks.core.model import Client, Finding, ServiceState, Severity, Snapshot
from runbooks.core.settings import Accepted
from runbooks.diagnosis.files import STEPS
from runbooks.diagnosis.judge import can_be_fixed, judge, watch
from runbooks.verify import expectations
from tests.unit.fleets import (
    NOW,
    make_broker,
    make_fleet,
    make_queue,
    make_snapshot,
    make_state,
    nothing_wanted,
)

TODAY = datetime.fromtimestamp(NOW, UTC).date()
DOWN = ServiceState(None, None, "dead")


def fleet_that_accepts(code: str, subject: str = "*", until: date = TODAY) -> Fleet:
    return make_fleet(accepted=(Accepted(code=code, subject=subject, reason="known", until=until),))


def look(fleet: Fleet, **changes: Any) -> Snapshot:
    """One worker is down; messages wait in its queue, which has no consumer."""
    host = fleet.hosts[0]
    state = replace(make_state(host), services={**make_state(host).services, "high": DOWN})
    broker = make_broker(fleet, nodes={}, queues={"high_q": make_queue(depth=3)})
    return make_snapshot(fleet, broker=replace(broker, **changes), hosts={"web1": state})


def found(fleet: Fleet, snapshot: Snapshot | None = None) -> dict[str, Finding]:
    findings = judge(fleet, snapshot or look(fleet), dict.fromkeys(STEPS, nothing_wanted(fleet)))
    return {one.code: one for one in findings}


def test_what_is_accepted_is_a_note_until_the_end_of_its_day() -> None:
    fleet = fleet_that_accepts("worker.not_running", "high on *")
    down = found(fleet)["worker.not_running"]
    assert (down.severity, down.accepted, down.fix) == (Severity.INFO, f"until {TODAY}: known", ())
    fleet = fleet_that_accepts("worker.not_running", until=date.fromordinal(TODAY.toordinal() - 1))
    down = found(fleet)["worker.not_running"]
    assert (down.severity, down.accepted, bool(down.fix)) == (Severity.ERROR, "", True)
    assert down.evidence[-1].startswith("it was accepted until ")


def test_another_subject_counts_and_what_fits_nothing_is_reported() -> None:
    findings = found(fleet_that_accepts("worker.not_running", "low on *"))
    assert findings["worker.not_running"].severity is Severity.ERROR
    finding = findings["inventory.accepts_nothing"]
    assert (finding.severity, finding.summary) == (
        Severity.INFO,
        "celery_accepted has worker.not_running of low on *, but nothing matches it",
    )
    finding = found(fleet_that_accepts("worker.not_runing"))["inventory.accepts_nothing"]
    assert finding.severity is Severity.WARNING
    assert finding.summary.endswith("there is no such finding; did you mean 'worker.not_running'?")


def test_an_entry_about_a_host_that_was_not_checked_is_only_a_note() -> None:
    finding = found(fleet_that_accepts("worker.not_running", "high on web9"))
    assert finding["inventory.accepts_nothing"].severity is Severity.INFO


def test_what_blocks_goes_on_to_block() -> None:
    fleet = fleet_that_accepts("unit.masked")
    fleet = replace(fleet, hosts=(replace(fleet.hosts[0], settings=_under_systemd(fleet)),))
    host = fleet.hosts[0]
    state = replace(
        make_state(host), services={**make_state(host).services, "high": replace(DOWN, masked=True)}
    )
    masked = found(fleet, make_snapshot(fleet, hosts={"web1": state}))["unit.masked"]
    assert (masked.severity, bool(masked.blocks)) == (Severity.INFO, True)


def _under_systemd(fleet: Fleet) -> Any:
    return fleet.hosts[0].settings.model_copy(
        update={"service_manager": "systemd", "commands": None}
    )


@pytest.mark.parametrize("accepts", [True, False])
def test_checks_and_the_monitor_expect_nothing_of_what_is_accepted(accepts: bool) -> None:
    codes = ("worker.not_running", "queue.no_consumer", "worker.not_answering")
    entries = tuple(Accepted(code=code, reason="known", until=TODAY) for code in codes)
    fleet = make_fleet(accepted=entries if accepts else ())
    snapshot = look(fleet)
    findings = found(fleet, snapshot)
    checks = {
        check.what: check for check in expectations(fleet, snapshot, tuple(findings.values()))
    }
    for what in ("services run", "nodes answer ping", "queues are consumed", "no fault is left"):
        assert checks[what].ok is accepts, checks[what]
    if accepts:
        assert checks["queues are consumed"].seen == "0 of 0; accepted: high_q"
    assert bool(watch(fleet, snapshot)) is not accepts
    assert can_be_fixed(findings.values()) is not accepts


def test_messages_in_another_db_are_a_note_where_clients_take_messages_there() -> None:
    fleet = make_fleet()
    neighbour = Client("10.0.0.1:5", 3, takes_messages=True, to="")

    def severity(*clients: Client) -> Severity:
        broker = make_broker(fleet, depths_by_db={3: 1}, clients=clients)
        return found(fleet, make_snapshot(fleet, broker=broker))["broker.other_db"].severity

    assert severity(neighbour) is Severity.INFO
    assert (
        severity(replace(neighbour, db=2), replace(neighbour, takes_messages=False))
        is Severity.WARNING
    )
