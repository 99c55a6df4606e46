"""`inv clean-queues`: take out what the rules mean, and what would kill a worker, or move it on;
lose nothing.
"""

from runbooks.core.errors import ExitCode, NodesSilent, UsageError
from runbooks.core.model import BrokerState, Rule, Snapshot
from runbooks.core.rules import destination, literal, text
from runbooks.core.wording import did_you_mean
from runbooks.diagnosis.taking import notices
from runbooks.engine.context import Session
from runbooks.engine.main_loop import walk
from runbooks.engine.unfinished_moves import warn_of_half_moves


def clean_queues(session: Session) -> ExitCode:
    """The messages go into the run's archive, or into the queue that their rule names; every other
    one stays in place.

    A rule of the command line stands in for the inventory's.
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
            session.reporter.message(f"No message fits: {text(session.fleet.selection)}")
    for notice in notices(session.fleet, snapshot):
        session.reporter.message(f"note: {notice}")
    return walk(session, (step,), snapshot)


def _require_queues(session: Session) -> None:
    """Raise UsageError where the selection names no queue, or moves messages to where nobody
    consumes them.
    """
    rule, consumed = session.fleet.selection, session.fleet.consumed
    assert rule is not None
    if not session.fleet.queues:
        raise UsageError(
            f"--queue: no queue fits {rule.queue!r}", f"there are {', '.join(consumed)}"
        )
    target, _ = destination(rule.requeue_to)
    if target and target not in consumed:
        hint = did_you_mean(target, consumed)
        raise UsageError(
            f"--requeue-to: no worker consumes {target!r}{hint}", f"there are {', '.join(consumed)}"
        )


def _require_known(session: Session, snapshot: Snapshot) -> None:
    """Raise where the selection names a queue that is not there, or asks what only nodes can tell
    and none does.
    """
    rule, consumed, broker = session.fleet.selection, session.fleet.consumed, snapshot.broker
    assert rule is not None
    assert broker is not None
    for queue in literal(rule.queue):
        if queue not in consumed and not broker.queues[queue].depth:
            hint = did_you_mean(queue, consumed)
            raise UsageError(
                f"--queue: there is no queue {queue!r}{hint}", f"there are {', '.join(consumed)}"
            )
    _require_list(session, rule, broker)
    if rule.unregistered and not broker.nodes:
        raise NodesSilent(
            "no node answers, so nobody can say which tasks are unregistered; nothing was changed",
            "start a worker first, or name the tasks with --task",
        )


def _require_list(session: Session, rule: Rule, broker: BrokerState) -> None:
    """Raise UsageError where the selection names a list of a priority that no worker polls, and
    none is there.
    """
    options, priority = session.fleet.app.broker_options, rule.priority
    if priority is None or priority in options.priority_steps:
        return
    if not any(
        key.endswith(f"{options.sep}{priority}")
        for state in broker.queues.values()
        for key in state.depths
    ):
        below = max(
            (step for step in options.priority_steps if step < priority),
            default=options.priority_steps[0],
        )
        raise UsageError(
            f"--priority: there is no list of priority {priority}",
            f"the lists are {', '.join(map(str, options.priority_steps))}; a message of priority"
            f" {priority} waits in that of {below}",
        )
