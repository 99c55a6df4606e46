"""Shows nodes in detail: what they hold, what they have done, and the settings that matter."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from runbooks.broker.messages.parse import args_text, epoch
from runbooks.broker.nodes.answers import started_at
from runbooks.broker.nodes.control import answers_to, remote
from runbooks.broker.server.connection import connect
from runbooks.core.model import NodeState
from runbooks.core.redaction import redact_value
from runbooks.core.views import HeldView, NodeView

SETTINGS = (
    "task_acks_late",
    "task_reject_on_worker_lost",
    "task_time_limit",
    "task_soft_time_limit",
    "task_default_rate_limit",
    "task_default_queue",
    "task_ignore_result",
    "task_track_started",
    "task_always_eager",
    "task_send_sent_event",
    "worker_prefetch_multiplier",
    "worker_concurrency",
    "worker_max_tasks_per_child",
    "worker_max_memory_per_child",
    "worker_send_task_events",
    "worker_disable_rate_limits",
    "broker_transport_options",
    "broker_connection_retry_on_startup",
    "result_expires",
    "result_extended",
    "timezone",
    "enable_utc",
)
"""Settings that decide how tasks are fetched, acknowledged, limited and remembered."""

_HOLDING = ("active", "reserved", "scheduled")
_COMMANDS = (*_HOLDING, "stats")


def node_views(
    url: str,
    options: Mapping[str, Any],
    nodes: Mapping[str, NodeState],
    timeout_s: float = 1.0,
) -> tuple[NodeView, ...]:
    """Return the details of these nodes, each under its name in the inventory.

    Raises BrokerUnreachable, BrokerRefused.

    **Source:** celery 5.7.0 `worker/control.py`: active, reserved, scheduled, stats, conf
    (with_defaults); `worker/request.py: Request.info`; `worker/worker.py: WorkController.stats`;
    `worker/state.py: total_count`, which counts a task when it begins.
    """
    twins = {node.name: node.twins for node in nodes.values()}
    own = dict(options)
    answers: dict[str, dict[str, list[Any]]] = {}
    with connect(url, own) as client, remote(url, own, client) as mailbox:
        for command in _COMMANDS:
            answers[command] = answers_to(mailbox, twins, command, timeout_s)
        with_defaults = {"with_defaults": True}
        answers["conf"] = answers_to(
            mailbox,
            twins,
            "conf",
            timeout_s,
            with_defaults,
        )
    views: list[NodeView] = []
    for name, node in sorted(nodes.items()):
        its = {command: said[node.name] for command, said in answers.items()}
        views.append(_view(name, node, its))
    return tuple(views)


def _view(
    label: str,
    node: NodeState,
    answers: Mapping[str, Sequence[Any]],
) -> NodeView:
    complete = {command: some for command, some in answers.items() if len(some) == node.twins}
    held = {command: _held(complete[command]) for command in _HOLDING if command in complete}
    stats = complete.get("stats", [])
    started: Counter[str] = Counter()
    for one in stats:
        started += _counts(one.get("total"))
    active = held.get("active")
    done = None
    if stats and active is not None:
        done = started.total() - len(active)
    return NodeView(
        name=node.name,
        worker=label if label != node.name else None,
        twins=node.twins,
        pids=tuple(sorted(node.pids)),
        uptime_s=_only([one.get("uptime") for one in stats]),
        pool=node.pool or None,
        pool_pids=tuple(sorted(node.pool_pids)),
        size=node.size,
        prefetch=_only([one.get("prefetch_count") for one in stats]),
        queues=tuple(sorted(node.queues)),
        active=active,
        reserved=held.get("reserved"),
        scheduled=held.get("scheduled"),
        started=dict(started.most_common()) if stats else None,
        done=done,
        rate_limits=dict(sorted(node.rate_limits.items())),
        settings=_settings(complete["conf"][0]) if complete.get("conf") else None,
        unanswered=tuple(command for command in answers if command not in complete),
    )


def _only(values: Sequence[Any]) -> Any:
    """A number, if only one process has reported it; several do not add up."""
    if len(values) == 1 and isinstance(values[0], int | float):
        return values[0]
    return None


def _counts(total: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    if isinstance(total, dict):
        for task, count in total.items():
            if isinstance(count, int):
                counts[str(task)] = count
    return counts


def _settings(conf: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: conf[name] for name in SETTINGS if name in conf}
    settings: dict[str, Any] = redact_value(shown)
    return settings


def _held(replies: Sequence[Any]) -> tuple[HeldView, ...]:
    """The tasks in a node's answers to one command; the longest running or first due come first."""
    held: list[HeldView] = []
    for some in replies:
        held.extend(map(_one, some or ()))
    return tuple(sorted(held, key=_when))


def _when(held: HeldView) -> tuple[float, float, str]:
    return held.since_at or 0.0, held.eta_at or 0.0, held.id


def _one(entry: Mapping[str, Any]) -> HeldView:
    request = entry.get("request", entry)
    delivery = request.get("delivery_info")
    queue = None
    if isinstance(delivery, dict):
        queue = delivery.get("routing_key")
    pid = request.get("worker_pid")
    return HeldView(
        id=str(request.get("id")),
        task=str(request.get("name")),
        args=args_text(_text(request.get("args")), _text(request.get("kwargs"))),
        queue=queue if isinstance(queue, str) else None,
        since_at=started_at(request),
        eta_at=epoch(entry.get("eta")),
        pid=pid if isinstance(pid, int) else None,
    )


def _text(value: Any) -> str:
    """Arguments as text; values with a secret's name are hidden before."""
    if isinstance(value, list):
        return repr(tuple(redact_value(value)))
    if isinstance(value, str):
        return value
    return repr(redact_value(value))
