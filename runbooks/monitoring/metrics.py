"""The metrics: one list, from which the exposition and the dashboard are made.

**Source:** the Prometheus text format, and its conventions for names and units, by
prometheus_client.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runbooks.core.fleet import Fleet
from runbooks.core.model import Look
from runbooks.core.outside import on_one_line
from runbooks.core.redaction import redact
from runbooks.core.replaced import replace_file

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values → the value."""


class Gauge(Struct, frozen=True):
    """One metric, all of which are gauges with the label `app` and their own.

    `panel` is the dashboard's panel that shows it, "" for what it notes on all of them; `unit` is
    Grafana's name of the unit there, and `shown` what the panel computes of it, `{}` being the
    metric. `is_state`: it is 1 while it holds.
    """

    name: str
    help: str
    panel: str
    read: Callable[[Fleet, Look], Samples]
    labels: tuple[str, ...] = ()
    unit: str = "short"
    shown: str = "{}"
    is_state: bool = False


def _of_queues(
    read: Callable[[Fleet, Look], Iterable[tuple[str, float | None]]],
) -> Callable[[Fleet, Look], Samples]:
    return lambda fleet, look: [
        ((queue,), value) for queue, value in read(fleet, look) if value is not None
    ]


def _limits(fleet: Fleet, name: str) -> list[tuple[str, float | None]]:
    return [(queue, getattr(fleet.app.thresholds.of(queue), name)) for queue in fleet.queues]


def _once(value: float | None) -> Samples:
    return [] if value is None else [((), value)]


_QUEUE = ("queue",)
_NODE = ("node",)

METRICS = (
    Gauge(
        "celery_broker_up", "1 where the last look could read the broker.", "Broker",
        lambda _, look: _once(look.reached),
    ),
    Gauge(
        "celery_monitor_last_look_timestamp_seconds", "When the monitor last looked.", "Since the last look",
        lambda _, look: _once(look.at), unit="s", shown="time() - {}",
    ),
    Gauge(
        "celery_crossed", "1 for every finding that holds.", "Findings",
        lambda _, look: [((one.code, one.subject), 1) for one in look.crossings], ("code", "subject"), is_state=True,
    ),
    Gauge(
        "celery_queue_depth", "Messages that wait in a queue.", "Depth",
        _of_queues(lambda _, look: ((q.name, q.depth) for q in look.queues)), _QUEUE,
    ),
    Gauge(
        "celery_queue_depth_limit", "The depth above which the inventory wants to be told.", "Depth",
        _of_queues(lambda fleet, _: _limits(fleet, "depth")), _QUEUE,
    ),
    Gauge(
        "celery_queue_unseen", "Messages that were counted and not read, for the time was over.", "Not read",
        _of_queues(lambda _, look: ((q.name, q.unseen) for q in look.queues)), _QUEUE,
    ),
    Gauge(
        "celery_queue_consumers", "Nodes that answer and consume a queue.", "Consumers",
        _of_queues(lambda _, look: ((q.name, q.consumers) for q in look.queues)), _QUEUE,
    ),
    Gauge(
        "celery_queue_max_retries", "The most retries of a message that waits.", "Retries",
        _of_queues(lambda _, look: ((q.name, q.max_retries) for q in look.queues)), _QUEUE,
    ),
    Gauge(
        "celery_queue_retries_limit", "The retries above which the inventory wants to be told.", "Retries",
        _of_queues(lambda fleet, _: _limits(fleet, "retries")), _QUEUE,
    ),
    Gauge(
        "celery_queue_eta_overdue_seconds", "How long ago the oldest ETA that waits passed.", "ETA overdue",
        _of_queues(lambda _, look: ((q.name, q.eta_overdue_s) for q in look.queues)), _QUEUE, "s",
    ),
    Gauge(
        "celery_queue_eta_overdue_limit_seconds", "What of it the inventory allows.", "ETA overdue",
        _of_queues(lambda fleet, _: _limits(fleet, "eta_overdue")), _QUEUE, "s",
    ),
    Gauge(
        "celery_queue_change_per_second", "How fast a queue grew since an earlier look; below 0 it drains.", "Rate",
        _of_queues(lambda _, look: ((q.name, q.per_s) for q in look.queues)), _QUEUE, shown="60 * {}",
    ),
    Gauge(
        "celery_queue_drain_seconds", "How long a queue takes to empty as fast as it does now; +Inf: it does not.",
        "Time to drain", _of_queues(lambda _, look: ((q.name, q.drain_s) for q in look.queues)), _QUEUE, "s",
    ),
    Gauge(
        "celery_unacked", "Messages that workers have fetched and not acknowledged.", "Unacknowledged",
        lambda _, look: _once(look.unacked if look.reached else None),
    ),
    Gauge(
        "celery_unacked_age_seconds", "How long ago the oldest of these was fetched.", "Unacknowledged since",
        lambda _, look: _once(look.unacked_age_s if look.reached else None), unit="s",
    ),
    Gauge(
        "celery_node_up", "1 where a node of the inventory answers ping.", "Nodes",
        lambda _, look: [*(((n,), 1) for n in look.missing_tasks), *(((n,), 0) for n in look.silent_nodes)], _NODE,
    ),
    Gauge(
        "celery_node_missing_tasks", "Expected tasks that a node has not registered.", "Tasks not registered",
        lambda _, look: [((node,), count) for node, count in look.missing_tasks.items()], _NODE,
    ),
    Gauge(
        "celery_beat_last_send_timestamp_seconds", "When beat last wrote down that it has sent something.",
        "Beat silent for",
        lambda _, look: [((host,), look.at - silent_s) for host, silent_s in look.beat_silence_s.items()],
        ("host",), "s", "time() - {}",
    ),
    Gauge(
        "celery_beat_silence_limit_seconds", "How long beat may be silent by the inventory.", "Beat silent for",
        lambda fleet, _: _once(fleet.app.thresholds.beat_silence), unit="s",
    ),
    Gauge(
        "celery_run_started_timestamp_seconds", "When a run of the last day began.", "",
        lambda _, look: [((run.id, run.verb, run.by), run.started_at) for run in look.runs], ("run", "verb", "by"),
    ),
)  # fmt: skip


class Exposition(Collector):
    """What a scrape or a textfile gets: the last look."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.look: Look | None = None

    def collect(self) -> Iterator[Metric]:
        for gauge in METRICS if self.look else ():
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=("app", *gauge.labels))
            assert self.look is not None
            for labels, value in gauge.read(self._fleet, self.look):
                family.add_metric(
                    [on_one_line(redact(label)) for label in (self.look.app, *labels)], value
                )
            yield family

    def registry(self) -> CollectorRegistry:
        """One of nothing else: what prometheus_client tells of this process is nobody's business."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry


def write_textfile(path: Path, exposition: Exposition) -> None:
    """Replace the file at once; everybody may read it, for node_exporter is another user. Raises
    OSError.
    """
    replace_file(path, generate_latest(exposition.registry()), 0o644)
