"""The canary task is sent only if a worker can run it."""

from contextlib import nullcontext

import pytest
from msgspec.structs import replace
from pydantic import SecretStr

from runbooks.core.effects import BROKER
from runbooks.core.model import NodeState
from runbooks.core.reporter import Outcome
from runbooks.core.settings import Canary
from runbooks.engine.recap import Recap
from runbooks.engine.run import recorded
from runbooks.task_runs.canary import run_canary
from tests.unit.engine.conftest import World
from tests.unit.fleets import TASKS


def run(world: World, queue: str, *nodes: NodeState) -> Recap:
    session = world.session("web1")
    canary = Canary(task=TASKS[0], queue=queue)
    app = session.fleet.app.model_copy(update={"result_backend": SecretStr("redis://here/1")})
    session.fleet = replace(session.fleet, app=app)
    recap = Recap()
    with recorded(session, recap) as made:
        run_canary(made, canary, {node.name: node for node in nodes})
    return recap


HERE = NodeState("high@web1", frozenset(TASKS), frozenset(["high_q"]))
OUTSIDE = NodeState("low@db1", frozenset(TASKS), frozenset(["low_q"]))


def test_a_canary_whose_queue_only_silent_hosts_outside_limit_consume_is_not_sent_and_no_failure(
    world: World,
) -> None:
    recap = run(world, "low_q", HERE)
    assert (recap.exit_code, recap.at(BROKER).skipped) == (0, 1)
    ((_, _, outcome, why),) = world.reporter.changes
    assert outcome is Outcome.SKIPPED
    assert (
        why
        == "not sent: no node that answers consumes low_q; the inventory says that only hosts outside"
        " --limit do"
    )
    assert world.last_run().entries == []


@pytest.mark.parametrize(("queue", "nodes"), [("low_q", (HERE, OUTSIDE)), ("high_q", ())])
def test_a_canary_that_someone_may_run_is_sent(
    world: World, queue: str, nodes: tuple[NodeState, ...]
) -> None:
    """With none that answers, a solo worker of this host may be at its task."""
    sent: list[str] = []

    class Sent(Exception): ...

    def run_task(canary: Canary, *_: object) -> None:
        sent.append(canary.queue)
        raise Sent

    world.broker.run_task = run_task  # type: ignore[attr-defined]
    world.broker.watch = lambda *_: nullcontext()  # type: ignore[attr-defined]
    with pytest.raises(Sent):
        run(world, queue, *nodes)
    assert sent == [queue]
