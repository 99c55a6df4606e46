"""Lets nodes finish their tasks before they are stopped."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from runbooks.broker.nodes.answers import running_task
from runbooks.broker.nodes.control import by_node, count_answering, remote
from runbooks.broker.server.connection import connect
from runbooks.core.model import RunningTask

_POLL_S = 0.2
_SHOWN = 3


def drain(
    url: str,
    transport_options: Mapping[str, Any],
    queues: Mapping[str, Sequence[str]],
    patience_s: float,
    waiting: Callable[[str], None] = lambda _: None,
) -> dict[str, list[RunningTask]]:
    """Stop nodes (node → queues) from taking messages, and wait until their tasks have ended.

    Returns the tasks that still run on nodes that were not done in time.

    A busy worker that is stopped while a task ends may return the task's message although it has
    run (seen with celery 5.7.0). Silent nodes are skipped.
    **Source:** celery 5.7.0 `worker/control.py`: cancel_consumer, active, reserved.
    """
    options = dict(transport_options)
    with remote(url, options, connect(url, options)) as mailbox:
        busy = _switch_consumers(mailbox, queues, "cancel_consumer")
        begun_at = time.monotonic()
        active: dict[str, Any] = {}
        while busy:
            nodes = sorted(busy)
            reserved = by_node("reserved", mailbox.call(nodes, "reserved", timeout=1.0))
            active = by_node("active", mailbox.call(nodes, "active", timeout=1.0))
            busy = {node for node in busy if reserved.get(node) or active.get(node)}
            left_s = begun_at + patience_s - time.monotonic()
            if not busy or left_s <= 0:
                break
            waiting(f"waiting {int(left_s)} s more for {_running_on(busy, active)}")
            time.sleep(_POLL_S)
    waiting("")
    running: dict[str, list[RunningTask]] = {}
    for node in sorted(busy):
        if active.get(node):
            running[node] = list(map(running_task, active[node]))
    return running


def _running_on(nodes: Iterable[str], active: Mapping[str, Any]) -> str:
    """The first tasks that run on these nodes, for a message."""
    running: list[str] = []
    for node in sorted(nodes):
        for task in active.get(node) or ():
            running.append(f"{task['name']} on {node}")
    shown = ", ".join(running[:_SHOWN])
    if len(running) > _SHOWN:
        shown += ", …"
    return shown


def consume_again(
    url: str,
    transport_options: Mapping[str, Any],
    queues: Mapping[str, Sequence[str]],
) -> None:
    """Let drained nodes (node → queues) that have not ended take messages again.

    **Source:** celery 5.7.0 `worker/control.py`: add_consumer, which does not change a node that
    consumes the queue.
    """
    options = dict(transport_options)
    with remote(url, options, connect(url, options)) as mailbox:
        _switch_consumers(mailbox, queues, "add_consumer")


def _switch_consumers(
    mailbox: Any,
    queues: Mapping[str, Sequence[str]],
    command: str,
) -> set[str]:
    """Send each of these nodes that answers a command about its queues; return their names.

    A name to which several nodes answer is skipped: each would obey, regardless of its queues.
    """
    consumers: dict[str, list[str]] = {}
    there: set[str] = set()
    for node, count in sorted(count_answering(mailbox, 1.0).items()):
        if count == 1 and node in queues:
            there.add(node)
            for queue in set(queues[node]):
                consumers.setdefault(queue, []).append(node)
    for queue, nodes in consumers.items():
        mailbox.call(nodes, command, {"queue": queue}, timeout=1.0)
    return there
