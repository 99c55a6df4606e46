"""What is said to be as expected was seen, on each host."""

from msgspec.structs import replace

from runbooks.core.reporter import Check
from runbooks.core.settings import Probe
from runbooks.engine.session import Session
from runbooks.steps.step import Needs
from runbooks.verify import expectations
from tests.unit.engine.conftest import World


def checks(session: Session) -> dict[str, Check]:
    snapshot = session.observe(Needs.EVERYTHING & ~Needs.IMPORTS | Needs.PROBES)
    return {check.what: check for check in expectations(session, snapshot, ())}


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
    told = checks(world.session())
    services = told["services run"]
    assert (services.ok, services.seen) == (None, "2 of 2; not seen: 2 on web2")
    assert told["probe disk on web1"].ok
    assert told["probe disk on web2"].ok is None
    assert told["hosts answer"].ok is False
