"""What is said to be as expected was seen, on each host."""

from msgspec.structs import replace

from runbooks.core.errors import Trouble
from runbooks.core.model import BrokerState, NotAsked
from runbooks.core.needs import Needs
from runbooks.core.reporter import Check
from runbooks.core.rules import QueueRule
from runbooks.core.settings import Probe, Worker
from runbooks.engine.context import Session
from runbooks.verify import expectations
from tests.unit.engine.conftest import World
from tests.unit.fleets import make_broker, make_fleet, make_host, make_snapshot


def checks(session: Session) -> dict[str, Check]:
    snapshot = session.observe(Needs.EVERYTHING & ~Needs.IMPORTS | Needs.PROBES)
    return {check.what: check for check in expectations(session.fleet, snapshot, ())}


def test_a_service_that_runs_elsewhere_only_is_missed_where_it_should_run(world: World) -> None:
    world.remediate()
    assert checks(world.session())["services run"].ok
    world.path("web2", "high.pid").unlink()
    check = checks(world.session())["services run"]
    assert (check.ok, check.seen) == (False, "3 of 4; not high on web2")


def test_what_cannot_be_seen_on_a_host_that_is_away_is_not_said_to_be_right(world: World) -> None:
    probe = Probe(name="disk", command="true")
    world.hosts = {
        name: replace(host, settings=host.settings.model_copy(update={"probes": (probe,)}))
        for name, host in world.hosts.items()
    }
    world.remediate()
    world.transports["web2"].is_gone = True
    by_what = checks(world.session())
    services = by_what["services run"]
    assert (services.ok, services.seen) == (None, "2 of 2; not checked: 2 on web2")
    assert by_what["probe disk on web1"].ok
    assert by_what["probe disk on web2"].ok is None
    assert by_what["hosts answer"].ok is False


def test_of_a_solo_worker_at_its_task_nothing_is_said_to_be_wrong_or_right() -> None:
    fleet = make_fleet(
        make_host(workers=(Worker(name="high", queues=("high_q",), options=("-P", "solo")),))
    )
    snapshot = make_snapshot(
        fleet, broker=make_broker(fleet, nodes={}, consumer_ages_s=(400,), blocked_clients=0)
    )
    by_what = {check.what: check for check in expectations(fleet, snapshot, ())}
    unseen = [
        "nodes answer ping",
        "nodes register all 2 expected tasks",
        "queues are consumed",
    ]
    assert [what for what, check in by_what.items() if check.ok is None] == unseen
    assert (
        by_what["nodes answer ping"].seen
        == "0 of 1; a solo worker does not answer during a task: high@web1"
    )
    assert all(check.ok is not False for check in by_what.values())


def test_of_nodes_that_could_not_be_asked_nothing_is_said() -> None:
    why = NotAsked(Trouble.LOADING, "it loads", "wait")
    snapshot = make_snapshot(fleet := make_fleet(), broker=BrokerState.not_seen(why))
    by_what = {check.what: check for check in expectations(fleet, snapshot, ())}
    unseen = {check.seen for check in by_what.values() if check.ok is None}
    assert unseen == {"not checked (broker.loading)"}
    assert [what for what, check in by_what.items() if check.ok] == [
        "hosts answer",
        "services run",
        "no fault is left",
    ]


def test_queues_of_hosts_outside_the_limit_are_not_asked_for() -> None:
    fleet = make_fleet()
    limited = replace(
        fleet, all_workers=(*fleet.all_workers, Worker(name="low", queues=("low_q",)))
    )
    snapshot = make_snapshot(limited, broker=make_broker(fleet))
    by_what = {check.what: check for check in expectations(limited, snapshot, ())}
    assert (by_what["queues are consumed"].ok, by_what["queues are consumed"].seen) == (
        True,
        "1 of 1",
    )


def test_a_queue_that_only_a_rule_names_needs_no_consumer() -> None:
    rule = QueueRule(reason="given up", queue="dead_q", expired=True)
    fleet = make_fleet(queue_rules=(rule,))
    by_what = {check.what: check for check in expectations(fleet, make_snapshot(fleet), ())}
    assert (by_what["queues are consumed"].ok, by_what["queues are consumed"].seen) == (
        True,
        "1 of 1",
    )
