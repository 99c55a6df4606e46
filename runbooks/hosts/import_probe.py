"""Runs in the application's Python on the host (its source is sent there, after a line that sets QUESTION).

The rest of standard input is a line of what the units set, then the environment file: the application's user need not
be able to read it. It has to run on Python 3.6, and says itself what was wrong, so that nothing else passes for a fault
of the application.

Loads the application as a worker does. Then it imports by hand the modules of the expected tasks that are missing, so
that an error which the application swallows comes to light, and connects to the broker as a worker does. Or it tells
how the application would send a task, or sends it. The answer is the JSON of the last line: what was asked; or
`failed`, why there was no application to load; or `error`, what the application's own code raised.
"""

import codecs
import contextlib
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import NoReturn

question = json.loads(QUESTION)  # type: ignore[name-defined]  # noqa: F821


def read_environment() -> None:
    """**Source:** systemd.exec(5): the file's values go before those of `Environment=`."""
    units, _, text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").partition("\n")
    with contextlib.suppress(ValueError):
        os.environ.update((name, value) for name, _, value in (pair.partition("=") for pair in shlex.split(units)))
    for line in text.split("\n"):
        found = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", line, re.DOTALL)
        if found and "\0" not in line:
            os.environ[found[1]] = unquote(found[2].strip())


def unquote(value: str) -> str:
    try:
        return "".join(shlex.split(value)) if value[:1] in ("'", '"') else value
    except ValueError:
        return value


def answer(**found: Any) -> "NoReturn":
    """Tell it and end: neither wait for the application's threads, nor run what it does at exit."""
    print("\n" + json.dumps({"answer": found}), flush=True)
    os._exit(0)


def trace() -> str:
    return "".join(traceback.format_exception(*sys.exc_info(), limit=-4)).strip()


try:
    os.chdir(question["directory"])
except OSError as error:
    answer(failed="celery_directory is {}, which cannot be entered: {}".format(question["directory"], error.strerror))
read_environment()
os.environ.update(question["overrides"])
# As Python does at its start, and the file was not read then.
sys.path[:0] = [question["directory"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]

try:
    from celery import Celery
    from celery.app.utils import find_app
except Exception as failure:
    version = "Python {}.{}".format(*sys.version_info)
    why = "celery_python is {}, and that {} cannot import Celery ({})".format(question["python"], version, failure)
    answer(failed=why + ": name the Python of the application's environment\n" + trace())


def find_application() -> Any:
    """The application that `celery_app` names. What its own code raises is raised.

    **Source:** celery 5.7.0 `app/utils.py: find_app`: an AttributeError of the module becomes an ImportError, and an
    ImportError of MODULE.celery an AttributeError.
    """
    name, (module, colon, attribute) = question["app"], question["app"].partition(":")
    wrong, advice = "celery_app is {}, ".format(name), ": correct celery_app (MODULE:ATTRIBUTE)"
    try:
        named = find_app(name)
    except (AttributeError, ImportError):
        loaded = imported(module)
        if not loaded:
            where = "{} finds no module {} in {}".format(question["python"], module, question["directory"])
            answer(failed=wrong + "and " + where + ": correct celery_app or celery_directory")
        if colon and hasattr(loaded, attribute):
            raise
        if not colon:
            imported(module + ".celery")
        where = getattr(loaded, "__file__", None) or module
        answer(failed=wrong + "and {} has no {}".format(where, attribute or "Celery application") + advice)
    if not isinstance(named, Celery):
        answer(failed=wrong + "which is of type {} and no Celery application".format(type(named).__name__) + advice)
    return named


def imported(module: str) -> Any:
    """The module, None where there is none of this name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (module + ".").startswith(str(error.name) + "."):
            return None
        raise


def import_errors(tasks: Iterable[str]) -> Dict[str, str]:
    errors = {}  # type: Dict[str, str]
    modules = {name.rpartition(".")[0] for name in set(tasks) - registered}
    for module in sorted(modules - {""}):  # a task may have a name of its own
        try:
            importlib.import_module(module)
            errors[module] = ""
        except BaseException:
            errors[module] = trace()
    return errors


def readable() -> Dict[str, Any]:
    """What a worker of the application can read; what cannot be found out is None.

    **Source:** celery 5.7.0 `app/amqp.py: TaskConsumer`; kombu 5.7.0 `serialization.py: SerializerRegistry.loads`,
    `compression.py: get_decoder`.
    """
    found = {"accepts": None, "decodes": None, "compressions": None, "encodings": None}  # type: Dict[str, Any]
    with contextlib.suppress(Exception):
        from kombu import serialization as types

        registry = types.registry  # type: Any
        if app.conf.accept_content is None:
            accepted = set(registry._decoders) - set(registry._disabled_content_types)
        else:
            accepted = set(types.prepare_accept_content(app.conf.accept_content))  # type: ignore[no-untyped-call]
        found["decodes"] = sorted(set(registry._decoders) | set(types.TRUSTED_CONTENT))
        found["encodings"] = [one for one in question["encodings"] if one in types.SKIP_DECODE or is_codec(one)]
        found["accepts"] = sorted(accepted | set(types.TRUSTED_CONTENT))
    with contextlib.suppress(Exception):
        from kombu import compression

        found["compressions"] = sorted({*compression._decoders, *compression._aliases})
    return found


def is_codec(name: str) -> bool:
    try:
        codecs.lookup(name)
    except (LookupError, ValueError):
        return False
    return True


def routed(name: str, args: List[Any], kwargs: Dict[str, Any], options: Dict[str, Any]) -> Any:
    """**Source:** celery 5.7.0 `app/base.py: send_task`, `app/routes.py: Router.route`."""
    task = app.tasks.get(name)
    own = {key: value for key, value in task._get_exec_options().items() if value is not None} if task else {}
    return app.amqp.router.route({**own, **options}, name, args, kwargs, task)


def queue_in(sent: Any) -> str:
    """The queue's name, "" where it goes to an exchange of which no queue is known."""
    return sent["queue"].name if sent.get("queue") else ""


def routes() -> Dict[str, str]:
    """Task → queue, of those that always go to the same: a router of the application's own may look at arguments."""
    found = {}  # type: Dict[str, str]
    for name in registered if routes_are_fixed() else ():
        with contextlib.suppress(Exception):
            found[name] = queue_in(routed(name, [], {}, {}))
    return found


def routes_are_fixed() -> bool:
    """**Source:** celery 5.7.0 `app/routes.py: prepare`."""
    with contextlib.suppress(Exception):
        from celery.app.routes import MapRoute

        return all(isinstance(router, MapRoute) for router in app.amqp.router.routes)
    return False


def schedule() -> List[Dict[str, Any]]:
    """What beat sends of the application's own schedule, and where to; or why it cannot.

    **Source:** celery 5.7.0 `beat.py: Scheduler.apply_async, ScheduleEntry`.
    """
    found = []
    entries = getattr(app.conf, "beat_schedule", None)
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        get = entry.get if isinstance(entry, dict) else lambda key, other, entry=entry: getattr(entry, key, other)
        args, kwargs = get("args", None) or [], get("kwargs", None) or {}
        told = {"name": str(name), "task": str(get("task", "")), "queue": "", "error": ""}
        if routes_are_fixed() or (isinstance(args, (list, tuple)) and isinstance(kwargs, dict)):
            try:
                told["queue"] = queue_in(routed(told["task"], args, kwargs, dict(get("options", None) or {})))
            except Exception as error:
                told["error"] = "%s: %s" % (type(error).__name__, error)
        found.append(told)
    return found


class OutOfTime(BaseException):
    """Nothing on the way to the broker takes it for an error of its own."""


def broker(queues: List[str], limit_s: int = 20) -> Dict[str, str]:
    """Where a worker that starts now finds its broker, and why it would get no messages from there, "" if it would.

    Empty where that could not be found out. One connection, and nothing of it stays in the broker.
    """
    at, urls, connected = "", "", False
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(limit_s)
    try:
        named = app.conf.broker_read_url or app.conf.broker_url
        urls = ";".join(named) if isinstance(named, (list, tuple)) else str(named)
        short = {"socket_connect_timeout": 3.0, "socket_timeout": 5.0}
        connection = app.connection_for_read(transport_options=short)
        at = "" if misread(urls) else re.sub("//[^/]*@", "//", connection.as_uri())
        connect(connection)
        connected = True
        denied = list(refusals(connection.channel(), queues)) if connection.transport.driver_type == "redis" else []
        return {"at": at, "error": "; ".join(denied)}
    except OutOfTime:
        return {"at": at, "error": "no answer within %d s" % limit_s}
    except Exception as error:
        if connected or isinstance(error, (AttributeError, TypeError)):
            return {}
        shown = not misread(urls) and not isinstance(error, (ValueError, KeyError))
        return {"at": at, "error": str(error) if shown else "the URL cannot be read"}
    finally:
        signal.alarm(0)


def out_of_time(*_: Any) -> None:
    raise OutOfTime


def misread(urls: str) -> bool:
    """Whether a password that is not quoted makes what is said of a URL show a part of it."""
    try:
        parts = [urlsplit(url) for url in urls.split(";")]
    except ValueError:
        return True
    return any("@" in part.path + part.query + part.fragment for part in parts)


def connect(connection: Any) -> None:
    """Once to each server that the URL names, until one answers."""
    failed = []

    def failing(error: Exception, _: Any) -> None:
        failed.append(error)
        if len(failed) >= len(connection.alt or "1"):
            raise error

    connection.ensure_connection(errback=failing)


def refusals(channel: Any, queues: List[str]) -> Iterator[str]:
    """What a worker does that the user of its connection may not do.

    Redis looks up rights when a command is queued, and the transaction is discarded; a subscription ends with its
    connection.
    **Source:** kombu 5.7.0 `transport/redis.py: Channel._brpop_start, _subscribe, _queue_bind; QoS.append`.
    """
    prefix = getattr(channel, "global_keyprefix", "")
    exchange = app.control.mailbox.exchange.name
    keys = [channel._q_for_pri(queue, step) for step in channel.priority_steps for queue in queues]
    commands = [
        ["BRPOP", *(prefix + key for key in keys), "1"],
        ["HSET", prefix + channel.unacked_key, "tag", "message"],
        ["ZADD", prefix + channel.unacked_index_key, "1", "tag"],
        ["SADD", prefix + channel.keyprefix_queue % exchange, "binding"],
    ]
    pool = channel.client.connection_pool
    try:
        connection = pool.get_connection()
    except TypeError:  # before redis-py 5.3
        connection = pool.get_connection("MULTI")
    for command in [["MULTI"], *commands, ["DISCARD"]]:
        connection.send_command(*command)
        try:
            connection.read_response()
        except channel.ResponseError as error:
            if is_refusal(error) or command == ["MULTI"]:
                yield "%s: %s" % (" ".join(command[:2]), error)
            if command == ["MULTI"]:
                return
    if app.conf.worker_enable_remote_control:
        topic = channel._get_publish_topic(exchange, "")
        try:
            channel.subclient.psubscribe([topic])
            channel.subclient.parse_response()
        except channel.ResponseError as error:
            if is_refusal(error):
                yield "PSUBSCRIBE %s: %s" % (topic, error)


def is_refusal(error: Exception) -> bool:
    """Not where the server has no memory or no disk just now: that passes."""
    return re.search("permission|NOPERM|unknown command|read.only", str(error), re.IGNORECASE) is not None


def route(name: str, args: List[Any], kwargs: Dict[str, Any], options: Dict[str, Any]) -> Dict[str, Any]:
    task, sent = app.tasks.get(name), routed(name, args, kwargs, options)
    return {
        "queue": queue_in(sent), "priority": sent.get("priority"), "broker": app.connection_for_write().as_uri(),
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


print('\n{"began": true}', flush=True)  # from here on, what goes wrong is the application's
try:
    app = find_application()
    app.loader.import_default_modules()
    app.finalize()
    registered = set(app.tasks)
    found = {
        "registered": sorted(registered), "remote": bool(app.conf.worker_enable_remote_control),
    }  # type: Dict[str, Any]  # fmt: skip
    if "expected" in question:
        found["errors"] = import_errors(question["expected"])
        own = app.conf.broker_transport_options or {}
        found["options"] = {name: own[name] for name in question["options"] if name in own}
        found.update(readable())
        found.update(routes=routes(), schedule=schedule())
        found["broker"] = broker(question["queues"])
    elif "send_as" in question:
        send(**question["call"])
    else:
        found.update(route(**question["call"]))
except Exception:
    answer(error=trace())
answer(**found)
