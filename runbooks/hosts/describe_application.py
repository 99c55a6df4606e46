"""What a loaded application says of itself. Runs in its own Python on the host, where
`import_probe.py` uses it.

It has to run on Python 3.6. `describe` answers in the shapes of `core/application.py: Application`;
a part that cannot be found out is missing. URLs are told without passwords; arguments and options
as they are: whoever reads them redacts.
"""

import contextlib
import glob
import hashlib
import inspect
import os
import platform
import sys
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, Optional
from urllib.parse import parse_qsl, urlsplit

SETTLED_S = 0.02
"""So much finer than this no file system tells the time of a change."""


class Watch:
    """What the application reads while it is loaded, from now on: variables, and files besides its
    modules.

    **Source:** CPython 3.11 `os.py: _Environ.__getitem__`, which calls `encodekey`; audit event
    `open` (Python 3.8).
    """

    def __init__(self, directory: str) -> None:
        self.began_at = time.time()
        self.variables = {}  # type: Dict[str, str]
        self.files = set()  # type: Any
        self.directory = directory.rstrip("/") + "/"
        environ = os.environ  # type: Any
        self._encode = environ.encodekey
        environ.encodekey = self._read
        add = getattr(sys, "addaudithook", None)
        if add:
            add(self._opened)

    def _read(self, name: str) -> bytes:
        """Note the first line of the application's own that reads this variable."""
        caller = sys._getframe(1)  # type: Any
        if caller.f_code.co_name == "__getitem__" and name not in self.variables:
            while caller is not None and not caller.f_code.co_filename.startswith(self.directory):
                caller = caller.f_back
            if caller is not None:
                self.variables[name] = "{}:{}".format(caller.f_code.co_filename, caller.f_lineno)
        return bytes(self._encode(name))

    def _opened(self, event: str, args: Any) -> None:
        if event == "open" and isinstance(args[0], str) and not args[2] & (os.O_WRONLY | os.O_RDWR):
            self.files.add(args[0])


def is_foreign(path: str) -> bool:
    """Whether a file is Python's or a library's, and no part of the application."""
    own = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    return any(path.startswith(prefix + "/lib") for prefix in own) or "-packages/" in path


def came_from(watch: Watch) -> Dict[str, Any]:
    """What the load depended on: its files, the folders of its own modules, and a digest of the
    state of them all.

    The digest is "" where one of them changed while it was loaded. `sh/loaded.sh` makes the same. A
    folder of Python's or a library's is left out also where a file in it is none of theirs:
    Debian's `sitecustomize.py` is a link to /etc.
    """
    modules = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    files = {os.path.abspath(path) for path in modules if isinstance(path, str)}
    beside_own = {os.path.dirname(path) for path in files if not is_foreign(os.path.realpath(path))}
    folders = sorted(
        folder for folder in beside_own if not is_foreign(os.path.realpath(folder) + "/")
    )
    passing = ("/proc/", "/sys/", "/dev/", tempfile.gettempdir() + "/")
    read = {os.path.abspath(path) for path in watch.files if not path.endswith(".pyc")}
    read -= {
        path for path in read if path.startswith(passing) and not path.startswith(watch.directory)
    }
    files |= {path for path in read if not is_foreign(os.path.realpath(path))}
    files.add(sys.executable)
    digest, changed_at = hashlib.sha256(), 0.0
    beside = [
        sorted(glob.glob(glob.escape(folder) + names), key=os.fsencode)
        for folder in folders
        for names in MODULES
    ]
    for path in (*sorted(files), *(path for found in beside for path in found)):
        with contextlib.suppress(OSError):
            state = os.stat(path)
            seconds, rest = divmod(state.st_mtime_ns, 10**9)
            digest.update(os.fsencode("%d %d.%09d %s\n" % (state.st_size, seconds, rest, path)))
            changed_at = max(changed_at, state.st_mtime, state.st_ctime)
    settled = changed_at < watch.began_at - SETTLED_S
    told = digest.hexdigest() if settled else ""
    return {"files": sorted(files), "folders": folders, "digest": told, "changed_at": changed_at}


MODULES = ("/*.py", "/*/*.py")
"""A module that appears beside those that were imported may be found by the next load."""


def place(url: Any) -> Optional[Dict[str, Any]]:
    """Where a URL leads, without user, password and options; None where that cannot be read without
    showing them.

    **Source:** kombu 5.7.0 `connection.py: Connection.__init__`: `virtual_host` may be an option,
    too.
    """
    if not isinstance(url, str) or "://" not in url:
        return None if "@" in str(url) else {"scheme": str(url)}
    try:
        parts = urlsplit(url)
        if "@" in parts.path + parts.query + parts.fragment:
            return None
        db = dict(parse_qsl(parts.query)).get(
            "virtual_host", "" if "socket" in parts.scheme else parts.path
        )
        host = parts.path if "socket" in parts.scheme else parts.hostname or ""
        return {"scheme": parts.scheme, "host": host, "port": parts.port, "db": db.strip("/")}
    except ValueError:
        return None


def places(urls: Any) -> List[Any]:
    """Those of a URL, of several in one text, or of a list."""
    each = urls if isinstance(urls, (list, tuple)) else str(urls).split(";")
    return [found for found in map(place, each) if found]


def plain(value: Any) -> Any:
    """The value as JSON can have it: what it has not is told as Python writes it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def routed(app: Any, name: str, args: Any, kwargs: Any, options: Dict[str, Any]) -> Any:
    """**Source:** celery 5.7.0 `app/base.py: send_task`, `app/routes.py: Router.route`."""
    task = app.tasks.get(name)
    own = (
        {key: value for key, value in task._get_exec_options().items() if value is not None}
        if task
        else {}
    )
    return app.amqp.router.route(dict(own, **options), name, args, kwargs, task)


def route(app: Any, name: str, args: Any, kwargs: Any, options: Dict[str, Any]) -> Dict[str, Any]:
    """Where a message goes, and with which priority; or why its router fails."""
    try:
        sent = routed(app, name, args, kwargs, options)
    except Exception as error:
        return {"error": "{}: {}".format(type(error).__name__, error)}
    exchange = getattr(sent.get("exchange"), "name", sent.get("exchange")) or ""
    priority = app.conf.task_default_priority if sent.get("priority") is None else sent["priority"]
    found = {
        "queue": queue_of(app, sent),
        "exchange": exchange,
        "routing_key": sent.get("routing_key") or "",
    }
    return dict(found, priority=priority if isinstance(priority, int) else None)


def queue_of(app: Any, sent: Dict[str, Any]) -> str:
    """The queue that a message is put into, "" where several or none are bound to its exchange.

    **Source:** celery 5.7.0 `app/amqp.py: _create_task_sender`: with an exchange and a routing key
    of its own it goes to whatever is bound there; a direct exchange without both is passed by.
    """
    queue = sent.get("queue")
    exchange = getattr(sent.get("exchange"), "name", sent.get("exchange"))
    if exchange and sent.get("routing_key"):
        bound = [
            one.name
            for one in app.amqp.queues.values()
            if getattr(one.exchange, "name", None) == exchange and one.exchange.type == "direct"
            if one.routing_key == sent["routing_key"]
        ]
        return bound[0] if len(bound) == 1 else ""
    return known_as(queue) if queue else ""


def known_as(queue: Any) -> str:
    """Of a broadcast's queue, whose name is another in each process, the name that the application
    gives it.

    **Source:** kombu 5.7.0 `common.py: Broadcast`; celery 5.7.0 `app/amqp.py: Queues.__getitem__`.
    """
    return str(queue.alias or queue.name)


class Unread:
    """Arguments that tell whether a router has looked at them."""

    def __init__(self) -> None:
        self.looks = 0

    def _look(self, *_: Any) -> Any:
        self.looks += 1
        return iter(())

    def _empty(self, *_: Any) -> int:
        self.looks += 1
        return 0

    def get(self, _: Any, default: Any = None) -> Any:
        self.looks += 1
        return default

    def __getitem__(self, name: Any) -> Any:
        self.looks += 1
        raise (IndexError if isinstance(name, int) else KeyError)(name)

    __iter__ = keys = values = items = _look
    __len__ = __contains__ = _empty


def usual_route(app: Any, name: str) -> Dict[str, Any]:
    """Where any call of a task goes; where a router looks at the arguments only that is known.

    **Source:** celery 5.7.0 `app/routes.py: Router.route` itself looks once whether there are
    keyword arguments.
    """
    args, kwargs = Unread(), Keywords()
    found = route(app, name, args, kwargs, {})
    return {"looks_at_arguments": True} if args.looks or kwargs.looks > 1 else found


class Keywords(Unread):
    """They have to be some, or the router gets others instead."""

    def __bool__(self) -> bool:
        self.looks += 1
        return True


def parameters(task: Any) -> Optional[List[Dict[str, Any]]]:
    with contextlib.suppress(TypeError, ValueError):
        return [
            {"name": one.name, "kind": one.kind.name.lower(), "required": one.default is one.empty}
            for one in inspect.signature(task.run).parameters.values()
        ]
    return None


def task(app: Any, name: str) -> Dict[str, Any]:
    """**Source:** celery 5.7.0 `app/task.py: Task`; `task_annotations` are applied to it when it is
    bound.
    """
    own = app.tasks[name]
    found = {
        "name": name,
        "module": str(getattr(own, "__module__", "")),
        "parameters": parameters(own),
        "checks_arguments": bool(getattr(own, "typing", True)),
        "route": usual_route(app, name),
        "rate_limit": own.rate_limit and str(own.rate_limit),
        "time_limit_s": own.time_limit or app.conf.task_time_limit,
        "soft_time_limit_s": own.soft_time_limit or app.conf.task_soft_time_limit,
        "acks_late": bool(own.acks_late),
        "ignores_result": bool(own.ignore_result),
        "max_retries": own.max_retries,
        "serializer": own.serializer and str(own.serializer),
    }
    return {key: value for key, value in found.items() if value is not None}


def tasks(app: Any) -> List[Dict[str, Any]]:
    return [task(app, name) for name in sorted(app.tasks)]


def scheduled(app: Any, name: str, entry: Any) -> Dict[str, Any]:
    """An entry of a schedule, as beat would send it; `args` and `kwargs` are missing where only
    beat can make them.

    **Source:** celery 5.7.0 `beat.py: Scheduler.apply_async, ScheduleEntry, BeatLazyFunc`;
    `schedules.py`.
    """
    get = (
        entry.get if isinstance(entry, dict) else lambda key, other=None: getattr(entry, key, other)
    )
    args, kwargs, options = get("args") or [], get("kwargs") or {}, dict(get("options") or {})
    found = {
        "name": str(name),
        "task": str(get("task") or ""),
        "options": plain(options),
    }  # type: Dict[str, Any]
    known = isinstance(args, (list, tuple)) and isinstance(kwargs, dict)
    if known and not any(callable(value) for value in (*args, *kwargs.values())):
        found.update(args=plain(args), kwargs=plain(kwargs))
    if known:
        found["route"] = route(app, found["task"], args, kwargs, options)
    with contextlib.suppress(Exception):
        found.update(when(app, get("schedule"), bool(get("relative"))))
    return found


def when(app: Any, given: Any, relative: bool) -> Dict[str, Any]:
    """How often an entry is due. **Source:** celery 5.7.0 `schedules.py: maybe_schedule, crontab`."""
    from celery.schedules import crontab, maybe_schedule, schedule

    found = maybe_schedule(given, relative, app=app)
    told = {"schedule": str(found)}  # type: Dict[str, Any]
    if isinstance(found, crontab):
        fields = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        told["schedule"] = " ".join(str(getattr(found, "_orig_" + name)) for name in fields)
        told["crontab"] = dict(
            {name: sorted(getattr(found, name)) for name in fields}, timezone=str(found.tz)
        )
    elif type(found) is schedule:
        told["every_s"] = found.seconds
    return told


def schedule(app: Any) -> List[Dict[str, Any]]:
    entries = getattr(app.conf, "beat_schedule", None)
    return (
        [scheduled(app, name, entry) for name, entry in entries.items()]
        if isinstance(entries, dict)
        else []
    )


def queues(app: Any) -> List[Dict[str, Any]]:
    """The queues that the application itself declares: its `task_queues`, or the default one."""
    return [
        {
            "name": known_as(one),
            "exchange": getattr(one.exchange, "name", "") or "",
            "routing_key": one.routing_key or "",
        }
        for one in app.amqp.queues.values()
    ]


def versions() -> Dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("celery", "kombu", "redis", "django", "django_celery_beat", "redbeat"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            found[name] = version
    return found


def settings(app: Any, names: List[str]) -> Dict[str, Any]:
    """The settings of these endings, as `inspect conf` of a worker has them.

    **Source:** celery 5.7.0 `worker/control.py: conf`.
    """
    from celery.utils.serialization import jsonify

    own = app.conf.table(with_defaults=False)
    wanted = {name: own[name] for name in own if str(name).lower().endswith(tuple(names))}
    return dict(jsonify(wanted, unknown_type_filter=repr))


def transport_options(app: Any, names: List[str]) -> Dict[str, Any]:
    own = app.conf.broker_transport_options or {}
    return {name: plain(own[name]) for name in names if name in own}


UNSET = "amqp://localhost"
"""**Source:** celery 5.7.0 `app/base.py: Celery._connection`; kombu 5.7.0 `connection.py`: where no
URL is given.
"""


def urls(app: Any) -> Dict[str, Any]:
    """Where its broker and its results are, in clear; and which variables of its environment have
    the broker's URL.
    """
    told = app.conf.broker_read_url or app.conf.broker_url or ""
    broker = ";".join(told) if isinstance(told, (list, tuple)) else str(told)
    options = app.conf.broker_transport_options or {}
    return {
        "broker": broker,
        "backend": str(app.conf.result_backend or ""),
        "variables": sorted(name for name, value in os.environ.items() if value == broker),
        "master": str(options.get("master_name") or ""),
    }


def describe(app: Any, watch: Watch, options: List[str], names: List[str]) -> Dict[str, Any]:
    """All of it; `options` are the transport options that are told, `names` the ends of the
    settings' names.
    """
    conf = app.conf
    parts = {
        "queues": lambda: queues(
            app
        ),  # before any route is asked for: a missing queue is made then
        "versions": versions,
        "broker": lambda: places(conf.broker_read_url or conf.broker_url or UNSET),
        "publishes_to": lambda: places(conf.broker_write_url or conf.broker_url or UNSET),
        "backend": lambda: places(conf.result_backend or "disabled"),
        "transport_options": lambda: transport_options(app, options),
        "backend_prefix": lambda: str(
            (conf.result_backend_transport_options or {}).get("global_keyprefix", "")
        ),
        "default_queue": lambda: str(conf.task_default_queue),
        "serializers": lambda: {
            name: str(conf[name + "_serializer"]) for name in ("task", "result", "event")
        },
        "accepts": lambda: sorted(map(str, conf.accept_content or ())),
        "acks_late": lambda: bool(conf.task_acks_late),
        "prefetch_multiplier": lambda: conf.worker_prefetch_multiplier,
        "tasks": lambda: tasks(app),
        "scheduler": lambda: str(conf.beat_scheduler),
        "timezone": lambda: str(app.timezone),
        "schedule": lambda: schedule(app),
        "variables": lambda: [
            {"name": name, "place": at} for name, at in sorted(watch.variables.items())
        ],
        "settings": lambda: settings(app, names),
        "came_from": lambda: came_from(watch),
    }  # type: Dict[str, Callable[[], Any]]
    return dict(answered(parts))


def answered(parts: Dict[str, Callable[[], Any]]) -> Iterator[Any]:
    for name, ask in parts.items():
        with contextlib.suppress(Exception):
            yield name, ask()
