"""The settings of a worker that decide where tasks and results go, from `inspect conf`."""

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
"""Each setting with all of its names. **Source:** celery 5.7.0 `app/defaults.py: _OLD_DEFAULTS`."""

_OWN = re.compile(r" at 0x[0-9a-f]+|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
"""What differs between processes: an object's address, the UUID in a broadcast queue's name."""


def settings_of(conf: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under their own names; those with their default value are missing.

    With a namespace (`CELERY` in Django applications) a name is in capitals and begins with it.
    What differs between processes is cut out. **Source:** celery 5.7.0 `worker/control.py: conf`,
    `app/utils.py: Settings`.
    """
    found: dict[str, Any] = {}
    for name, value in conf.items():
        setting = _setting_of(name.lower())
        if setting:
            found[setting] = _without_own(value)
    return found


def _setting_of(name: str) -> str:
    """The setting that has this name, maybe after a namespace; "": none of those in NAMES."""
    for setting, names in NAMES.items():
        if name.endswith(tuple(f"_{one}" for one in names)) or name in names:
            return setting
    return ""


def _without_own(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_own(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_own(item) for item in value]
    if isinstance(value, str):
        return _OWN.sub("", value)
    return value
