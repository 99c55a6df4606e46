"""What nodes say of themselves in detail: what they hold, what they have done, and the settings that matter."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from runbooks.broker.messages.parse import args_text, epoch
from runbooks.broker.nodes.control import answers_to, remote, started_at
from runbooks.broker.server.connection import connect
from runbooks.core.model import NodeState
from runbooks.core.redaction import redact_value
from runbooks.core.views import HeldView, NodeView

SETTINGS = (
    "task_acks_late", "task_reject_on_worker_lost", "task_time_limit", "task_soft_time_limit",
    "task_default_rate_limit", "task_default_queue", "task_ignore_result", "task_track_started",
    "task_always_eager", "task_send_sent_event", "worker_prefetch_multiplier", "worker_concurrency",
    "worker_max_tasks_per_child", "worker_max_memory_per_child", "worker_send_task_events",
    "worker_disable_rate_limits", "broker_transport_options", "broker_connection_retry_on_startup", "result_expires",
    "result_extended", "timezone", "enable_utc",
)  # fmt: skip
"""What decides how tasks are fetched, acknowledged, limited and remembered."""

_COMMANDS = ("active", "reserved", "scheduled", "stats")


def node_views(
    url: str, options: Mapping[str, Any], nodes: Mapping[str, NodeState], timeout_s: float = 1.0
) -> tuple[NodeView, ...]:
    """These nodes, each under its name here, as they say they are. Raises BrokerUnreachable, BrokerRefused.

    **Source:** celery 5.7.0 `worker/control.py`: active, reserved, scheduled, stats, conf (with_defaults);
    `worker/request.py: Request.info`; `worker/worker.py: WorkController.stats`; `worker/state.py: total_count`, which
    counts a task when it begins.
    """
    twins = {node.name: node.twins for node in nodes.values()}
    own = dict(options)
    with connect(url, own) as client, remote(url, own, client) as mailbox:
        answers = {command: answers_to(mailbox, twins, command, timeout_s) for command in _COMMANDS}
        answers["conf"] = answers_to(mailbox, twins, "conf", timeout_s, {"with_defaults": True})
    return tuple(
        _view(name, node, {command: told[node.name] for command, told in answers.items()})
        for name, node in sorted(nodes.items())
    )


def _view(label: str, node: NodeState, answers: Mapping[str, Sequence[Any]]) -> NodeView:
    told = {command: some for command, some in answers.items() if len(some) == node.twins}
    held = {command: _held(told[command]) if command in told else None for command in _COMMANDS[:3]}
    stats = told.get("stats", [])
    started = sum((_counts(one.get("total")) for one in stats), Counter[str]())
    active = held["active"]
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
        reserved=held["reserved"],
        scheduled=held["scheduled"],
        started=dict(started.most_common()) if stats else None,
        done=started.total() - len(active) if stats and active is not None else None,
        rate_limits=dict(sorted(node.rate_limits.items())),
        settings=_settings(told["conf"][0]) if told.get("conf") else None,
        unanswered=tuple(command for command in answers if command not in told),
    )


def _only(values: Sequence[Any]) -> Any:
    """A number that one process alone has said; several do not add up."""
    return values[0] if len(values) == 1 and isinstance(values[0], int | float) else None


def _counts(total: Any) -> Counter[str]:
    pairs = total.items() if isinstance(total, dict) else ()
    return Counter({str(task): count for task, count in pairs if isinstance(count, int)})


def _settings(conf: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = redact_value({name: conf[name] for name in SETTINGS if name in conf})
    return settings


def _held(told: Sequence[Any]) -> tuple[HeldView, ...]:
    """The tasks in one kind of a node's answers; those that run longest, or are due first, come first."""
    held = [_one(entry) for some in told for entry in some or ()]
    return tuple(sorted(held, key=lambda one: (one.since_at or 0.0, one.eta_at or 0.0, one.id)))


def _one(entry: Mapping[str, Any]) -> HeldView:
    request = entry.get("request", entry)
    delivery = request.get("delivery_info")
    queue = delivery.get("routing_key") if isinstance(delivery, dict) else None
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
    """Arguments as text; what has a secret's name is hidden before they become one."""
    if isinstance(value, list):
        return repr(tuple(redact_value(value)))
    return value if isinstance(value, str) else repr(redact_value(value))
