"""Interprets the nodes' answers to remote control, without asking anything itself.

**Source:** celery 5.7.0 `worker/control.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import msgspec

from runbooks.core.model import Binding, NodeState, RunningTask
from runbooks.core.node_settings import settings_of
from runbooks.core.redaction import redact_value

_LONG_AGO = 1e9
"""In 2001; times that count from a machine's start are smaller."""
_HELD = ("active", "reserved", "scheduled")


class _Request(TypedDict):
    id: str
    name: str


class _Waiting(TypedDict):
    request: _Request


class _Exchange(TypedDict):
    name: NotRequired[str | None]
    type: NotRequired[str | None]


class _Queue(TypedDict):
    name: str
    alias: NotRequired[str | None]
    exchange: NotRequired[_Exchange | None]
    routing_key: NotRequired[str | None]


class _Report(TypedDict):
    ok: str


_SHAPES: dict[str, Any] = {
    "registered": list[str] | None,
    "active_queues": list[_Queue] | None,
    "active": list[_Request] | None,
    "reserved": list[_Request] | None,
    "scheduled": list[_Waiting] | None,
    "stats": dict[str, Any],
    "conf": dict[str, Any],
    "query_task": dict[str, tuple[str, _Request]],
    "revoked": list[str],
    "report": _Report,
}
"""What is read of each answer; anyone who may publish to the broker can answer anything."""


Answers = dict[str, dict[str, list[Any]]]
"""Answers by command, then by node name, which several nodes may share."""


def is_answer(command: str, answer: Any) -> bool:
    """Return whether this has the shape of the command's answers, and is not an error."""
    if isinstance(answer, dict) and "error" in answer:
        return False
    try:
        msgspec.convert(answer, _SHAPES.get(command, Any))
    except msgspec.ValidationError:
        return False
    return True


def node_of(name: str, twins: int, answers: Answers) -> NodeState:
    """Return the state of the node, or of the `twins` nodes, with this name."""
    said = {command: answers[command][name] for command in answers}
    consumed = list(_each(said["active_queues"]))
    stats = said["stats"]
    settings = None
    if said.get("conf"):
        settings = settings_of(said["conf"][0])
    return NodeState(
        name=name,
        registered=_registered(said["registered"]),
        queues=frozenset(queue.get("alias") or queue["name"] for queue in consumed),
        holds=_held(twins, said),
        rate_limits=_limited(said["registered"]),
        twins=twins,
        reserved=_ids(said.get("reserved", [])),
        options=None if settings is None else _options(settings),
        running=tuple(map(running_task, _each(said["active"]))),
        scheduled=frozenset() if settings is None else _scheduled(settings),
        pids=frozenset(one["pid"] for one in stats if isinstance(one.get("pid"), int)),
        **_pool([one.get("pool") for one in stats]),
        later=_ids(said.get("scheduled", [])),
        settings=redact_value(settings),
        bindings=frozenset(filter(None, map(_binding, consumed))),
    )


def _each(answers: Iterable[Any]) -> Iterator[Any]:
    """The entries of all these answers; an answer may be None."""
    for answer in answers:
        yield from answer or ()


def _registered(answers: Iterable[Sequence[str] | None]) -> frozenset[str]:
    """The tasks that all of these answers have."""
    tasks = [frozenset(rate_limits_in(answer)) for answer in answers]
    return frozenset.intersection(*tasks)


def _limited(answers: Iterable[Sequence[str] | None]) -> dict[str, str]:
    """The tasks that have a rate limit."""
    limited: dict[str, str] = {}
    for answer in answers:
        for task, limit in rate_limits_in(answer).items():
            if limit:
                limited[task] = limit
    return limited


def _binding(queue: _Queue) -> Binding | None:
    """The binding of a queue that a node consumes; None for a fanout, which has no table.

    **Source:** kombu 5.7.0 `entity.py: Queue.as_dict`; `transport/virtual/exchange.py`.
    """
    exchange = queue.get("exchange") or _Exchange()
    name = exchange.get("name") or ""
    kind = exchange.get("type") or "direct"
    if not name or kind == "fanout":
        return None
    return Binding(name, kind, queue.get("routing_key") or "", queue["name"])


def _pool(answers: Sequence[Any]) -> dict[str, Any]:
    """The pool, as `stats` reports it.

    **Source:** celery 5.7.0 `concurrency/base.py: BasePool._get_info`, and that of `prefork.py`;
    the implementation is `MODULE.prefork:TaskPool`.
    """
    pools = [pool for pool in answers if isinstance(pool, dict)]
    pids: set[int] = set()
    for pool in pools:
        processes = pool.get("processes")
        if isinstance(processes, list):
            pids.update(pid for pid in processes if isinstance(pid, int))
    found: dict[str, Any] = {"pool_pids": frozenset(pids)}
    if len(answers) != 1 or not pools:
        return found
    size = pools[0].get("max-concurrency")
    name = str(pools[0].get("implementation") or "")
    found["pool"] = name.partition(":")[0].rpartition(".")[2]
    found["pool_size"] = size if isinstance(size, int) else None
    return found


def rate_limits_in(registered: Sequence[str] | None) -> dict[str, str]:
    """Return the registered tasks in an answer, each with its rate limit, "" for none."""
    return dict(map(_rate_limit, registered or ()))


def _rate_limit(task: str) -> tuple[str, str]:
    """A registered task and its rate limit, "" for none: `shop.tasks.poll [rate_limit=10/m]`."""
    name, _, settings = task.partition(" [")
    return name, settings.rstrip("]").partition("rate_limit=")[2]


def running_task(request: Mapping[str, Any]) -> RunningTask:
    """Return a running task from an answer."""
    pid = request.get("worker_pid")
    return RunningTask(
        str(request.get("id")),
        str(request.get("name")),
        started_at(request),
        bool(request.get("acknowledged")),
        pid if isinstance(pid, int) else None,
    )


def started_at(request: Mapping[str, Any]) -> float | None:
    """Return when a task in an answer started, in epoch seconds; None if it has not, or unknown.

    **Source:** celery 5.7.0 `worker/request.py: Request.info`; before 4.3 `time_start` is not a
    time of the day.
    """
    at = request.get("time_start")
    if isinstance(at, int | float) and at > _LONG_AGO:
        return float(at)
    return None


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A node's transport options; it hides those with names that contain "key" or similar words."""
    own = settings.get("broker_transport_options") or {}
    return {name: own[name] for name in ("visibility_timeout", "priority_steps") if name in own}


def _scheduled(settings: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """The tasks of a node's `beat_schedule`, each with the queue of its options or "".

    A node hides entries with names that contain "key" or similar words.
    """
    schedule = settings.get("beat_schedule") or {}
    tasks: set[tuple[str, str]] = set()
    for entry in schedule.values():
        if isinstance(entry, dict) and entry.get("task"):
            options = entry.get("options") or {}
            queue = options.get("queue") or ""
            tasks.add((str(entry["task"]), str(queue)))
    return frozenset(tasks)


def _held(twins: int, said: Mapping[str, Sequence[Any]]) -> frozenset[str] | None:
    """The ids of all tasks that a node holds; None if it was not asked, or an answer is missing."""
    if "reserved" not in said:
        return None
    held: set[str] = set()
    for command in _HELD:
        if len(said[command]) < twins:
            return None
        held |= _ids(said[command])
    return frozenset(held)


def _ids(answers: Iterable[Any]) -> frozenset[str]:
    """The ids of the tasks in a node's answers to one command."""
    ids: set[str] = set()
    for entry in _each(answers):
        request = entry.get("request", entry)
        ids.add(str(request["id"]))
    return frozenset(ids)
