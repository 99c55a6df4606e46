"""Read the schedule that beat's scheduler keeps outside of the code.

Runs in the application's own Python: `import_probe.py` uses it. It has to run on Python 3.6, and
only reads. `kept` answers in the shapes of `core/application.py: KeptSchedule`; `call` returns the
call that beat would make for one entry.
"""

import contextlib
import glob
import json
import os
import shelve
import shutil
import sys
import tempfile
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional

if TYPE_CHECKING:
    from runbooks.hosts import describe_application as said


KINDS = {"django_celery_beat": "tables", "redbeat": "redbeat"}
SUFFIXES = ("", ".db", ".dat", ".bak", ".dir", ".pag")


class Unread(Exception):
    """Why the schedule of a scheduler cannot be read."""


def kind_of(scheduler: str) -> str:
    """Return where a scheduler keeps entries: `file`, `tables`, `redbeat`, or "" if not known.

    **Source:** celery 5.7.0 `beat.py: Service.get_scheduler`.
    """
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    aliases = dict(load_extension_class_names("celery.beat_schedulers"))
    with contextlib.suppress(Exception):
        for base in symbol_by_name(scheduler, aliases=aliases).__mro__:
            package, _, _ = base.__module__.partition(".")
            if package in KINDS:
                return KINDS[package]
            if base.__name__ == "PersistentScheduler":
                return "file"
    return ""


def kept(app: Any, scheduler: str, path: str) -> Dict[str, Any]:
    """Return all entries, each with the time of its last sending; `path` is beat's file."""
    scheduler = scheduler or str(app.conf.beat_scheduler)
    kind = kind_of(scheduler)
    answer = {"kind": kind, "scheduler": scheduler}
    try:
        found = [with_times(app, *one) for one in entries(app, kind, path)]
        holder = None
        if kind == "redbeat":
            holder = lock(app)
        return dict(answer, entries=found, lock=holder)
    except Unread as error:
        return dict(answer, error=str(error))
    except Exception as error:
        return dict(answer, error="{}: {}".format(type(error).__name__, error))


def with_times(app: Any, name: str, entry: Any, times: Dict[str, Any]) -> Dict[str, Any]:
    return dict(times, entry=said.scheduled(app, name, entry))


def entries(app: Any, kind: str, path: str) -> Iterator[Any]:
    """Yield the name, entry and times of each entry."""
    if kind == "tables":
        return tables()
    if kind == "redbeat":
        return redbeat(app)
    if kind == "file":
        return of_file(path)
    raise Unread("not supported; supported are PersistentScheduler, django-celery-beat and RedBeat")


def tables() -> Iterator[Any]:
    """Yield the entries of django-celery-beat.

    **Source:** django-celery-beat 2.9.0 `schedulers.py: ModelEntry`, which would write if it cannot
    read.
    """
    from django_celery_beat.models import PeriodicTask

    for row in PeriodicTask.objects.order_by("name"):
        options = {}
        for name in ("queue", "exchange", "routing_key", "priority"):
            value = getattr(row, name)
            if value is not None:
                options[name] = value
        if getattr(row, "expires_", None):
            options["expires"] = row.expires_
        options["headers"] = dict(parsed(row.headers, {}) or {}, periodic_task_name=row.name)
        entry = {
            "task": row.task,
            "args": parsed(row.args, []),
            "kwargs": parsed(row.kwargs, {}),
            "options": options,
        }
        with contextlib.suppress(Exception):
            entry["schedule"] = row.schedule
        now = datetime.now(timezone.utc)
        enabled = row.enabled and not (row.expires and aware(row.expires) <= now)
        counted = at(row.last_run_at or row.date_changed)
        if row.start_time and aware(row.start_time) > now:
            counted = None
        times = {
            "enabled": enabled,
            "last_sent_at": at(row.last_run_at),
            "counted_from_at": counted,
        }
        yield row.name, entry, times


def parsed(text: Optional[str], otherwise: Any) -> Any:
    """Parse JSON; None if it is invalid: beat disables such an entry."""
    if not text:
        return otherwise
    try:
        return json.loads(text)
    except ValueError:
        return None


def redbeat(app: Any) -> Iterator[Any]:
    """Yield the entries of RedBeat.

    **Source:** celery-redbeat 2.4.2 `schedulers.py`. `RedBeatSchedulerEntry.from_key`: an entry
    that was never sent is due now. `RedBeatScheduler.setup_schedule`: it records which entries come
    from the code, and at its start drops those that the code no longer has.
    """
    from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis

    conf = ensure_conf(app) or app.redbeat_conf
    of_code = get_redis(app).smembers(conf.statics_key)
    for key in get_redis(app).zrange(conf.schedule_key, 0, -1):
        with contextlib.suppress(KeyError):  # removed since
            entry = RedBeatSchedulerEntry.from_key(key, app=app)
            last = at(entry.last_run_at)
            times = {
                "last_sent_at": last,
                "counted_from_at": last,
                "enabled": entry.enabled,
                "of_code": entry.name in of_code,
            }
            yield entry.name, entry, times


def lock(app: Any) -> Optional[Dict[str, Any]]:
    """Return the lock of the active beat; None if it is free.

    **Source:** celery-redbeat 2.4.2 `schedulers.py: RedBeatConfig, RedBeatScheduler.__init__`.
    """
    from redbeat.schedulers import ensure_conf, get_redis

    conf = ensure_conf(app) or app.redbeat_conf
    if not conf.lock_key:
        return None
    left_ms = get_redis(app).pttl(conf.lock_key)
    if left_ms < 0:
        return None
    max_interval_s = getattr(app.conf, "beat_max_loop_interval", 0)
    return {
        "key": conf.lock_key,
        "left_s": left_ms / 1e3,
        "timeout_s": float(conf.lock_timeout or 0),
        "max_interval_s": float(max_interval_s or 0),
    }


def of_file(path: str) -> Iterator[Any]:
    """Yield the entries of beat's file, from a copy: beat locks the file while it runs.

    beat loads the same pickles. **Source:** celery 5.7.0 `beat.py: PersistentScheduler,
    ScheduleEntry`: an entry that was never sent has the time at which beat first loaded it.
    """
    files = [file for file in glob.glob(glob.escape(path) + "*") if file[len(path) :] in SUFFIXES]
    if not files:
        raise Unread("{} does not exist".format(path))
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "schedule")
        for file in files:
            shutil.copy(file, copy + file[len(path) :])
        with contextlib.closing(shelve.open(copy, "r")) as store:  # noqa: S301
            found = list(store["entries"].items())
    for name, entry in found:
        last = at(entry.last_run_at)
        sent = None
        if entry.total_run_count:
            sent = last
        yield name, entry, {"last_sent_at": sent, "counted_from_at": last, "of_code": True}


def aware(when: Any) -> Any:
    """Make a time aware; both libraries define naive times as UTC."""
    if when.tzinfo:
        return when
    return when.replace(tzinfo=timezone.utc)


def at(when: Any) -> Optional[float]:
    if not when:
        return None
    return float(aware(when).timestamp())


def everywhere(app: Any) -> Dict[str, Any]:
    """Return all entries by name; those that a scheduler keeps override those of the code."""
    found = {str(name): entry for name, entry in own(app).items()}
    used = kind_of(str(app.conf.beat_scheduler))
    loaded = {
        "tables": "django_celery_beat.models" in sys.modules,
        "redbeat": "redbeat" in sys.modules,
    }
    for kind in loaded:
        if kind == used:
            found.update((name, entry) for name, entry, _ in entries(app, kind, ""))
        elif loaded[kind]:  # beat's command line may name that scheduler
            with contextlib.suppress(Exception):
                found.update((name, entry) for name, entry, _ in entries(app, kind, ""))
    return found


def names(app: Any) -> List[str]:
    return sorted(everywhere(app))


def own(app: Any) -> Dict[str, Any]:
    """Return the entries of the code."""
    given = getattr(app.conf, "beat_schedule", None)
    if not isinstance(given, dict):
        return {}
    return given


def call(app: Any, name: str) -> Optional[Dict[str, Any]]:
    """Return the call of an entry, with its lazy arguments evaluated; None if it does not exist.

    **Source:** celery 5.7.0 `beat.py: _evaluate_entry_args, _evaluate_entry_kwargs,
    Scheduler.apply_async`.
    """
    entry = everywhere(app).get(name)
    if entry is None:
        return None
    given = entry
    if not isinstance(entry, dict):
        given = vars(entry)
    args = [made(value) for value in given.get("args") or ()]
    kwargs = {key: made(value) for key, value in (given.get("kwargs") or {}).items()}
    options = dict(given.get("options") or {})
    options["headers"] = dict(options.get("headers") or {}, celery_beat_task=True)
    return {"name": given["task"], "args": args, "kwargs": kwargs, "options": options}


def made(value: Any) -> Any:
    from celery import beat

    lazy = getattr(beat, "BeatLazyFunc", ())
    if lazy and isinstance(value, lazy):
        return value()
    return value
