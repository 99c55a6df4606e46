"""`inv retry`: send failed tasks again, with the arguments in the result backend and a new id.

The new id follows from the old one, so a task is never sent twice. The new messages are in the
run's archive before the first is sent; if a run is killed, the next one continues it.
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
    """Says which failures to retry, and how fast."""

    task: str
    """A pattern."""
    exception: str
    """A pattern."""
    since_s: float | None
    """How long ago they failed at most; None for any time."""
    per_s: float
    """Tasks sent a second."""


class _Sorted(Struct):
    """Holds the failures, sorted by what to do about them."""

    new: dict[str, list[StoredResult]] = field(default_factory=lambda: defaultdict(list))
    """To be sent, by queue."""
    begun: dict[Path, list[StoredResult]] = field(default_factory=lambda: defaultdict(list))
    """To be continued, by archive."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Skipped, by reason."""


def retry(session: Session, asked: Asked) -> ExitCode:
    """Send failures again; exit code 2 if one of them cannot be sent.

    Raises UsageError if results cannot be read.
    """
    session.require_consent_possible()
    if not named_redis(session.fleet):
        raise UsageError(
            "the inventory names no Redis as celery_result_backend",
            "failures can be read only from a Redis",
        )
    snapshot = session.observe(Needs.NODES)
    session.require_alone(snapshot.other_run)
    assert snapshot.broker is not None
    found = _sort(session, asked, snapshot.broker.nodes, snapshot.at)
    recap = Recap()
    for why, count in found.left_out.most_common():
        session.reporter.warning(f"{counted(count, 'failure')} skipped: {why}", "")
        if not why.startswith("sent again"):
            recap.at(BROKER).blocked += 1
    changes = [*_going_on(found, asked), *_new(found, asked, snapshot.at)]

    def write_down(run: Run) -> None:
        _write_down(run, found)

    return one_by_one(session, changes, recap, "Send them again?", write_down)


def _sort(session: Session, asked: Asked, nodes: Mapping[str, NodeState], now: float) -> _Sorted:
    """Read every result, and sort the selected failures, the oldest first."""
    look = Results()
    known: set[str] = set()
    selected: list[StoredResult] = []
    for result in session.broker.results("", look, _EVER):
        known.add(result.id)
        if result.state == "FAILURE" and _is_selected(result, asked, now):
            selected.append(result)
    earlier = sent_earlier(session)
    found = _Sorted()
    for result in sorted(selected, key=lambda one: (one.ended_at or 0.0, one.id)):
        before = earlier.get(new_id(result.id))
        why = _why_not(result, nodes)
        if before and before.sent:
            found.left_out[f"sent again by run {before.run} already"] += 1
        elif new_id(result.id) in known:
            found.left_out["sent again already: the new task has a result"] += 1
        elif why:
            found.left_out[why] += 1
        elif before:
            found.begun[before.archive].append(result)
        else:
            found.new[result.queue or ""].append(result)
    if look.unread:
        found.left_out[f"{look.unread:,} results are not JSON and cannot be read"] += 1
    return found


def _is_selected(result: StoredResult, asked: Asked, now: float) -> bool:
    if asked.since_s is not None and not _ended_within(result, now, asked.since_s):
        return False
    if asked.task != "*" and (result.task is None or not fits(asked.task, result.task)):
        return False
    return fits(asked.exception, result.error)


def _ended_within(result: StoredResult, now: float, seconds: float) -> bool:
    return result.ended_at is not None and now - result.ended_at <= seconds


def _why_not(result: StoredResult, nodes: Mapping[str, NodeState]) -> str:
    """Why a failure cannot be sent again, or not safely; "" if it can."""
    if result.task is None:
        return "its result has no name and no arguments: result_extended is off"
    if not isinstance(result.args, list) or not isinstance(result.kwargs, dict):
        return f"the arguments of {result.task} are not stored as JSON"
    if result.in_group:
        return f"{result.task} belongs to a group or chord, which would ignore the new task"
    consumers = [node for node in nodes.values() if result.queue in node.queues]
    if not consumers:
        return f"no node that answers consumes {result.queue or 'its queue, which is not stored'}"
    if not all(result.task in node.registered for node in consumers):
        return (
            f"a node that consumes {result.queue} does not register {result.task}, and would"
            " discard it"
        )
    return ""


def _new(found: _Sorted, asked: Asked, now: float) -> Iterator[Change]:
    for queue, results in found.new.items():
        yield send_change(
            archive_name(queue),
            queue,
            _old(results),
            asked.per_s,
            _lines(results, asked, now),
        )


def _going_on(found: _Sorted, asked: Asked) -> Iterator[Change]:
    for path, results in found.begun.items():
        lines = _lines(results, asked, time.time())
        lines.append(f"written by run {path.parent.name}, which did not send them, or was undone")
        yield send_change(
            str(path.absolute()),
            queue_of(path),
            _old(results),
            asked.per_s,
            lines,
        )


def _old(results: list[StoredResult]) -> list[Old]:
    return [Old(one.id, one.task or "", one.error) for one in results]


def _lines(results: list[StoredResult], asked: Asked, now: float) -> list[str]:
    """What a plan says of failures that are sent again."""
    kinds = Counter((one.task, one.error) for one in results)
    lines = [f"{n:,} × {task}: {error}" for (task, error), n in kinds.most_common()]
    lines.append(f"failed {_when(results, now)}; at most {asked.per_s:g} a second")
    lines.append("priority, expiry, callbacks and rest of a chain are not stored, so not sent")
    parents = sum(one.has_parent for one in results)
    if parents:
        lines.append(f"{parents:,} were sent by another task, which does not know the new one")
    return lines


def _when(results: list[StoredResult], now: float) -> str:
    times = [one.ended_at for one in results if one.ended_at is not None]
    if not times:
        return "at unknown times"
    first = ago(now - min(times))
    last = ago(now - max(times))
    if first == last:
        return first
    return f"{first} to {last}"


def _write_down(run: Run, found: _Sorted) -> None:
    """Put every new message into the run's archives before the first is sent."""
    for queue, results in found.new.items():
        path = run.journal.directory / archive_name(queue)
        run.session.broker.archive_new(path, queue, _messages(queue, results))


def _messages(queue: str, results: list[StoredResult]) -> Iterator[tuple[str, bytes]]:
    origin = f"celery-runbooks@{socket.gethostname()}"
    for one in results:
        new = new_id(one.id)
        message = task_message(new, one.task or "", one.args, one.kwargs, queue, origin)
        yield reason_for(one.id), message
