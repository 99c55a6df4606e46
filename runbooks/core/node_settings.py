"""The settings of a worker that decide where tasks and results go, as `inspect conf` has them."""

import re
from collections.abc import Mapping
from typing import Any

NAMES = {
    "result_backend": ("result_backend",),
    "broker_transport_options": ("broker_transport_options",),
    "task_default_queue": ("task_default_queue", "celery_default_queue"),
    "task_queues": ("task_queues", "celery_queues"),
    "task_routes": ("task_routes", "celery_routes"),
    "beat_schedule": ("beat_schedule", "celerybeat_schedule"),
}
"""Each setting, and what it may be called. **Source:** celery 5.7.0 `app/defaults.py:
_OLD_DEFAULTS`.
"""

_OWN = re.compile(r" at 0x[0-9a-f]+|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
"""What differs from process to process: the address of an object, and in the name of a broadcast's
queue a UUID.
"""


def settings_of(conf: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under their own names, wherever they are set; those that have their default are
    missing.

    With a namespace (`CELERY`, as Django applications have it) a name is in capitals, and has that
    in front. What differs from process to process is cut out. **Source:** celery 5.7.0
    `worker/control.py: conf`, `app/utils.py: Settings`.
    """
    by_name = {name.lower(): value for name, value in conf.items()}
    found = {
        setting: value
        for setting, names in NAMES.items()
        for told, value in by_name.items()
        if told in names or told.endswith(tuple(f"_{name}" for name in names))
    }
    return {setting: _without_own(value) for setting, value in found.items()}


def _without_own(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_own(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_own(item) for item in value]
    return _OWN.sub("", value) if isinstance(value, str) else value
