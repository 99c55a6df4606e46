"""Runs in the application's Python on the host (its source is sent there, after a line that sets QUESTION).

The rest of standard input is the environment file: the application's user need not be able to read it. It has to run
on Python 3.6, and says itself what was wrong, so that nothing else passes for a fault of the application.

Loads the application as a worker does. Then it imports by hand the modules of the expected tasks that are missing, so
that an error which the application swallows comes to light; or it tells how the application would send a task, or sends
it. The answer is the JSON of one line.
"""

import contextlib
import importlib
import inspect
import json
import os
import re
import shlex
import sys
import traceback
from typing import Any, Dict, Iterable, List

question = json.loads(QUESTION)  # type: ignore[name-defined]  # noqa: F821


def read_env_file() -> None:
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    for line in text.split("\n"):
        found = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", line, re.DOTALL)
        if found and "\0" not in line:
            os.environ[found[1]] = unquote(found[2].strip())


def unquote(value: str) -> str:
    try:
        return "".join(shlex.split(value)) if value[:1] in ("'", '"') else value
    except ValueError:
        return value


os.chdir(question["directory"])
sys.path.insert(0, question["directory"])
read_env_file()
os.environ.update(question["overrides"])

from celery.app.utils import find_app  # noqa: E402

print('\n{"began": true}', flush=True)  # from here on, what goes wrong is the application's
app = find_app(question["app"])
app.loader.import_default_modules()
app.finalize()
registered = set(app.tasks)


def import_errors(tasks: Iterable[str]) -> Dict[str, str]:
    errors = {}  # type: Dict[str, str]
    modules = {name.rpartition(".")[0] for name in set(tasks) - registered}
    for module in sorted(modules - {""}):  # a task may have a name of its own
        try:
            importlib.import_module(module)
            errors[module] = ""
        except BaseException:
            errors[module] = "".join(traceback.format_exception(*sys.exc_info(), limit=-4)).strip()
    return errors


def readable() -> Dict[str, Any]:
    """What a worker of the application can read; what cannot be found out is None.

    **Source:** celery 5.7.0 `app/amqp.py: TaskConsumer`; kombu 5.7.0 `serialization.py: SerializerRegistry.loads`,
    `compression.py: get_decoder`, `transport/virtual/base.py: Channel.decode`.
    """
    found = {"accepts": None, "compressions": None, "encodings": None}  # type: Dict[str, Any]
    with contextlib.suppress(Exception):
        from kombu import serialization as types

        registry = types.registry  # type: Any
        if app.conf.accept_content is None:
            accepted = set(registry._decoders) - set(registry._disabled_content_types)
        else:
            accepted = set(types.prepare_accept_content(app.conf.accept_content))  # type: ignore[no-untyped-call]
        found["accepts"] = sorted(accepted | set(types.TRUSTED_CONTENT))
    with contextlib.suppress(Exception):
        from kombu import compression

        found["compressions"] = sorted({*compression._decoders, *compression._aliases})
    with contextlib.suppress(Exception):
        from kombu.transport.virtual import Channel

        found["encodings"] = sorted(Channel.codecs)
    return found


def route(name: str, args: List[Any], kwargs: Dict[str, Any], options: Dict[str, Any]) -> Dict[str, Any]:
    """**Source:** celery 5.7.0 `app/base.py: send_task`, `app/routes.py: Router.route`."""
    task = app.tasks.get(name)
    own = {key: value for key, value in task._get_exec_options().items() if value is not None} if task else {}
    sent = app.amqp.router.route({**own, **options}, name, args, kwargs, task)
    queue = sent["queue"].name if sent.get("queue") else ""
    return {
        "queue": queue, "priority": sent.get("priority"), "broker": app.connection_for_write().as_uri(),
        "keeps_result": not (task.ignore_result if task else app.conf.task_ignore_result),
        "max_retries": task.max_retries if task else None, **fit(task, args, kwargs),
        "import_error": next(iter(import_errors([name]).values()), ""),
    }  # fmt: skip


def fit(task: Any, args: List[Any], kwargs: Dict[str, Any]) -> Dict[str, Any]:
    if task is None:
        return {"signature": None, "misfit": ""}
    signature = inspect.signature(task.run)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return {"signature": str(signature), "misfit": str(error)}
    return {"signature": str(signature), "misfit": ""}


def send(name: str, args: List[Any], kwargs: Dict[str, Any], options: Dict[str, Any]) -> None:
    app.conf.task_always_eager = False
    task = app.tasks.get(name)
    # retry=False: a message of unknown fate must not be sent again.
    if task:
        task.apply_async(args, kwargs, task_id=question["send_as"], retry=False, **options)
    else:
        app.send_task(name, args, kwargs, task_id=question["send_as"], retry=False, **options)


answer = {"registered": sorted(registered), "remote": bool(app.conf.worker_enable_remote_control)}  # type: Dict[str, Any]
if "expected" in question:
    answer["errors"] = import_errors(question["expected"])
    own = app.conf.broker_transport_options or {}
    answer["options"] = {name: own[name] for name in question["options"] if name in own}
    answer.update(readable())
elif "send_as" in question:
    send(**question["call"])
else:
    answer.update(route(**question["call"]))
print("\n" + json.dumps(answer), flush=True)
os._exit(0)  # neither wait for the application's threads, nor run what it does at exit
