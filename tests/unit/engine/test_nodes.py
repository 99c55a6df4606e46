"""What is done to nodes, and what is not: silent ones, a pool of another kind, too many tasks."""

from typing import Any

import pytest

from runbooks.controls import pool, revoke
from runbooks.core.effects import BROKER, Change, RestoreMessages, TakeMessages
from runbooks.core.errors import ExitCode, RunbookError, UsageError
from runbooks.core.model import NodeState
from runbooks.core.reporter import Outcome
from runbooks.engine.chosen import chosen_nodes
from runbooks.engine.one_by_one import one_by_one
from runbooks.engine.recap import Recap
from runbooks.workers import nodes
from tests.unit.engine.conftest import World


def test_a_pattern_selects_nodes_by_their_own_name_or_the_inventorys() -> None:
    answering = {
        label: NodeState(name, frozenset(), frozenset())
        for label, name in (("high@web1", "celery@5f2"), ("low@web1", "low@web1"))
    }
    for patterns, labels in (
        ("high*", ["high@web1"]),
        ("celery@*", ["high@web1"]),
        ("high*,low@web1", ["high@web1", "low@web1"]),
    ):
        selected, silent = chosen_nodes(answering, ["celery@5f2", "low@web1"], patterns)
        assert (list(selected), silent) == (labels, [])
    assert chosen_nodes(answering, ["low@web2"], "low*")[1] == ["low@web2"]


@pytest.fixture
def silent(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A fleet whose only node that listens to remote control does not answer."""
    monkeypatch.setattr(world.broker, "listening", lambda: frozenset({"high@web1"}))
    return world


def test_a_silent_node_is_skipped_and_named(silent: World) -> None:
    assert pool(silent.session(), "high*", 1) == ExitCode.OK
    assert any("high@web1 is skipped: it does not answer" in one for one in said(silent))
    assert not silent.broker.is_locked


def test_where_no_node_answers_that_is_shown_and_the_exit_code_is_4(
    silent: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silent.broker, "node_views", lambda _: (), raising=False)
    shown: list[Any] = []
    monkeypatch.setattr(silent.reporter, "view", shown.append, raising=False)
    assert nodes(silent.session(), "high*") == ExitCode.UNREACHABLE
    assert [view.silent for view in shown] == [("high@web1",)]


def test_a_pool_that_is_not_one_of_processes_is_not_resized(world: World) -> None:
    world.remediate("web1")
    assert pool(world.session(), "high*", 1) == ExitCode.FAILED
    assert any("only a prefork pool can be resized" in one for one in said(world))


def test_more_than_ten_thousand_tasks_are_not_revoked(world: World) -> None:
    with pytest.raises(UsageError, match="the limit is 10,000"):
        revoke(world.session(), [str(n) for n in range(10_001)], None)


def test_the_first_change_that_fails_ends_the_run_and_the_record_has_those_before_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def take(effect: TakeMessages, *_: object) -> str:
        if effect.queue == "b":
            raise RunbookError("no")
        made.append(effect.queue)
        return "taken out"

    monkeypatch.setattr(world.broker, "take", take)
    changes = [
        Change(BROKER, "queues", queue, TakeMessages(queue, queue, ()), RestoreMessages(queue))
        for queue in "abc"
    ]
    with pytest.raises(RunbookError, match="no"):
        one_by_one(world.session(), changes, Recap(), "Change them?")
    assert made == ["a"]
    outcomes = {entry.change.summary: entry.outcome for entry in world.last_run().entries}
    assert (outcomes["a"], outcomes.get("c")) == (Outcome.CHANGED, None)
    assert outcomes["b"] is not Outcome.CHANGED


def said(world: World) -> list[str]:
    """What was warned of."""
    return list(world.reporter.printed)
