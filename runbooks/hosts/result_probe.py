"""Find where the application keeps its results, and read them.

A module of `import_probe.py`, with its rules.
"""

import ast
import contextlib
import hashlib
import json
import os
import sys
import time
from typing import Any, Dict, Iterator, Tuple

PAUSE_S = 0.2
LIBRARIES = ("site-packages", "dist-packages", "/lib/python")


def results_of(app: Any) -> Dict[str, str]:
    """Return the result backend without password: its kind, where it is set, or its error.

    The `kind` says who can read results: everybody who reaches the `redis` or another server
    (`anywhere`), only users of the `disk` of the host that ran the task, only the process that sent
    it (`sender`) or that ran it (`worker`); or results are not kept (`none`). This does not create
    a backend, which may write. **Source:** celery 5.7.0 `app/base.py: _get_backend`,
    `app/utils.py: Settings.result_backend`.
    """
    named = app.backend_cls or app.conf.result_backend
    setting = ""
    if isinstance(named, str):
        setting = shown_url(named)
    elif named:
        setting = repr(named)
    found = {"setting": setting, "set_in": "", "kind": "", "error": "", "at": ""}
    try:
        found["kind"], found["at"] = kind_of(app, named)
    except Exception as error:
        found["error"] = "%s: %s" % (type(error).__name__, error)
    if found["kind"] not in ("redis", "none"):
        found["set_in"] = set_in(app)
    return found


def kind_of(app: Any, named: Any) -> Tuple[str, str]:
    """Return the kind, and the URL of a Redis without a prefix: readable without the application.

    **Source:** celery 5.7.0 `backends/`; django-celery-results 2.6.0 `backends/`.
    """
    from celery.app.backends import by_url
    from celery.backends.base import DisabledBackend

    backend, url = by_url(named, app.loader)
    place = str(url or "")
    names = {base.__module__ for base in backend.__mro__}
    if issubclass(backend, DisabledBackend):
        return "none", ""
    if names & {"celery.backends.rpc", "celery.backends.amqp"}:
        return "sender", ""
    if "celery.backends.redis" in names:
        own = app.conf.result_backend_transport_options or {}
        if own.get("global_keyprefix"):
            return "redis", ""
        return "redis", shown_url(place or str(named))
    if "celery.backends.cache" in names:
        if "memory://" in (place or app.conf.cache_backend or ""):
            return "worker", ""
        return "anywhere", ""
    if "celery.backends.database" in names:
        return kind_of_database(place or app.conf.database_url or ""), ""
    if "celery.backends.filesystem" in names:
        return "disk", ""
    if any(name.startswith("django_celery_results") for name in names):
        return kind_in_django(app, "cache" in backend.__module__), ""
    return "anywhere", ""


def kind_of_database(url: str) -> str:
    if not url.startswith("sqlite"):
        return "anywhere"
    if url.rstrip("/").endswith((":", ":memory:")):
        return "worker"
    return "disk"


def kind_in_django(app: Any, is_cache: bool) -> str:
    from django.conf import settings

    if not is_cache:
        if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3"):
            return "disk"
        return "anywhere"
    cache = settings.CACHES[app.conf.cache_backend or "default"]["BACKEND"]
    if "locmem" in cache or "dummy" in cache:
        return "worker"
    if "filebased" in cache:
        return "disk"
    return "anywhere"


def shown_url(url: str) -> str:
    from kombu.utils.url import maybe_sanitize_url

    return str(maybe_sanitize_url(url))


def set_in(app: Any) -> str:
    """Return what sets the result backend: a variable, or a file and line; "" if not found."""
    if os.environ.get("CELERY_RESULT_BACKEND"):
        return "the variable CELERY_RESULT_BACKEND"
    for path in settings_files(app):
        with contextlib.suppress(Exception), open(path, "rb") as file:
            lines = list(lines_setting_backend(ast.parse(file.read())))
            if lines:
                return "%s, line %d" % (path, max(lines))
    return ""


def settings_files(app: Any) -> Iterator[str]:
    """Yield the files of the application's modules, first those that usually have settings."""
    source = getattr(app, "_config_source", None)
    django = getattr(sys.modules.get("django.conf"), "settings", None)
    first = [str(source).partition(":")[0], getattr(django, "SETTINGS_MODULE", None), app.main]
    for name in [*first, *sorted(sys.modules)]:
        path = getattr(sys.modules.get(name or ""), "__file__", None) or ""
        is_library = any(folder in path for folder in LIBRARIES)
        if path.endswith(".py") and not is_library:
            yield path


def lines_setting_backend(tree: Any) -> Iterator[int]:
    for node in ast.walk(tree):
        targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and any(map(names_backend, targets)):
            yield node.lineno
        elif isinstance(node, ast.keyword) and (node.arg or "").lower() in (
            "backend",
            "result_backend",
        ):
            yield node.value.lineno
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                text = getattr(key, "value", getattr(key, "s", ""))
                if key and isinstance(text, str) and text.lower().endswith("result_backend"):
                    yield key.lineno


def names_backend(target: Any) -> bool:
    name = getattr(target, "id", getattr(target, "attr", ""))
    return isinstance(name, str) and name.lower().endswith("result_backend")


def read_result(app: Any, task_id: str, seen: str, limit_s: float) -> Dict[str, Any]:
    """Return the state of a task once it differs from `seen`, or at the time limit.

    `seen` is the digest of an earlier answer. Returns `unread`, with the reason, if the state
    cannot be read.

    **Source:** celery 5.7.0 `backends/base.py: get_task_meta`.
    """
    deadline = time.time() + limit_s
    while True:
        try:
            meta = app.backend.get_task_meta(task_id, cache=False)
        except Exception as error:
            return {"unread": "%s: %s" % (type(error).__name__, str(error).partition("\n")[0])}
        result = meta.get("result")
        if isinstance(result, BaseException):
            result = "%s: %s" % (type(result).__name__, result)
        answer = {
            "state": meta["status"],
            "result": as_json(result),
            "traceback": meta.get("traceback") or "",
        }
        digest = hashlib.sha256(json.dumps(answer).encode()).hexdigest()
        if digest != seen or time.time() >= deadline:
            answer["digest"] = digest
            return answer
        time.sleep(PAUSE_S)


def as_json(value: Any) -> Any:
    """Return the value as JSON types; other types as Python's `repr`."""
    try:
        return json.loads(json.dumps(value, default=repr))
    except (TypeError, ValueError):
        return repr(value)
