"""Asks the workers through remote control: knows the broker's URL, not the application."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NotRequired, TypedDict, cast

import msgspec
import redis

from runbooks.broker.server.connection import address, broker_errors, connect
from runbooks.broker.server.keys import PIDBOX, REPLY_EXCHANGE, REPLY_SUFFIX, KeySpace
from runbooks.broker.server.preflight import require_writes
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerUnreachable
from runbooks.core.model import Binding, HeldTask, NodeState, RunningTask
from runbooks.core.node_settings import settings_of
from runbooks.core.redaction import redact_value

_POLL_S = 0.2
_SHOWN = 3
_LONG_AGO = 1e9  # in 2001: what counts from a machine's start comes to less
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


# What is read of each answer. Anyone who may publish to the broker can answer anything.
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


def observe_nodes(
    url: str,
    transport_options: Mapping[str, Any] | None = None,
    timeout_s: float = 1.0,
    *,
    holdings: bool = False,
    settings: bool = False,
) -> dict[str, NodeState]:
    """The nodes of `ask_nodes`."""
    return ask_nodes(url, transport_options, timeout_s, holdings=holdings, settings=settings)[0]


def ask_nodes(
    url: str,
    transport_options: Mapping[str, Any] | None = None,
    timeout_s: float = 1.0,
    *,
    holdings: bool = False,
    settings: bool = False,
) -> tuple[dict[str, NodeState], int | None]:
    """The worker nodes that answer within `timeout_s`, with their registered tasks and the queues they consume.

    A queue of a broadcast has another name in each worker, and is told by that which the application gives it.

    With `holdings` also with the ids of the tasks that they have fetched: running, reserved, or waiting for their ETA.
    With them or with `settings` also with what they say of their settings: the options by which it is judged how long
    they may hold tasks, and what their schedule sends.

    Also how many answered, where all that heard the question did; None where somebody heard it and is silent.

    {} where none answers. One ping to all, if anyone listens; it is waited out only while somebody who has heard it
    is silent. Then those that answered are asked, by name; one that is silent then is left out. Of several of one name
    the tasks count that all of them know, and the queues that any of them consumes. Nothing of it stays behind in
    Redis. Raises BrokerUnreachable, and BrokerRefused where Redis takes no writes, for no node can answer then.

    **Source:** kombu 5.7.0 `pidbox.py: Mailbox`, `common.py: Broadcast`; celery 5.7.0 `worker/control.py`: ping,
    registered, active_queues, active, stats, reserved, scheduled, conf; what a rate limit holds back is in none of
    these (`worker/strategy.py: default`).
    """
    options = dict(transport_options or {})
    client = connect(url, options)
    store = Store(client, KeySpace.from_options(options))
    if not bound_nodes(store) and _nobody_listens(client):
        require_writes(store, store.keys.binding(REPLY_EXCHANGE))  # else asking writes itself, and is refused
        return {}, 0
    with remote(url, options, client) as mailbox:
        answering = Counter(name for reply in mailbox.ask_all("ping", timeout_s) for name in reply)
        answered = answering.total() if answering.total() >= mailbox.heard else None
        commands = ("registered", "active_queues", "active", "stats", *(("reserved", "scheduled") if holdings else ()),
                    *(("conf",) if holdings or settings else ()))  # fmt: skip
        answers = {command: answers_to(mailbox, answering, command, timeout_s) for command in commands if answering}
    told = [name for name in sorted(answering) if answers["registered"][name] and answers["active_queues"][name]]
    return {name: _node(name, answering[name], answers) for name in told}, answered


def answers_to(
    mailbox: Any,
    answering: Mapping[str, int],
    command: str,
    timeout_s: float,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, list[Any]]:
    """The answers of each node, as many as there are of its name; what is missing is asked for once more."""
    answers: dict[str, list[Any]] = {}
    silent = dict(answering)
    for _ in range(2):
        if not silent:
            break
        replies = mailbox.ask(sorted(silent), command, sum(silent.values()), timeout_s, arguments)
        answers |= {name: _of(name, command, replies) for name in silent}
        silent = {name: count for name, count in silent.items() if len(answers[name]) < count}
    return answers


def _of(name: str, command: str, replies: Iterable[Mapping[str, Any]]) -> list[Any]:
    """What a node answered to the command."""
    told = (reply[name] for reply in replies if name in reply)
    return [answer for answer in told if _is_answer(command, answer)]


def _is_answer(command: str, answer: Any) -> bool:
    """Whether this has the shape of the command's answers: no error, and nothing that another program made up."""
    if isinstance(answer, dict) and "error" in answer:
        return False
    try:
        msgspec.convert(answer, _SHAPES.get(command, Any))
    except msgspec.ValidationError:
        return False
    return True


def _node(name: str, twins: int, answers: Mapping[str, Mapping[str, list[Any]]]) -> NodeState:
    tasks = [frozenset(task.partition(" [")[0] for task in told or ()) for told in answers["registered"][name]]
    consumed = [queue for told in answers["active_queues"][name] for queue in told or ()]
    settings = settings_of(answers["conf"][name][0]) if answers.get("conf", {}).get(name) else None
    return NodeState(
        name,
        frozenset.intersection(*tasks),
        frozenset(queue.get("alias") or queue["name"] for queue in consumed),
        _held(twins, [answers[which][name] for which in _HELD]) if "reserved" in answers else None,
        {task: limit for told in answers["registered"][name] for task, limit in rate_limits_in(told).items() if limit},
        twins,
        _ids(answers["reserved"][name]) if "reserved" in answers else frozenset(),
        None if settings is None else _options(settings),
        tuple(_running(task) for told in answers["active"][name] for task in told or ()),
        frozenset() if settings is None else _scheduled(settings),
        frozenset(told["pid"] for told in answers["stats"][name] if isinstance(told.get("pid"), int)),
        **_pool([told.get("pool") for told in answers["stats"][name]]),
        later=_ids(answers["scheduled"][name]) if "scheduled" in answers else frozenset(),
        settings=redact_value(settings),
        bindings=frozenset(filter(None, map(_binding, consumed))),
    )


def _binding(queue: _Queue) -> Binding | None:
    """How messages come into a queue that a node consumes; None of a fanout, which has no table.

    **Source:** kombu 5.7.0 `entity.py: Queue.as_dict`; `transport/virtual/exchange.py`.
    """
    exchange = queue.get("exchange") or _Exchange()
    name, kind = exchange.get("name") or "", exchange.get("type") or "direct"
    return Binding(name, kind, queue.get("routing_key") or "", queue["name"]) if name and kind != "fanout" else None


def _pool(told: Sequence[Any]) -> dict[str, Any]:
    """What `stats` says of the pool. **Source:** celery 5.7.0 `concurrency/base.py: BasePool._get_info`, and that of
    `prefork.py`; the implementation is `MODULE.prefork:TaskPool`.
    """
    pools = [pool for pool in told if isinstance(pool, dict)]
    pids = [pid for pool in pools if isinstance(one := pool.get("processes"), list) for pid in one]
    of_all = {"pool_pids": frozenset(pid for pid in pids if isinstance(pid, int))}
    if len(told) != 1 or not pools:
        return of_all
    size, name = pools[0].get("max-concurrency"), str(pools[0].get("implementation") or "")
    module = name.partition(":")[0].rpartition(".")[2]
    return {**of_all, "pool": module, "pool_size": size if isinstance(size, int) else None}


def rate_limits_in(told: Sequence[str] | None) -> dict[str, str]:
    """The registered tasks that a node tells, each with its rate limit, "" where it has none."""
    return dict(map(_rate_limit, told or ()))


def _rate_limit(task: str) -> tuple[str, str]:
    """A registered task and its rate limit, "" where it has none: `shop.tasks.poll [rate_limit=10/m]`."""
    name, _, settings = task.partition(" [")
    return name, settings.rstrip("]").partition("rate_limit=")[2]


def _running(told: Mapping[str, Any]) -> RunningTask:
    """What an answer says of a task that runs."""
    pid = told.get("worker_pid")
    return RunningTask(
        str(told.get("id")),
        str(told.get("name")),
        started_at(told),
        bool(told.get("acknowledged")),
        pid if isinstance(pid, int) else None,
    )


def started_at(told: Mapping[str, Any]) -> float | None:
    """When a task that a node tells of began to run, in epoch seconds; None where it has not, or is not known.

    **Source:** celery 5.7.0 `worker/request.py: Request.info`; before 4.3 `time_start` is no time of the day.
    """
    at = told.get("time_start")
    return float(at) if isinstance(at, int | float) and at > _LONG_AGO else None


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a node says of its transport options; it hides each whose name holds the word key, or some other such."""
    own = settings.get("broker_transport_options") or {}
    return {name: own[name] for name in ("visibility_timeout", "priority_steps") if name in own}


def _scheduled(settings: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """The tasks of a node's `beat_schedule`, each with the queue of its options or "".

    An entry whose name holds the word key, or some other such, is hidden.
    """
    entries = (settings.get("beat_schedule") or {}).values()
    tasks = [entry for entry in entries if isinstance(entry, dict) and entry.get("task")]
    return frozenset((str(entry["task"]), str((entry.get("options") or {}).get("queue") or "")) for entry in tasks)


def find_holder(
    url: str, task_id: str, transport_options: Mapping[str, Any] | None = None, timeout_s: float = 1.0
) -> HeldTask | None:
    """The node that has the task: running, reserved or waiting for its ETA. None where none says so."""
    return next(iter(find_holders(url, task_id, transport_options, timeout_s)), None)


def find_holders(
    url: str, task_id: str, transport_options: Mapping[str, Any] | None = None, timeout_s: float = 1.0
) -> list[HeldTask]:
    """Every node that has the task.

    **Source:** celery 5.7.0 `worker/control.py: query_task`; `ready` is one that is done, and not forgotten yet.
    """
    replies = _ask(url, "query_task", timeout_s, transport_options, arguments={"ids": [task_id]})
    found = ((node, *answer[task_id]) for node, answer in sorted(replies.items()) if task_id in answer)
    return [HeldTask(node, str(info.get("name") or ""), doing, started_at(info)) for node, doing, info in found]


def find_revoked(
    url: str, task_id: str, transport_options: Mapping[str, Any] | None = None, timeout_s: float = 1.0
) -> list[str]:
    """The nodes that have the task revoked: they discard it. **Source:** celery 5.7.0 `worker/control.py: revoked`."""
    replies = _ask(url, "revoked", timeout_s, transport_options)
    return sorted(node for node, answer in replies.items() if task_id in answer)


def running_versions(
    url: str, nodes: Mapping[str, NodeState], transport_options: Mapping[str, Any], timeout_s: float = 1.0
) -> dict[str, dict[str, str]]:
    """The versions of the libraries that nodes run with, by the name of each node that says so and has no twin.

    Its answer costs a worker about 7 ms, and a process (`file`), so only those are asked whose versions matter.
    **Source:** celery 5.7.0 `worker/control.py: report`, `app/utils.py: bugreport, BUGREPORT_INFO`.
    """
    alone = {node.name: 1 for node in nodes.values() if node.twins == 1}
    options = dict(transport_options)
    with connect(url, options) as client, remote(url, options, client) as mailbox:
        answers = answers_to(mailbox, alone, "report", timeout_s)
    return {name: dict(_VERSION.findall(_software(told[0]["ok"]))) for name, told in answers.items() if told}


_VERSION = re.compile(r"(\w+):(\S+)")


def _software(report: str) -> str:
    """The lines of a report about software, under the names by which modules are imported."""
    said = report.partition("software ->")[2].partition("platform ->")[0]
    return re.sub(r"\bpy:", "python:", said)


def switch_events(
    url: str, nodes: Sequence[str], transport_options: Mapping[str, Any] | None = None, *, on: bool
) -> list[str]:
    """Let nodes send task events, or no more; returns those whose setting that changed.

    **Source:** celery 5.7.0 `worker/control.py: enable_events, disable_events`.
    """
    command = "enable_events" if on else "disable_events"
    replies = _ask(url, command, 2.0, transport_options, nodes=sorted(nodes))
    return [node for node, answer in replies.items() if "already" not in str(answer)]


def _ask(
    url: str,
    command: str,
    timeout_s: float,
    transport_options: Mapping[str, Any] | None,
    *,
    arguments: Mapping[str, Any] | None = None,
    nodes: Sequence[str] = (),
) -> dict[str, Any]:
    """What every node, or those named, answered to one command."""
    options = dict(transport_options or {})
    with connect(url, options) as client, remote(url, options, client) as mailbox:
        if nodes:
            return _by_node(command, mailbox.call(nodes, command, arguments or {}, timeout=timeout_s))
        return _by_node(command, mailbox.ask_all(command, timeout_s, arguments))


def _held(twins: int, answers: Sequence[list[Any]]) -> frozenset[str] | None:
    """The ids in a node's answers; None where one is missing."""
    if not answers or any(len(told) < twins for told in answers):
        return None
    return frozenset[str]().union(*map(_ids, answers))


def _ids(told: Iterable[Any]) -> frozenset[str]:
    """The ids of the tasks in one kind of a node's answers."""
    requests = (entry.get("request", entry) for one in told for entry in one or ())
    return frozenset(str(request["id"]) for request in requests)


def drain(
    url: str,
    transport_options: Mapping[str, Any],
    queues: Mapping[str, Sequence[str]],
    patience_s: float,
    waiting: Callable[[str], None] = lambda _: None,
) -> dict[str, list[RunningTask]]:
    """Let nodes take no more messages from their queues (node → queues), and wait until what they have is done.

    Returns the tasks that still run on those that were not done in time.

    A busy worker that is stopped while a task ends may give the task's message back although it has run (seen with
    celery 5.7.0). Silent nodes are left out.
    **Source:** celery 5.7.0 `worker/control.py`: cancel_consumer, active, reserved.
    """
    options = dict(transport_options)
    with remote(url, options, connect(url, options)) as mailbox:
        busy = _switch_consumers(mailbox, queues, "cancel_consumer")
        begun_at = time.monotonic()
        active: dict[str, Any] = {}
        while busy:
            held = [_by_node(asked, mailbox.call(sorted(busy), asked, timeout=1.0)) for asked in ("reserved", "active")]
            busy = {node for node in busy if any(tasks.get(node) for tasks in held)}
            active = held[1]
            if not busy or time.monotonic() - begun_at >= patience_s:
                break
            running = [f"{task['name']} on {node}" for node in sorted(busy) for task in active.get(node) or ()]
            left_s = int(begun_at + patience_s - time.monotonic())
            waiting(f"waiting {left_s} s more for {', '.join(running[:_SHOWN])}{', …' * (len(running) > _SHOWN)}")
            time.sleep(_POLL_S)
    waiting("")
    return {node: [_running(task) for task in active[node]] for node in sorted(busy) if active.get(node)}


def consume_again(url: str, transport_options: Mapping[str, Any], queues: Mapping[str, Sequence[str]]) -> None:
    """Let nodes that were drained and not ended take messages from their queues (node → queues) again.

    **Source:** celery 5.7.0 `worker/control.py`: add_consumer, which does nothing to a node that consumes the queue.
    """
    options = dict(transport_options)
    with remote(url, options, connect(url, options)) as mailbox:
        _switch_consumers(mailbox, queues, "add_consumer")


def _switch_consumers(mailbox: Any, queues: Mapping[str, Sequence[str]], command: str) -> set[str]:
    """Tell each of these nodes that answers about its queues; returns which these are.

    Not where several answer to the name: each of them would obey, whatever its own queues are.
    """
    answering = Counter(name for reply in mailbox.ask_all("ping", 1.0) for name in reply)
    there = {name for name, count in answering.items() if count == 1 and name in queues}
    for queue in {queue for node in there for queue in queues[node]}:
        consumers = sorted(node for node in there if queue in queues[node])
        mailbox.call(consumers, command, {"queue": queue}, timeout=1.0)
    return there


def bound_nodes(store: Store) -> frozenset[str]:
    """The nodes whose mailboxes are bound to remote control: all that listen, and those that were killed.

    **Source:** kombu 5.7.0 `pidbox.py: Node`, whose queue is `NODE.celery.pidbox`, bound to `celery.pidbox`.
    """
    suffix = f".{PIDBOX}"
    with store.errors():
        members = cast("set[bytes]", store.client.smembers(store.keys.binding(PIDBOX)))
    queues = [member.decode(errors="replace").rpartition(store.keys.sep)[2] for member in members]
    return frozenset(queue.removesuffix(suffix) for queue in queues if queue.endswith(suffix))


def _nobody_listens(client: "redis.Redis") -> bool:
    """Whether no node can hear a ping, so that none need be waited for; patterns are not told one by one.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._subscribe`: SUBSCRIBE, with `fanout_patterns` PSUBSCRIBE.
    """
    try:
        return not client.pubsub_numpat() and not client.pubsub_channels(f"*.{PIDBOX}*")
    except redis.exceptions.NoPermissionError:
        return False


@contextmanager
def remote(url: str, options: dict[str, Any], client: "redis.Redis") -> Iterator[Any]:
    """A mailbox on a connection that gives up instead of retrying for ever; nothing of it stays behind in Redis."""
    from kombu.exceptions import OperationalError

    from runbooks.broker.nodes.mailbox import remote_control

    # Without ack_emulation=False this consumer, as any of kombu's, would put back all messages that have been unacked
    # for longer than *its* visibility timeout: tasks that are still running would run twice.
    bounded = {
        "socket_timeout": 5.0,
        "socket_connect_timeout": 5.0,
        **options,
        "max_retries": 1,
        "ack_emulation": False,
    }
    with broker_errors(address(client)):
        try:
            with remote_control(url, bounded) as mailbox:
                try:
                    yield mailbox
                finally:
                    _clean_up(Store(client, KeySpace.from_options(options)), mailbox.oid)
        except (OperationalError, redis.ConnectionError, redis.TimeoutError, OSError) as error:
            if isinstance(error.__cause__, redis.RedisError):  # kombu's error tells less than its cause
                raise error.__cause__ from error
            problem = f"the broker at {address(client)} stopped answering: {error}"
            raise BrokerUnreachable(problem, "is it up? try again when it is") from error


def _by_node(command: str, replies: list[dict[str, Any]] | None) -> dict[str, Any]:
    """One dict of all answers to the command."""
    merged = {node: answer for reply in replies or () for node, answer in reply.items()}
    return {node: answer for node, answer in merged.items() if _is_answer(command, answer)}


def _clean_up(store: Store, oid: str) -> None:
    """Remove the reply queue that kombu leaves behind: its lists, its binding, and the deadline if it was the last."""
    name, keys = f"{oid}{REPLY_SUFFIX}", store.keys
    member = keys.sep.join((oid, "", name))
    with store.errors(), store.client.pipeline(transaction=True) as pipe:
        pipe.delete(*keys.queue(name))
        pipe.srem(keys.binding(REPLY_EXCHANGE), member)
        pipe.execute()
        pipe.watch(keys.binding(REPLY_EXCHANGE))  # type: ignore[no-untyped-call]
        if not pipe.exists(keys.binding(REPLY_EXCHANGE)):
            pipe.multi()
            pipe.zrem(keys.binding_deadlines, REPLY_EXCHANGE)
            with suppress(redis.WatchError):  # somebody else binds to it just now: then it is not ours to remove
                pipe.execute(raise_on_error=False)
