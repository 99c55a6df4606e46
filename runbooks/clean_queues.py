"""`inv clean-queues`: archive or move messages that rules select, or that would kill a worker."""

from collections.abc import Collection

from runbooks.core.errors import ExitCode, NodesSilent, UsageError
from runbooks.core.model import BrokerState, Rule, Snapshot
from runbooks.core.rules import destination, literal, text
from runbooks.core.wording import did_you_mean
from runbooks.diagnosis.taking import notices
from runbooks.engine.context import Session
from runbooks.engine.main_loop import walk
from runbooks.engine.unfinished_moves import warn_of_half_moves


def clean_queues(session: Session) -> ExitCode:
    """Archive the selected messages, or move them to the queue of their rule.

    All other messages keep their places. A rule of the command line replaces the inventory's.
    """
    session.require_consent_possible()
    warn_of_half_moves(session)
    step = session.queues()
    if session.fleet.selection:
        _require_queues(session)
    snapshot = session.observe(step.needs)
    if session.fleet.selection:
        _require_known(session, snapshot)
        if not step.plan(snapshot):
            session.reporter.message(f"No message matches: {text(session.fleet.selection)}")
    for notice in notices(session.fleet, snapshot):
        session.reporter.message(f"note: {notice}")
    return walk(session, (step,), snapshot)


def _require_queues(session: Session) -> None:
    """Raise UsageError if no queue matches, or if no worker consumes the destination."""
    rule = session.fleet.selection
    consumed = session.fleet.consumed
    assert rule is not None
    if not session.fleet.queues:
        raise UsageError(f"--queue: no queue matches {rule.queue!r}", _the_queues(consumed))
    target, _ = destination(rule.requeue_to)
    if target and target not in consumed:
        hint = did_you_mean(target, consumed)
        problem = f"--requeue-to: no worker consumes {target!r}{hint}"
        raise UsageError(problem, _the_queues(consumed))


def _the_queues(consumed: Collection[str]) -> str:
    return f"the queues are {', '.join(consumed)}"


def _require_known(session: Session, snapshot: Snapshot) -> None:
    """Raise UsageError for a queue that does not exist; NodesSilent if no node answers."""
    rule = session.fleet.selection
    consumed = session.fleet.consumed
    broker = snapshot.broker
    assert rule is not None
    assert broker is not None
    for queue in literal(rule.queue):
        if queue not in consumed and not broker.queues[queue].depth:
            hint = did_you_mean(queue, consumed)
            problem = f"--queue: there is no queue {queue!r}{hint}"
            raise UsageError(problem, _the_queues(consumed))
    _require_list(session, rule, broker)
    if rule.unregistered and not broker.nodes:
        raise NodesSilent(
            "no node answers, so it is unknown which tasks are unregistered; nothing was changed",
            "start a worker first, or name the tasks with --task",
        )


def _require_list(session: Session, rule: Rule, broker: BrokerState) -> None:
    """Raise UsageError for a priority that no worker polls and that has no list."""
    options = session.fleet.app.broker_options
    priority = rule.priority
    if priority is None or priority in options.priority_steps:
        return
    suffix = f"{options.sep}{priority}"
    for state in broker.queues.values():
        if any(key.endswith(suffix) for key in state.depths):
            return
    steps = options.priority_steps
    below = max((step for step in steps if step < priority), default=steps[0])
    raise UsageError(
        f"--priority: there is no list of priority {priority}",
        f"the lists are {', '.join(map(str, steps))}; a message of priority {priority} waits in"
        f" the list of {below}",
    )
