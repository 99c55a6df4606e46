"""The metrics: one list, for the exposition and the dashboard.

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


Read = Callable[[Fleet, Look], Samples]
"""What reads the samples of a metric."""


class Gauge(Struct, frozen=True):
    """One metric. All are gauges with the label `app` and their own labels."""

    name: str
    """Its name."""
    help: str
    """What it means."""
    panel: str
    """The dashboard's panel that shows it; "": it is a mark on all panels."""
    read: Read
    """What reads its samples."""
    labels: tuple[str, ...] = ()
    """Its own labels."""
    unit: str = "short"
    """Grafana's name for the unit of the panel."""
    shown: str = "{}"
    """What the panel computes from it; `{}` stands for the metric."""
    is_state: bool = False
    """Whether it is 1 while something holds."""


def _of_queues(field: str) -> Read:
    """Read a field of each queue of the look."""

    def read(_: Fleet, look: Look) -> Samples:
        for queue in look.queues:
            value = getattr(queue, field)
            if value is not None:
                yield (queue.name,), value

    return read


def _limits(field: str) -> Read:
    """Read a limit of each queue of the fleet."""

    def read(fleet: Fleet, _: Look) -> Samples:
        for queue in fleet.queues:
            value = getattr(fleet.app.thresholds.of(queue), field)
            if value is not None:
                yield (queue,), value

    return read


def _broker_up(_: Fleet, look: Look) -> Samples:
    yield (), look.reached


def _last_look(_: Fleet, look: Look) -> Samples:
    yield (), look.at


def _crossed(_: Fleet, look: Look) -> Samples:
    for one in look.crossings:
        yield (one.code, one.subject), 1


def _unacked(_: Fleet, look: Look) -> Samples:
    if look.reached:
        yield (), look.unacked


def _unacked_age(_: Fleet, look: Look) -> Samples:
    if look.reached:
        yield (), look.unacked_age_s


def _node_up(_: Fleet, look: Look) -> Samples:
    for node in look.missing_tasks:
        yield (node,), 1
    for node in look.silent_nodes:
        yield (node,), 0


def _missing_tasks(_: Fleet, look: Look) -> Samples:
    for node, count in look.missing_tasks.items():
        yield (node,), count


def _beat_last_send(_: Fleet, look: Look) -> Samples:
    for host, silent_s in look.beat_silence_s.items():
        yield (host,), look.at - silent_s


def _beat_silence_limit(fleet: Fleet, _: Look) -> Samples:
    limit = fleet.app.thresholds.beat_silence
    if limit is not None:
        yield (), limit


def _runs(_: Fleet, look: Look) -> Samples:
    for run in look.runs:
        yield (run.id, run.verb, run.by), run.started_at


_QUEUE = ("queue",)
_NODE = ("node",)

METRICS = (
    Gauge("celery_broker_up", "1 if the last look could read the broker.", "Broker", _broker_up),
    Gauge(
        "celery_monitor_last_look_timestamp_seconds",
        "When the monitor last looked.",
        "Since the last look",
        _last_look,
        unit="s",
        shown="time() - {}",
    ),
    Gauge(
        "celery_crossed",
        "1 for every finding that stands.",
        "Findings",
        _crossed,
        ("code", "subject"),
        is_state=True,
    ),
    Gauge(
        "celery_queue_depth", "Messages that wait in a queue.", "Depth", _of_queues("depth"), _QUEUE
    ),
    Gauge(
        "celery_queue_depth_limit",
        "The depth above which a queue is a finding.",
        "Depth",
        _limits("depth"),
        _QUEUE,
    ),
    Gauge(
        "celery_queue_unseen",
        "Messages that were counted but not read because time ran out.",
        "Not read",
        _of_queues("unseen"),
        _QUEUE,
    ),
    Gauge(
        "celery_queue_consumers",
        "Nodes that answer and consume a queue.",
        "Consumers",
        _of_queues("consumers"),
        _QUEUE,
    ),
    Gauge(
        "celery_queue_max_retries",
        "The most retries of a waiting message.",
        "Retries",
        _of_queues("max_retries"),
        _QUEUE,
    ),
    Gauge(
        "celery_queue_retries_limit",
        "The retries above which a message is a finding.",
        "Retries",
        _limits("retries"),
        _QUEUE,
    ),
    Gauge(
        "celery_queue_eta_overdue_seconds",
        "How long ago the earliest ETA of a waiting message passed.",
        "ETA overdue",
        _of_queues("eta_overdue_s"),
        _QUEUE,
        "s",
    ),
    Gauge(
        "celery_queue_eta_overdue_limit_seconds",
        "How long ago an ETA may have passed.",
        "ETA overdue",
        _limits("eta_overdue"),
        _QUEUE,
        "s",
    ),
    Gauge(
        "celery_queue_change_per_second",
        "How fast a queue has grown since an earlier look; below 0 it drains.",
        "Rate",
        _of_queues("per_s"),
        _QUEUE,
        shown="60 * {}",
    ),
    Gauge(
        "celery_queue_drain_seconds",
        "How long a queue takes to empty at its present rate; +Inf: it does not.",
        "Time to drain",
        _of_queues("drain_s"),
        _QUEUE,
        "s",
    ),
    Gauge(
        "celery_unacked",
        "Messages that workers have fetched and not acknowledged.",
        "Unacknowledged",
        _unacked,
    ),
    Gauge(
        "celery_unacked_age_seconds",
        "How long ago the oldest of these was fetched.",
        "Unacknowledged since",
        _unacked_age,
        unit="s",
    ),
    Gauge("celery_node_up", "1 if a node of the inventory answers ping.", "Nodes", _node_up, _NODE),
    Gauge(
        "celery_node_missing_tasks",
        "Expected tasks that a node does not register.",
        "Tasks not registered",
        _missing_tasks,
        _NODE,
    ),
    Gauge(
        "celery_beat_last_send_timestamp_seconds",
        "When beat last recorded that it sent something.",
        "Beat silent for",
        _beat_last_send,
        ("host",),
        "s",
        "time() - {}",
    ),
    Gauge(
        "celery_beat_silence_limit_seconds",
        "How long beat may be silent.",
        "Beat silent for",
        _beat_silence_limit,
        unit="s",
    ),
    Gauge(
        "celery_run_started_timestamp_seconds",
        "When a run of the last day began.",
        "",
        _runs,
        ("run", "verb", "by"),
    ),
)


class Exposition(Collector):
    """The last look, for a scrape or a textfile."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.look: Look | None = None

    def collect(self) -> Iterator[Metric]:
        """The metrics of the last look; none before the first."""
        if not self.look:
            return
        for gauge in METRICS:
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=("app", *gauge.labels))
            for labels, value in gauge.read(self._fleet, self.look):
                shown = [on_one_line(redact(label)) for label in (self.look.app, *labels)]
                family.add_metric(shown, value)
            yield family

    def registry(self) -> CollectorRegistry:
        """A registry with nothing else: not what prometheus_client reports about this process."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry


def write_textfile(path: Path, exposition: Exposition) -> None:
    """Replace the file; all users may read it, as node_exporter is another one. Raises OSError."""
    replace_file(path, generate_latest(exposition.registry()), 0o644)
