"""What beat's scheduler keeps outside of the code. Runs in the application's own Python:
`import_probe.py` uses it.

It has to run on Python 3.6, and reads only. `kept` answers in the shapes of `core/application.py:
KeptSchedule`, `call` has what beat would call for one entry.
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


class Unread(Exception):
    """Why what a scheduler keeps cannot be read."""


def kind_of(scheduler: str) -> str:
    """Where it keeps entries: `file`, `tables`, `redbeat`, or "" where that is not known.

    **Source:** celery 5.7.0 `beat.py: Service.get_scheduler`.
    """
    from celery.utils.imports import load_extension_class_names, symbol_by_name

    aliases = dict(load_extension_class_names("celery.beat_schedulers"))
    with contextlib.suppress(Exception):
        for base in symbol_by_name(scheduler, aliases=aliases).__mro__:
            known = {"django_celery_beat": "tables", "redbeat": "redbeat"}.get(
                base.__module__.partition(".")[0]
            )
            if known or base.__name__ == "PersistentScheduler":
                return known or "file"
    return ""


def kept(app: Any, scheduler: str, path: str) -> Dict[str, Any]:
    """All entries, each with when it was last sent; `path` is that of beat's file."""
    scheduler = scheduler or str(app.conf.beat_scheduler)
    kind = kind_of(scheduler)
    told = {"kind": kind, "scheduler": scheduler}
    try:
        found = [told_of(app, *one) for one in entries(app, kind, path)]
        return dict(told, entries=found, lock=lock(app) if kind == "redbeat" else None)
    except Exception as error:
        why = (
            str(error)
            if isinstance(error, Unread)
            else "{}: {}".format(type(error).__name__, error)
        )
        return dict(told, error=why)


def told_of(app: Any, name: str, entry: Any, times: Dict[str, Any]) -> Dict[str, Any]:
    return dict(times, entry=said.scheduled(app, name, entry))


def entries(app: Any, kind: str, path: str) -> Iterator[Any]:
    """Name, entry and times of each."""
    if kind == "tables":
        return tables()
    if kind == "redbeat":
        return redbeat(app)
    if kind == "file":
        return of_file(path)
    raise Unread(
        "it is none of those that are read: PersistentScheduler, django-celery-beat, RedBeat"
    )


def tables() -> Iterator[Any]:
    """**Source:** django-celery-beat 2.9.0 `schedulers.py: ModelEntry`, which would write where it
    cannot read.
    """
    from django_celery_beat.models import PeriodicTask

    for row in PeriodicTask.objects.order_by("name"):
        options = {
            name: getattr(row, name) for name in ("queue", "exchange", "routing_key", "priority")
        }
        options = {name: value for name, value in options.items() if value is not None}
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
        waits = row.start_time and aware(row.start_time) > now
        counted = None if waits else at(row.last_run_at or row.date_changed)
        yield (
            row.name,
            entry,
            {
                "enabled": enabled,
                "last_sent_at": at(row.last_run_at),
                "counted_from_at": counted,
            },
        )


def parsed(text: Optional[str], otherwise: Any) -> Any:
    """None where it is no JSON: such an entry beat switches off."""
    try:
        return json.loads(text) if text else otherwise
    except ValueError:
        return None


def redbeat(app: Any) -> Iterator[Any]:
    """**Source:** celery-redbeat 2.4.2 `schedulers.py`.

    `RedBeatSchedulerEntry.from_key`: one that was never sent is due now.
    `RedBeatScheduler.setup_schedule`: it notes which entries are of the code, and drops those at
    its start that the code lacks.
    """
    from redbeat.schedulers import RedBeatSchedulerEntry, ensure_conf, get_redis

    conf = ensure_conf(app) or app.redbeat_conf
    of_code = get_redis(app).smembers(conf.statics_key)
    for key in get_redis(app).zrange(conf.schedule_key, 0, -1):
        with contextlib.suppress(KeyError):  # gone since
            entry = RedBeatSchedulerEntry.from_key(key, app=app)
            last = at(entry.last_run_at)
            times = {"last_sent_at": last, "counted_from_at": last}
            yield (
                entry.name,
                entry,
                dict(times, enabled=entry.enabled, of_code=entry.name in of_code),
            )


def lock(app: Any) -> Optional[Dict[str, Any]]:
    """The lock of the beat that sends; None where nobody holds it.

    **Source:** celery-redbeat 2.4.2 `schedulers.py: RedBeatConfig, RedBeatScheduler.__init__`.
    """
    from redbeat.schedulers import ensure_conf, get_redis

    conf = ensure_conf(app) or app.redbeat_conf
    left_ms = get_redis(app).pttl(conf.lock_key) if conf.lock_key else -2
    if left_ms < 0:
        return None
    times = {
        "timeout_s": conf.lock_timeout,
        "max_interval_s": getattr(app.conf, "beat_max_loop_interval", 0),
    }
    return dict(
        {name: float(value or 0) for name, value in times.items()},
        key=conf.lock_key,
        left_s=left_ms / 1e3,
    )


def of_file(path: str) -> Iterator[Any]:
    """From a copy, for beat has the file locked while it runs; it reads the same pickles.

    **Source:** celery 5.7.0 `beat.py: PersistentScheduler, ScheduleEntry`: one that was never sent
    has the time at which beat first knew it.
    """
    files = [file for file in glob.glob(glob.escape(path) + "*") if file[len(path) :] in SUFFIXES]
    if not files:
        raise Unread("{} is not there".format(path))
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "schedule")
        for file in files:
            shutil.copy(file, copy + file[len(path) :])
        with contextlib.closing(shelve.open(copy, "r")) as store:  # noqa: S301
            found = list(store["entries"].items())
    for name, entry in found:
        last = at(entry.last_run_at)
        sent = last if entry.total_run_count else None
        yield name, entry, {"last_sent_at": sent, "counted_from_at": last, "of_code": True}


SUFFIXES = ("", ".db", ".dat", ".bak", ".dir", ".pag")


def aware(when: Any) -> Any:
    """Of naive times both libraries say that they are UTC."""
    return when if when.tzinfo else when.replace(tzinfo=timezone.utc)


def at(when: Any) -> Optional[float]:
    return aware(when).timestamp() if when else None


def everywhere(app: Any) -> Dict[str, Any]:
    """Every entry by its name, wherever it is kept; what a scheduler keeps goes before what the
    code has.
    """
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
    """Those of the code."""
    given = getattr(app.conf, "beat_schedule", None)
    return given if isinstance(given, dict) else {}


def call(app: Any, name: str) -> Optional[Dict[str, Any]]:
    """What beat calls for an entry, None where there is none; what is to be made anew for each
    sending is made now.

    **Source:** celery 5.7.0 `beat.py: _evaluate_entry_args, _evaluate_entry_kwargs,
    Scheduler.apply_async`.
    """
    entry = everywhere(app).get(name)
    if entry is None:
        return None
    given = entry if isinstance(entry, dict) else vars(entry)
    args = [made(value) for value in given.get("args") or ()]
    kwargs = {key: made(value) for key, value in (given.get("kwargs") or {}).items()}
    options = dict(given.get("options") or {})
    options["headers"] = dict(options.get("headers") or {}, celery_beat_task=True)
    return {"name": given["task"], "args": args, "kwargs": kwargs, "options": options}


def made(value: Any) -> Any:
    from celery import beat

    lazy = getattr(beat, "BeatLazyFunc", ())
    return value() if lazy and isinstance(value, lazy) else value
