"""Describe a loaded application. Runs in its own Python on the host; `import_probe.py` uses it.

It has to run on Python 3.6. `describe` answers in the shapes of `core/application.py: Application`,
without the parts that fail. URLs have no passwords; arguments and options are complete: the
reader redacts them.
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
"""File systems may record the time of a change no finer than this."""


MODULES = ("/*.py", "/*/*.py")
"""The next load may import a new module beside those that were imported."""


UNSET = "amqp://localhost"
"""The broker without a URL.

**Source:** celery 5.7.0 `app/base.py: Celery._connection`; kombu 5.7.0 `connection.py`.
"""


class Watch:
    """Records the variables and files that the application reads while it is loaded.

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
        """Record the application's first line that reads this variable."""
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
    """Whether a file belongs to Python or a library, not to the application."""
    own = {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    return any(path.startswith(prefix + "/lib") for prefix in own) or "-packages/" in path


def came_from(watch: Watch) -> Dict[str, Any]:
    """Return the files that the load depended on, the folders of its modules, and their digest.

    The digest is "" if one of them changed during the load. `sh/loaded.sh` computes the same.
    Skips folders of Python and libraries even if a file there leads elsewhere: Debian's
    `sitecustomize.py` is a link to /etc.
    """
    modules = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    files = {os.path.abspath(path) for path in modules if isinstance(path, str)}
    beside_own = {os.path.dirname(path) for path in files if not is_foreign(os.path.realpath(path))}
    folders = []
    for folder in sorted(beside_own):
        if not is_foreign(os.path.realpath(folder) + "/"):
            folders.append(folder)
    files.update(data_files(watch))
    files.add(sys.executable)
    paths = sorted(files)
    for folder in folders:
        for names in MODULES:
            paths += sorted(glob.glob(glob.escape(folder) + names), key=os.fsencode)
    digest = hashlib.sha256()
    changed_at = 0.0
    for path in paths:
        with contextlib.suppress(OSError):
            state = os.stat(path)
            seconds, rest = divmod(state.st_mtime_ns, 10**9)
            digest.update(os.fsencode("%d %d.%09d %s\n" % (state.st_size, seconds, rest, path)))
            changed_at = max(changed_at, state.st_mtime, state.st_ctime)
    stable = ""
    if changed_at < watch.began_at - SETTLED_S:
        stable = digest.hexdigest()
    return {"files": sorted(files), "folders": folders, "digest": stable, "changed_at": changed_at}


def data_files(watch: Watch) -> Iterator[str]:
    """Yield the application's own files that it read, without modules and temporary files."""
    passing = ("/proc/", "/sys/", "/dev/", tempfile.gettempdir() + "/")
    for name in list(watch.files):
        path = os.path.abspath(name)
        if name.endswith(".pyc") or is_foreign(os.path.realpath(path)):
            continue
        if path.startswith(watch.directory) or not path.startswith(passing):
            yield path


def place(url: Any) -> Optional[Dict[str, Any]]:
    """Return a URL's place without user, password and options; None if they cannot be separated.

    **Source:** kombu 5.7.0 `connection.py: Connection.__init__`: `virtual_host` may also be an
    option.
    """
    if not isinstance(url, str) or "://" not in url:
        if "@" in str(url):
            return None
        return {"scheme": str(url)}
    try:
        parts = urlsplit(url)
        if "@" in parts.path + parts.query + parts.fragment:
            return None
        host = parts.hostname or ""
        db = parts.path
        if "socket" in parts.scheme:
            host = parts.path
            db = ""
        db = dict(parse_qsl(parts.query)).get("virtual_host", db)
        return {"scheme": parts.scheme, "host": host, "port": parts.port, "db": db.strip("/")}
    except ValueError:
        return None


def places(urls: Any) -> List[Any]:
    """Return the places of a URL, of several in one text, or of a list."""
    if not isinstance(urls, (list, tuple)):
        urls = str(urls).split(";")
    return [found for found in map(place, urls) if found]


def plain(value: Any) -> Any:
    """Return the value as JSON types; other types as Python's `repr`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return repr(value)


def routed(app: Any, name: str, args: Any, kwargs: Any, options: Dict[str, Any]) -> Any:
    """**Source:** celery 5.7.0 `app/base.py: send_task`, `app/routes.py: Router.route`."""
    task = app.tasks.get(name)
    own = {}
    if task:
        for key, value in task._get_exec_options().items():
            if value is not None:
                own[key] = value
    return app.amqp.router.route(dict(own, **options), name, args, kwargs, task)


def route(app: Any, name: str, args: Any, kwargs: Any, options: Dict[str, Any]) -> Dict[str, Any]:
    """Return the queue and priority of a message, or the error of its router."""
    try:
        sent = routed(app, name, args, kwargs, options)
    except Exception as error:
        return {"error": "{}: {}".format(type(error).__name__, error)}
    priority = sent.get("priority")
    if priority is None:
        priority = app.conf.task_default_priority
    if not isinstance(priority, int):
        priority = None
    return {
        "queue": queue_of(app, sent),
        "exchange": getattr(sent.get("exchange"), "name", sent.get("exchange")) or "",
        "routing_key": sent.get("routing_key") or "",
        "priority": priority,
    }


def queue_of(app: Any, sent: Dict[str, Any]) -> str:
    """Return the queue that a message goes to, "" if not exactly one is bound to its exchange.

    **Source:** celery 5.7.0 `app/amqp.py: _create_task_sender`: a message with its own exchange and
    routing key goes to the queues bound there; with only one of the two, that is ignored.
    """
    queue = sent.get("queue")
    exchange = getattr(sent.get("exchange"), "name", sent.get("exchange"))
    routing_key = sent.get("routing_key")
    if exchange and routing_key:
        bound = []
        for one in app.amqp.queues.values():
            is_its = getattr(one.exchange, "name", None) == exchange
            if is_its and one.exchange.type == "direct" and one.routing_key == routing_key:
                bound.append(one.name)
        if len(bound) == 1:
            return str(bound[0])
        return ""
    if queue:
        return known_as(queue)
    return ""


def known_as(queue: Any) -> str:
    """Return the application's name of a queue: a broadcast's queue has another in each process.

    **Source:** kombu 5.7.0 `common.py: Broadcast`; celery 5.7.0 `app/amqp.py: Queues.__getitem__`.
    """
    return str(queue.alias or queue.name)


class Unread:
    """Arguments that record whether a router has read them."""

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
    """Return the route of any call of a task, or that a router reads the arguments.

    **Source:** celery 5.7.0 `app/routes.py: Router.route` itself checks once whether there are
    keyword arguments.
    """
    args = Unread()
    kwargs = Keywords()
    found = route(app, name, args, kwargs, {})
    if args.looks or kwargs.looks > 1:
        return {"looks_at_arguments": True}
    return found


class Keywords(Unread):
    """They count as non-empty, or the router would get other ones."""

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
    """Describe a task.

    **Source:** celery 5.7.0 `app/task.py: Task`; binding a task applies `task_annotations` to it.
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
    """Describe an entry of a schedule; without `args` and `kwargs` if only beat can compute them.

    **Source:** celery 5.7.0 `beat.py: Scheduler.apply_async, ScheduleEntry, BeatLazyFunc`;
    `schedules.py`.
    """
    args = field(entry, "args") or []
    kwargs = field(entry, "kwargs") or {}
    options = dict(field(entry, "options") or {})
    found = {
        "name": str(name),
        "task": str(field(entry, "task") or ""),
        "options": plain(options),
    }  # type: Dict[str, Any]
    known = isinstance(args, (list, tuple)) and isinstance(kwargs, dict)
    if known and not any(callable(value) for value in (*args, *kwargs.values())):
        found.update(args=plain(args), kwargs=plain(kwargs))
    if known:
        found["route"] = route(app, found["task"], args, kwargs, options)
    with contextlib.suppress(Exception):
        found.update(when(app, field(entry, "schedule"), bool(field(entry, "relative"))))
    return found


def field(entry: Any, name: str) -> Any:
    """Return a field of a schedule's entry, which is a dict or an object; None if missing."""
    if isinstance(entry, dict):
        return entry.get(name)
    return getattr(entry, name, None)


def when(app: Any, given: Any, relative: bool) -> Dict[str, Any]:
    """Return how often an entry is due.

    **Source:** celery 5.7.0 `schedules.py: maybe_schedule, crontab`.
    """
    from celery.schedules import crontab, maybe_schedule, schedule

    found = maybe_schedule(given, relative, app=app)
    answer = {"schedule": str(found)}  # type: Dict[str, Any]
    if isinstance(found, crontab):
        fields = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        answer["schedule"] = " ".join(str(getattr(found, "_orig_" + name)) for name in fields)
        answer["crontab"] = dict(
            {name: sorted(getattr(found, name)) for name in fields}, timezone=str(found.tz)
        )
    elif type(found) is schedule:
        answer["every_s"] = found.seconds
    return answer


def schedule(app: Any) -> List[Dict[str, Any]]:
    entries = getattr(app.conf, "beat_schedule", None)
    if not isinstance(entries, dict):
        return []
    return [scheduled(app, name, entry) for name, entry in entries.items()]


def queues(app: Any) -> List[Dict[str, Any]]:
    """Return the queues that the application declares: its `task_queues`, or the default one."""
    found = []
    for one in app.amqp.queues.values():
        exchange = getattr(one.exchange, "name", "") or ""
        routing_key = one.routing_key or ""
        found.append({"name": known_as(one), "exchange": exchange, "routing_key": routing_key})
    return found


def versions() -> Dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("celery", "kombu", "redis", "django", "django_celery_beat", "redbeat"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            found[name] = version
    return found


def settings(app: Any, names: List[str]) -> Dict[str, Any]:
    """Return the settings whose names end so, as `inspect conf` of a worker does.

    **Source:** celery 5.7.0 `worker/control.py: conf`.
    """
    from celery.utils.serialization import jsonify

    own = app.conf.table(with_defaults=False)
    wanted = {name: own[name] for name in own if str(name).lower().endswith(tuple(names))}
    return dict(jsonify(wanted, unknown_type_filter=repr))


def transport_options(app: Any, names: List[str]) -> Dict[str, Any]:
    own = app.conf.broker_transport_options or {}
    return {name: plain(own[name]) for name in names if name in own}


def urls(app: Any) -> Dict[str, Any]:
    """Return the URLs of broker and results, with passwords, and the variables with the former."""
    url = app.conf.broker_read_url or app.conf.broker_url or ""
    if isinstance(url, (list, tuple)):
        url = ";".join(url)
    broker = str(url)
    options = app.conf.broker_transport_options or {}
    return {
        "broker": broker,
        "backend": str(app.conf.result_backend or ""),
        "variables": sorted(name for name, value in os.environ.items() if value == broker),
        "master": str(options.get("master_name") or ""),
    }


def describe(app: Any, watch: Watch, options: List[str], names: List[str]) -> Dict[str, Any]:
    """Describe the application, with these transport options, and settings whose names end so."""
    conf = app.conf
    parts = {
        # Before any route is asked for, which creates missing queues.
        "queues": lambda: queues(app),
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
