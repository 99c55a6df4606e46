"""Asks the workers through remote control; it knows the broker's URL, not the application."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import redis

from runbooks.broker.nodes.answers import Answers, is_answer, node_of, started_at
from runbooks.broker.server.connection import address, broker_errors, connect
from runbooks.broker.server.keys import PIDBOX, REPLY_EXCHANGE, REPLY_SUFFIX, KeySpace
from runbooks.broker.server.preflight import require_writes
from runbooks.broker.server.store import Store
from runbooks.core.errors import BrokerUnreachable
from runbooks.core.model import HeldTask, NodeState

_VERSION = re.compile(r"(\w+):(\S+)")


def observe_nodes(
    url: str,
    transport_options: Mapping[str, Any] | None = None,
    timeout_s: float = 1.0,
    *,
    holdings: bool = False,
    settings: bool = False,
) -> dict[str, NodeState]:
    """Return the nodes of `ask_nodes`."""
    nodes, _ = ask_nodes(
        url,
        transport_options,
        timeout_s,
        holdings=holdings,
        settings=settings,
    )
    return nodes


def ask_nodes(
    url: str,
    transport_options: Mapping[str, Any] | None = None,
    timeout_s: float = 1.0,
    *,
    holdings: bool = False,
    settings: bool = False,
) -> tuple[dict[str, NodeState], int | None]:
    """Return the nodes that answer within `timeout_s`, and how many did; None if one was silent.

    A node has its registered tasks and the queues that it consumes; the queue of a broadcast, which
    has another name in each worker, has the application's name here. With `holdings`, a node also
    has the ids of the tasks that it has fetched: running, reserved, or waiting for their ETA. With
    `holdings` or `settings`, it has its settings: the options that limit how long it may hold
    tasks, and what its schedule sends.

    All nodes get one ping, if any listens; the timeout is used up only if one that heard it is
    silent. Then the nodes that answered are asked by name; silent ones are skipped. If several
    nodes have one name, the tasks that all of them register count, and the queues that any of them
    consumes. Nothing stays behind in Redis. Raises BrokerUnreachable, and BrokerRefused if Redis
    takes no writes, because no node can answer then.

    **Source:** kombu 5.7.0 `pidbox.py: Mailbox`, `common.py: Broadcast`; celery 5.7.0
    `worker/control.py`: ping, registered, active_queues, active, stats, reserved, scheduled, conf;
    what a rate limit holds back is in none of these (`worker/strategy.py: default`).
    """
    options = dict(transport_options or {})
    client = connect(url, options)
    store = Store(client, KeySpace.from_options(options))
    if not bound_nodes(store) and _nobody_listens(client):
        # Otherwise the question itself writes, and is refused.
        require_writes(store, store.keys.binding(REPLY_EXCHANGE))
        return {}, 0
    commands = ["registered", "active_queues", "active", "stats"]
    if holdings:
        commands += ["reserved", "scheduled"]
    if holdings or settings:
        commands.append("conf")
    answers: Answers = {}
    with remote(url, options, client) as mailbox:
        answering = count_answering(mailbox, timeout_s)
        answered = answering.total() if answering.total() >= mailbox.heard else None
        if answering:
            for command in commands:
                answers[command] = answers_to(
                    mailbox,
                    answering,
                    command,
                    timeout_s,
                )
    nodes: dict[str, NodeState] = {}
    for name, twins in sorted(answering.items()):
        if answers["registered"][name] and answers["active_queues"][name]:
            nodes[name] = node_of(name, twins, answers)
    return nodes, answered


def count_answering(mailbox: Any, timeout_s: float) -> Counter[str]:
    """Count the answers to a ping, by node name."""
    answering: Counter[str] = Counter()
    for reply in mailbox.ask_all("ping", timeout_s):
        answering.update(list(reply))
    return answering


def answers_to(
    mailbox: Any,
    answering: Mapping[str, int],
    command: str,
    timeout_s: float,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, list[Any]]:
    """Return the answers of each node name, from all nodes with it; asks again for missing ones."""
    answers: dict[str, list[Any]] = {}
    silent = dict(answering)
    for _ in range(2):
        if not silent:
            break
        awaited = sum(silent.values())
        replies = mailbox.ask(
            sorted(silent),
            command,
            awaited,
            timeout_s,
            arguments,
        )
        for name, count in list(silent.items()):
            answers[name] = _of(name, command, replies)
            if len(answers[name]) >= count:
                del silent[name]
    return answers


def _of(
    name: str,
    command: str,
    replies: Iterable[Mapping[str, Any]],
) -> list[Any]:
    """A node's answers to the command."""
    answers: list[Any] = []
    for reply in replies:
        if name in reply and is_answer(command, reply[name]):
            answers.append(reply[name])
    return answers


def find_holder(
    url: str,
    task_id: str,
    transport_options: Mapping[str, Any] | None = None,
    timeout_s: float = 1.0,
) -> HeldTask | None:
    """Return the node that has the task running, reserved or waiting for its ETA; None if none."""
    holders = find_holders(url, task_id, transport_options, timeout_s)
    return next(iter(holders), None)


def find_holders(
    url: str,
    task_id: str,
    transport_options: Mapping[str, Any] | None = None,
    timeout_s: float = 1.0,
) -> list[HeldTask]:
    """Return every node that has the task.

    **Source:** celery 5.7.0 `worker/control.py: query_task`; `ready` means done, but not forgotten.
    """
    arguments = {"ids": [task_id]}
    replies = _ask(
        url,
        "query_task",
        timeout_s,
        transport_options,
        arguments=arguments,
    )
    holders: list[HeldTask] = []
    for node, answer in sorted(replies.items()):
        if task_id in answer:
            doing, info = answer[task_id]
            name = str(info.get("name") or "")
            holders.append(HeldTask(node, name, doing, started_at(info)))
    return holders


def find_revoked(
    url: str,
    task_id: str,
    transport_options: Mapping[str, Any] | None = None,
    timeout_s: float = 1.0,
) -> list[str]:
    """Return the nodes that will discard the task.

    **Source:** celery 5.7.0 `worker/control.py: revoked`.
    """
    replies = _ask(url, "revoked", timeout_s, transport_options)
    return sorted(node for node, answer in replies.items() if task_id in answer)


def running_versions(
    url: str,
    nodes: Mapping[str, NodeState],
    transport_options: Mapping[str, Any],
    timeout_s: float = 1.0,
) -> dict[str, dict[str, str]]:
    """Return the library versions of nodes without a twin, by the name of each that answers.

    An answer costs a worker about 7 ms and a process (`file`), so ask only nodes whose versions
    matter.
    **Source:** celery 5.7.0 `worker/control.py: report`, `app/utils.py: bugreport, BUGREPORT_INFO`.
    """
    alone = {node.name: 1 for node in nodes.values() if node.twins == 1}
    options = dict(transport_options)
    with connect(url, options) as client, remote(url, options, client) as mailbox:
        answers = answers_to(mailbox, alone, "report", timeout_s)
    versions: dict[str, dict[str, str]] = {}
    for name, reports in answers.items():
        if reports:
            software = _software(reports[0]["ok"])
            versions[name] = dict(_VERSION.findall(software))
    return versions


def _software(report: str) -> str:
    """The software part of a report, with the names under which modules are imported."""
    _, _, rest = report.partition("software ->")
    software, _, _ = rest.partition("platform ->")
    return re.sub(r"\bpy:", "python:", software)


def switch_events(
    url: str,
    nodes: Sequence[str],
    transport_options: Mapping[str, Any] | None = None,
    *,
    on: bool,
) -> list[str]:
    """Switch task events on or off on nodes; return the nodes whose setting changed.

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
    """The answers of all nodes, or of those named, to one command."""
    options = dict(transport_options or {})
    with connect(url, options) as client, remote(url, options, client) as mailbox:
        if nodes:
            replies = mailbox.call(
                nodes,
                command,
                arguments or {},
                timeout=timeout_s,
            )
        else:
            replies = mailbox.ask_all(command, timeout_s, arguments)
        return by_node(command, replies)


def bound_nodes(store: Store) -> frozenset[str]:
    """Return the nodes whose mailboxes are bound: all that listen, and some that were killed.

    **Source:** kombu 5.7.0 `pidbox.py: Node`, whose queue is `NODE.celery.pidbox`, bound to
    `celery.pidbox`.
    """
    suffix = f".{PIDBOX}"
    with store.errors():
        members = cast("set[bytes]", store.client.smembers(store.keys.binding(PIDBOX)))
    nodes: set[str] = set()
    for member in members:
        queue = member.decode(errors="replace").rpartition(store.keys.sep)[2]
        if queue.endswith(suffix):
            nodes.add(queue.removesuffix(suffix))
    return frozenset(nodes)


def _nobody_listens(client: "redis.Redis") -> bool:
    """Whether no node can hear a ping; if patterns are subscribed, one may.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._subscribe`: SUBSCRIBE, with
    `fanout_patterns` PSUBSCRIBE.
    """
    try:
        if client.pubsub_numpat():
            return False
        return not client.pubsub_channels(f"*.{PIDBOX}*")
    except redis.exceptions.NoPermissionError:
        return False


@contextmanager
def remote(
    url: str,
    options: dict[str, Any],
    client: "redis.Redis",
) -> Iterator[Any]:
    """Provide a mailbox on a connection that does not retry forever; cleans up in Redis."""
    from kombu.exceptions import OperationalError

    from runbooks.broker.nodes.mailbox import remote_control

    # Without ack_emulation=False this consumer, as any of kombu's, would return all messages that
    # have been unacked for longer than *its* visibility timeout: running tasks would run twice.
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
            # The cause says more than kombu's error.
            if isinstance(error.__cause__, redis.RedisError):
                raise error.__cause__ from error
            problem = f"the broker at {address(client)} stopped answering: {error}"
            raise BrokerUnreachable(problem, "is it up? try again when it is") from error


def by_node(command: str, replies: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Return all answers to the command in one dict."""
    merged: dict[str, Any] = {}
    for reply in replies or ():
        merged.update(reply)
    return {node: answer for node, answer in merged.items() if is_answer(command, answer)}


def _clean_up(store: Store, oid: str) -> None:
    """Remove the reply queue that kombu leaves behind: lists, binding, and the last deadline."""
    keys = store.keys
    name = f"{oid}{REPLY_SUFFIX}"
    member = keys.sep.join((oid, "", name))
    with store.errors(), store.client.pipeline(transaction=True) as pipe:
        pipe.delete(*keys.queue(name))
        pipe.srem(keys.binding(REPLY_EXCHANGE), member)
        pipe.execute()
        pipe.watch(keys.binding(REPLY_EXCHANGE))  # type: ignore[no-untyped-call]
        if not pipe.exists(keys.binding(REPLY_EXCHANGE)):
            pipe.multi()
            pipe.zrem(keys.binding_deadlines, REPLY_EXCHANGE)
            # If someone else binds to it at this moment, it must stay.
            with suppress(redis.WatchError):
                pipe.execute(raise_on_error=False)
