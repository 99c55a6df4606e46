"""Runs in the application's Python on the host: its source is sent there, after lines that set
QUESTION, and DESCRIBE, RESULTS and CODE, the sources of `describe_application.py`,
`result_probe.py` and `code_probe.py`.

The rest of standard input is what the units set. It has to run on Python 3.6, and says itself what
was wrong, so that nothing else passes for a fault of the application.

Loads the application as a worker does, and tells what it says of itself. Where it is asked to, it
imports by hand the modules of the expected tasks that are missing, so that an error which the
application swallows comes to light, and connects to the broker as a worker does. Or it tells how
the application would send a task, or sends it, or reads what became of one. The answer is the JSON
of the last line: what was asked; or `failed`, why there was no application to load; or `error`,
what the application's own code raised.
"""

import codecs
import contextlib
import faulthandler
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import NoReturn

    from runbooks.hosts import code_probe as code
    from runbooks.hosts import describe_application as said
    from runbooks.hosts import result_probe as results
    from runbooks.hosts import schedule_probe as schedules
else:
    said = type(sys)("describe_application")
    exec(DESCRIBE, vars(said))  # noqa: F821, S102
    results = type(sys)("result_probe")
    exec(RESULTS, vars(results))  # noqa: F821, S102
    code = type(sys)("code_probe")
    exec(CODE, vars(code))  # noqa: F821, S102
    schedules = type(sys)("schedule_probe")
    exec(SCHEDULE, vars(schedules))  # noqa: F821, S102
    schedules.said = said

question = json.loads(QUESTION)  # type: ignore[name-defined]  # noqa: F821


def set_environment() -> None:
    """**Source:** systemd.exec(5): the file's values go before those of `Environment=`."""
    units = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    with contextlib.suppress(ValueError):
        os.environ.update(
            (name, value) for name, _, value in (pair.partition("=") for pair in shlex.split(units))
        )
    os.environ.update(question["environment"])


def answer(**found: Any) -> "NoReturn":
    """Tell it and end: neither wait for the application's threads, nor run what it does at exit."""
    print("\n" + json.dumps({"answer": found}), flush=True)
    os._exit(0)


def trace() -> str:
    kind, error, frames = sys.exc_info()
    if isinstance(error, OutOfTime):
        return hung(traceback.extract_tb(frames), error.args[0])
    return "".join(traceback.format_exception(kind, error, frames, limit=-4)).strip()


class OutOfTime(BaseException):
    """After so many seconds. Nothing on the way takes it for an error of its own."""


def hung(frames: Iterable[Any], limit_s: float) -> str:
    """Where the application's own code stood when the time was over, as the last lines of a
    traceback have it.
    """
    all_frames = [frame for frame in frames if not frame.filename.startswith("<")]
    own = [
        one for one in all_frames if not said.is_foreign(os.path.realpath(one.filename))
    ] or all_frames
    last = "it was still at {}, line {}, after {:.0f} s".format(
        own[-1].filename, own[-1].lineno, limit_s
    )
    return "".join(traceback.format_list(own[-4:])) + last


@contextlib.contextmanager
def at_most(limit_s: float) -> Iterator[None]:
    """Raise OutOfTime where the block takes longer. Code that never comes back to Python ends the
    process then.

    **Source:** Python, `signal`: a handler runs between two instructions of the main thread alone.
    """

    def out_of_time(*_: Any) -> None:
        raise OutOfTime(limit_s)

    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


GRACE_S = 5
BY_HAND_S = 1
"""So long a module is given at least that is imported by hand."""


try:
    os.chdir(question["directory"])
except OSError as error:
    answer(
        failed="celery_directory is {}, which cannot be entered: {}".format(
            question["directory"], error.strerror
        )
    )
set_environment()
# As Python does at its start, which had none of these variables.
sys.path[:0] = [
    question["directory"],
    *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
]

try:
    from celery import Celery
    from celery.app.utils import find_app
except Exception as failure:
    version = "Python {}.{}".format(*sys.version_info)
    why = "celery_python is {}, and that {} cannot import Celery ({})".format(
        question["python"], version, failure
    )
    answer(failed=why + ": name the Python of the application's environment\n" + trace())


def find_application() -> Any:
    """The application that `celery_app` names. What its own code raises is raised.

    **Source:** celery 5.7.0 `app/utils.py: find_app`: an AttributeError of the module becomes an
    ImportError, and an ImportError of MODULE.celery an AttributeError.
    """
    name, (module, colon, attribute) = question["app"], question["app"].partition(":")
    wrong, advice = "celery_app is {}, ".format(name), ": correct celery_app (MODULE:ATTRIBUTE)"
    try:
        named = find_app(name)
    except (AttributeError, ImportError):
        loaded = imported(module)
        if not loaded:
            where = "{} finds no module {} in {}".format(
                question["python"], module, question["directory"]
            )
            answer(failed=wrong + "and " + where + ": correct celery_app or celery_directory")
        if colon and hasattr(loaded, attribute):
            raise
        if not colon:
            imported(module + ".celery")
        where = getattr(loaded, "__file__", None) or module
        answer(
            failed=wrong
            + "and {} has no {}".format(where, attribute or "Celery application")
            + advice
        )
    if not isinstance(named, Celery):
        answer(
            failed=wrong
            + "which is of type {} and no Celery application".format(type(named).__name__)
            + advice
        )
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
    until = time.monotonic() + question["limit_s"]
    for module in sorted(modules - {""}):  # a task may have a name of its own
        try:
            with at_most(max(BY_HAND_S, until - time.monotonic())):
                importlib.import_module(module)
            errors[module] = ""
        except BaseException:
            errors[module] = trace()
            variables[module] = code.variables_read()
    return errors


def readable() -> Dict[str, Any]:
    """What a worker of the application can read; what cannot be found out is None.

    **Source:** celery 5.7.0 `app/amqp.py: TaskConsumer`; kombu 5.7.0 `serialization.py:
    SerializerRegistry.loads`, `compression.py: get_decoder`.
    """
    found = {
        "accepts": None,
        "decodes": None,
        "compressions": None,
        "encodings": None,
    }  # type: Dict[str, Any]
    with contextlib.suppress(Exception):
        from kombu import serialization as types

        registry = types.registry  # type: Any
        if app.conf.accept_content is None:
            accepted = set(registry._decoders) - set(registry._disabled_content_types)
        else:
            accepted = set(types.prepare_accept_content(app.conf.accept_content))  # type: ignore[no-untyped-call]
        found["decodes"] = sorted(set(registry._decoders) | set(types.TRUSTED_CONTENT))
        found["encodings"] = [
            one for one in question["encodings"] if one in types.SKIP_DECODE or is_codec(one)
        ]
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


def broker(queues: List[str], limit_s: int = 20) -> Dict[str, str]:
    """Where a worker that starts now finds its broker, and why it would get no messages from there,
    "" if it would.

    Empty where that could not be found out. One connection, and nothing of it stays in the broker.
    """
    at, urls, connected, run_id = "", "", False, ""
    try:
        with at_most(limit_s):
            named = app.conf.broker_read_url or app.conf.broker_url
            urls = ";".join(named) if isinstance(named, (list, tuple)) else str(named)
            short = {"socket_connect_timeout": 3.0, "socket_timeout": 5.0}
            connection = app.connection_for_read(transport_options=short)
            at = "" if misread(urls) else re.sub("//[^/]*@", "//", connection.as_uri())
            connect(connection)
            connected = True
            denied = []
            if connection.transport.driver_type == "redis":
                channel = connection.channel()
                denied = list(refusals(channel, queues))
                with contextlib.suppress(channel.ResponseError):  # INFO may be refused
                    run_id = channel.client.info("server").get("run_id", "")
            return {"at": at, "run_id": run_id, "error": "; ".join(denied)}
    except OutOfTime:
        return {"at": at, "error": "no answer within %d s" % limit_s}
    except Exception as error:
        if connected or isinstance(error, (AttributeError, TypeError)):
            return {}
        shown = not misread(urls) and not isinstance(error, (ValueError, KeyError))
        return {"at": at, "error": str(error) if shown else "the URL cannot be read"}


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

    Redis looks up rights when a command is queued, and the transaction is discarded; a subscription
    ends with its connection. **Source:** kombu 5.7.0 `transport/redis.py: Channel._brpop_start,
    _subscribe, _queue_bind; QoS.append`.
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
    return (
        re.search("permission|NOPERM|unknown command|read.only", str(error), re.IGNORECASE)
        is not None
    )


def route(
    name: str, args: List[Any], kwargs: Dict[str, Any], options: Dict[str, Any]
) -> Dict[str, Any]:
    task, sent = app.tasks.get(name), said.routed(app, name, args, kwargs, options)
    return {
        "task": name, "args": said.plain(args), "kwargs": said.plain(kwargs),
        "queue": said.queue_of(app, sent), "priority": sent.get("priority"),
        "broker": app.connection_for_write().as_uri(),
        "keeps_result": not (task.ignore_result if task else app.conf.task_ignore_result),
        "max_retries": task.max_retries if task else None, **fit(task, args, kwargs),
        "results": results.results_of(app),
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


def called() -> Dict[str, Any]:
    """What is to be called: what was asked for, or what an entry of the schedule calls, with the
    options asked for.
    """
    if "entry" not in question:
        return question["call"]  # type: ignore[no-any-return]
    entry = schedules.call(app, question["entry"])
    if entry is None:
        answer(entries=schedules.names(app))
    return dict(entry, options=dict(entry["options"], **question["call"]["options"]))


def send(name: str, args: List[Any], kwargs: Dict[str, Any], options: Dict[str, Any]) -> None:
    app.conf.task_always_eager = False
    task = app.tasks.get(name)
    # retry=False: a message of unknown fate must not be sent again.
    if task:
        task.apply_async(args, kwargs, task_id=question["send_as"], retry=False, **options)
    else:
        app.send_task(name, args, kwargs, task_id=question["send_as"], retry=False, **options)


print('\n{"began": true}', flush=True)  # from here on, what goes wrong is the application's
watch = said.Watch(question["directory"])
variables = {}  # type: Dict[str, Dict[str, Any]]
try:
    if "overlay" in question:
        code.overlay(**question["overlay"])
    with at_most(question["limit_s"]):
        app = find_application()
        app.loader.import_default_modules()
        app.finalize()
    registered = set(app.tasks)
    found = {
        "registered": sorted(registered), "remote": bool(app.conf.worker_enable_remote_control),
    }  # type: Dict[str, Any]  # fmt: skip
    if "options" in question:
        with at_most(question["limit_s"]):
            found["application"] = said.describe(
                app, watch, question["options"], question["settings"]
            )
    if "urls" in question:
        found["urls"] = said.urls(app)
    if "expected" in question:
        found["errors"] = import_errors(question["expected"])
        found["variables"] = variables
        found["twins"] = code.twins_of(app)
        own = app.conf.broker_transport_options or {}
        found["options"] = {name: own[name] for name in question["options"] if name in own}
        found.update(readable())
        found["broker"] = broker(question["queues"])
    elif "send_as" in question:
        send(**called())
    elif "result_of" in question:
        found["result"] = results.read_result(app, **question["result_of"])
    elif "home" in question:
        found["home"] = code.home_of(app)
    elif "results" in question:
        found["results"] = results.results_of(app)
    elif "call" in question:
        found.update(route(**called()))
    elif "kept" in question:
        with at_most(question["limit_s"]):
            found["kept"] = schedules.kept(app, **question["kept"])
except (Exception, OutOfTime):
    answer(error=trace(), variables={"": code.variables_read()})
answer(**found)
