"""`inv retry`: send tasks again that failed, as the result backend has them: the same arguments, a
new id.

The new id follows from the old one, so what was sent again is known and never sent twice. The new
messages are in the run's archive before the first is sent; where a run was killed, the next goes on
with it.
"""

import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct, field

from runbooks.broker.archive.search import archive_name, queue_of
from runbooks.broker.messages.build import task_message
from runbooks.broker.results import Results, StoredResult
from runbooks.core.effects import BROKER, Change
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.model import NodeState
from runbooks.core.needs import Needs
from runbooks.core.rules import fits
from runbooks.core.wording import ago, counted
from runbooks.engine.context import Session
from runbooks.engine.one_by_one import one_by_one
from runbooks.engine.recap import Recap
from runbooks.engine.run import Run
from runbooks.engine.sent_again import Old, new_id, reason_for, send_change, sent_earlier
from runbooks.task_runs.results import named_redis

_EVER = float("inf")


class Asked(Struct, frozen=True):
    """Which failures are meant: patterns for task and exception, and how long ago at most; how many
    a second.
    """

    task: str
    exception: str
    since_s: float | None
    per_s: float


class _Sorted(Struct):
    """The failures that are meant: to be sent, by queue; to be gone on with, by archive; left out,
    by reason.
    """

    new: dict[str, list[StoredResult]] = field(default_factory=lambda: defaultdict(list))
    begun: dict[Path, list[StoredResult]] = field(default_factory=lambda: defaultdict(list))
    left_out: Counter[str] = field(default_factory=Counter)


def retry(session: Session, asked: Asked) -> ExitCode:
    """Exit code 2 where a failure that is meant has to be left out. Raises UsageError where results
    cannot be read.
    """
    session.require_consent_possible()
    if not named_redis(session.fleet):
        raise UsageError(
            "the inventory names no Redis as celery_result_backend",
            "only there failures can be read",
        )
    snapshot = session.observe(Needs.NODES)
    session.require_alone(snapshot.other_run)
    assert snapshot.broker is not None
    sorted_out = _sort(session, asked, snapshot.broker.nodes, snapshot.at)
    recap = Recap()
    for why, count in sorted_out.left_out.most_common():
        session.reporter.warning(f"{counted(count, 'failure')} left out: {why}", "")
        recap.at(BROKER).blocked += not why.startswith("sent again")
    changes = [*_going_on(sorted_out, asked), *_new(sorted_out, asked, snapshot.at)]
    return one_by_one(
        session, changes, recap, "Send them again?", lambda run: _write_down(run, sorted_out)
    )


def _sort(session: Session, asked: Asked, nodes: Mapping[str, NodeState], now: float) -> _Sorted:
    """Read every result; those that are meant are sorted by what is to be done about them, the
    oldest first.
    """
    look, there, meant = Results(), set[str](), list[StoredResult]()
    for result in session.broker.results("", look, _EVER):
        there.add(result.id)
        if result.state == "FAILURE" and _is_meant(result, asked, now):
            meant.append(result)
    earlier = sent_earlier(session)
    found = _Sorted()
    for result in sorted(meant, key=lambda one: (one.ended_at or 0.0, one.id)):
        before = earlier.get(new_id(result.id))
        if before and before.sent:
            found.left_out[f"sent again by run {before.run} already"] += 1
        elif new_id(result.id) in there:
            found.left_out["sent again already: the new task has a result"] += 1
        elif why := _why_not(result, nodes):
            found.left_out[why] += 1
        elif before:
            found.begun[before.archive].append(result)
        else:
            found.new[result.queue or ""].append(result)
    if look.unread:
        found.left_out[f"{look.unread:,} results are no JSON, so what they say is unknown"] += 1
    return found


def _is_meant(result: StoredResult, asked: Asked, now: float) -> bool:
    recent = asked.since_s is None or (
        result.ended_at is not None and now - result.ended_at <= asked.since_s
    )
    named = asked.task == "*" or (result.task is not None and fits(asked.task, result.task))
    return recent and named and fits(asked.exception, result.error)


def _why_not(result: StoredResult, nodes: Mapping[str, NodeState]) -> str:
    """Why a failure cannot be sent again, or not safely; "" where it can."""
    if result.task is None:
        return "its result has no name and no arguments: result_extended is off"
    if not isinstance(result.args, list) or not isinstance(result.kwargs, dict):
        return f"the arguments of {result.task} are not stored as JSON"
    if result.in_group:
        return f"{result.task} was one of a group or chord, which would not learn of another task"
    consumers = [node for node in nodes.values() if result.queue in node.queues]
    if not consumers:
        return f"no node that answers consumes {result.queue or 'its queue, which is not stored'}"
    if not all(result.task in node.registered for node in consumers):
        return (
            f"a node that consumes {result.queue} does not know {result.task}, and would discard it"
        )
    return ""


def _new(found: _Sorted, asked: Asked, now: float) -> Iterator[Change]:
    for queue, results in found.new.items():
        yield _change(archive_name(queue), queue, results, asked, now, "")


def _going_on(found: _Sorted, asked: Asked) -> Iterator[Change]:
    for path, results in found.begun.items():
        was = f"written down by run {path.parent.name}, which did not send them, or was undone"
        yield _change(str(path.absolute()), queue_of(path), results, asked, time.time(), was)


def _change(
    archive: str, queue: str, results: list[StoredResult], asked: Asked, now: float, was: str
) -> Change:
    parents = sum(one.has_parent for one in results)
    lines = [
        *(
            f"{n:,} × {task}: {error}"
            for (task, error), n in Counter((r.task, r.error) for r in results).most_common()
        ),
        f"failed {_when(results, now)}; no more than {asked.per_s:g} a second",
        "a result stores no priority, expiry, callbacks or rest of a chain: these are not sent",
        *(
            [f"{parents:,} of them were sent by another task, which does not learn of the new one"]
            if parents
            else []
        ),
        *([was] if was else []),
    ]
    tasks = [Old(one.id, one.task or "", one.error) for one in results]
    return send_change(archive, queue, tasks, asked.per_s, lines)


def _when(results: list[StoredResult], now: float) -> str:
    times = [one.ended_at for one in results if one.ended_at is not None]
    if not times:
        return "at unknown times"
    first, last = ago(now - min(times)), ago(now - max(times))
    return first if first == last else f"{first} to {last}"


def _write_down(run: Run, found: _Sorted) -> None:
    """Put every new message into the run's archives before the first is sent."""
    origin = f"celery-runbooks@{socket.gethostname()}"
    for queue, results in found.new.items():
        messages = (
            (
                reason_for(one.id),
                task_message(new_id(one.id), one.task or "", one.args, one.kwargs, queue, origin),
            )
            for one in results
        )
        run.session.broker.archive_new(run.journal.directory / archive_name(queue), queue, messages)
