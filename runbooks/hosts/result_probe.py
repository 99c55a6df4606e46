"""Where the application keeps its results, and reading them: a module of `import_probe.py`, with
its rules.
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


def results_of(app: Any) -> Dict[str, str]:
    """The result backend as the application names it, without password: of which kind, where that
    is set, or its error.

    By `kind` results can be read by everybody who reaches the `redis` or another place
    (`anywhere`), only on the `disk` of the host that ran the task, only by the process that sent it
    (`sender`) or that ran it (`worker`), or are not kept at all (`none`). No backend is made: that
    may write. **Source:** celery 5.7.0 `app/base.py: _get_backend`, `app/utils.py:
    Settings.result_backend`.
    """
    named = app.backend_cls or app.conf.result_backend
    setting = shown_url(named) if isinstance(named, str) else repr(named)
    found = {"setting": setting if named else "", "set_in": "", "kind": "", "error": "", "at": ""}
    try:
        found["kind"], found["at"] = kind_of(app, named)
    except Exception as error:
        found["error"] = "%s: %s" % (type(error).__name__, error)
    if found["kind"] not in ("redis", "none"):
        found["set_in"] = set_in(app)
    return found


def kind_of(app: Any, named: Any) -> Tuple[str, str]:
    """The kind, and of a Redis without a prefix its URL: that can be read without the application.

    **Source:** celery 5.7.0 `backends/`; django-celery-results 2.6.0 `backends/`.
    """
    from celery.app.backends import by_url
    from celery.backends.base import DisabledBackend

    backend, url = by_url(named, app.loader)
    place, names = str(url or ""), {base.__module__ for base in backend.__mro__}
    if issubclass(backend, DisabledBackend):
        return "none", ""
    if names & {"celery.backends.rpc", "celery.backends.amqp"}:
        return "sender", ""
    if "celery.backends.redis" in names:
        own = app.conf.result_backend_transport_options or {}
        return "redis", "" if own.get("global_keyprefix") else shown_url(place or str(named))
    if "celery.backends.cache" in names:
        return (
            "worker" if "memory://" in (place or app.conf.cache_backend or "") else "anywhere"
        ), ""
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
    return "worker" if url.rstrip("/").endswith((":", ":memory:")) else "disk"


def kind_in_django(app: Any, is_cache: bool) -> str:
    from django.conf import settings

    if not is_cache:
        return "disk" if settings.DATABASES["default"]["ENGINE"].endswith("sqlite3") else "anywhere"
    cache = settings.CACHES[app.conf.cache_backend or "default"]["BACKEND"]
    kinds = {"locmem": "worker", "dummy": "worker", "filebased": "disk"}
    return next((kind for name, kind in kinds.items() if name in cache), "anywhere")


def shown_url(url: str) -> str:
    from kombu.utils.url import maybe_sanitize_url

    return str(maybe_sanitize_url(url))


def set_in(app: Any) -> str:
    """What sets the result backend: a variable, or file and line; "" where that is not found."""
    if os.environ.get("CELERY_RESULT_BACKEND"):
        return "the variable CELERY_RESULT_BACKEND"
    for path in settings_files(app):
        with contextlib.suppress(Exception), open(path, "rb") as file:
            lines = list(lines_setting_backend(ast.parse(file.read())))
            if lines:
                return "%s, line %d" % (path, max(lines))
    return ""


def settings_files(app: Any) -> Iterator[str]:
    """The files of its modules that are not a library's, those first that settings are known to
    come from.
    """
    source = getattr(app, "_config_source", None)
    django = getattr(sys.modules.get("django.conf"), "settings", None)
    first = [str(source).partition(":")[0], getattr(django, "SETTINGS_MODULE", None), app.main]
    for name in [*first, *sorted(sys.modules)]:
        path = getattr(sys.modules.get(name or ""), "__file__", None) or ""
        is_library = any(
            folder in path for folder in ("site-packages", "dist-packages", "/lib/python")
        )
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
    """How a task stands once that differs from what was `seen` (the digest of an earlier answer),
    or the time is over.

    Or `unread`, why that cannot be read.

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
        told = {
            "state": meta["status"],
            "result": as_json(result),
            "traceback": meta.get("traceback") or "",
        }
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        if digest != seen or time.time() >= deadline:
            told["digest"] = digest
            return told
        time.sleep(PAUSE_S)


def as_json(value: Any) -> Any:
    """The value as JSON has it; what it cannot hold as it would be written in Python."""
    try:
        return json.loads(json.dumps(value, default=repr))
    except (TypeError, ValueError):
        return repr(value)
