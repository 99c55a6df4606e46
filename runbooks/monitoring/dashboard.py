"""A Grafana dashboard of the metrics of one application: a panel for each panel name in the list.

**Source:** Grafana's documentation of the dashboard JSON model (`schemaVersion` 39: Grafana 10.4
and later), of the state timeline, and of annotations by Prometheus: with `useValueForTime` a
sample's value is its time in milliseconds.
"""

from itertools import groupby
from typing import Any

from runbooks.monitoring.metrics import METRICS, Gauge

_COLUMNS = 24
_WIDTH = 8
_HEIGHT = 7
_HOLDS = {"mappings": [{"type": "value", "options": {"1": {"text": "holds", "color": "red"}}}]}
_SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """The document that Grafana imports."""
    panels = [list(gauges) for name, gauges in groupby(METRICS, lambda gauge: gauge.panel) if name]
    return {
        "title": "Celery queues",
        "uid": "celery-runbooks",
        "schemaVersion": 39,
        "tags": ["celery"],
        "refresh": "1m",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": [_runs()]},
        "panels": [_panel(number, gauges) for number, gauges in enumerate(panels)],
    }


def _variables() -> list[dict[str, Any]]:
    apps = "label_values(celery_broker_up, app)"
    return [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "app",
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": apps, "refId": "app"},
            "refresh": 2,
        },
    ]


def _runs() -> dict[str, Any]:
    """A mark on every panel at the time when a run began."""
    return {
        "name": "Runs",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": '1000 * celery_run_started_timestamp_seconds{app="$app"}',
        "useValueForTime": True,
        "titleFormat": "{{verb}}",
        "textFormat": "run {{run}} by {{by}}",
    }


def _panel(number: int, gauges: list[Gauge]) -> dict[str, Any]:
    per_row = _COLUMNS // _WIDTH
    place = {
        "x": number % per_row * _WIDTH,
        "y": number // per_row * _HEIGHT,
        "w": _WIDTH,
        "h": _HEIGHT,
    }
    state = gauges[0].is_state
    return {
        "id": number + 1,
        "type": "state-timeline" if state else "timeseries",
        "title": gauges[0].panel,
        "description": " ".join(gauge.help for gauge in gauges),
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _HOLDS if state else {"unit": gauges[0].unit}, "overrides": []},
        "targets": [_target(gauge, chr(ord("A") + n)) for n, gauge in enumerate(gauges)],
    }


def _target(gauge: Gauge, name: str) -> dict[str, Any]:
    legend = " ".join(f"{{{{{label}}}}}" for label in gauge.labels) or gauge.panel
    suffix = " (limit)" if "_limit" in gauge.name else ""
    expr = gauge.shown.format(f'{gauge.name}{{app="$app"}}')
    return {"refId": name, "datasource": _SOURCE, "expr": expr, "legendFormat": legend + suffix}
