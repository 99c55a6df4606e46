"""Load the application as a worker does, and answer a question. Runs in its Python on the host.

Its source is sent to the host after lines that set QUESTION, and the sources of the modules below:
DESCRIBE, RESULTS, CODE and SCHEDULE. The rest of standard input is the environment of the units. It
has to run on Python 3.6. It reports its own failures, so that none of them is taken for a fault of
the application.

If asked, it separately imports the modules of expected tasks that are missing, to find errors that
the application swallows, and connects to the broker as a worker does. It can also show how the
application would send a task, send it, or read its result. The answer is the JSON of the last line:
the answer to the question; or `failed`: the application was not found; or `error`: it raised.
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

GRACE_S = 5
BY_HAND_S = 1
"""The least time limit for a separate import of a module."""

question = json.loads(QUESTION)  # type: ignore[name-defined]  # noqa: F821


def set_environment() -> None:
    """Set the variables. **Source:** systemd.exec(5): those of the file override `Environment=`."""
    units = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    with contextlib.suppress(ValueError):
        for pair in shlex.split(units):
            name, _, value = pair.partition("=")
            os.environ[name] = value
    os.environ.update(question["environment"])


def answer(**found: Any) -> "NoReturn":
    """Print the answer and exit at once, without the application's threads and exit handlers."""
    print("\n" + json.dumps({"answer": found}), flush=True)
    os._exit(0)


def trace() -> str:
    kind, error, frames = sys.exc_info()
    if isinstance(error, OutOfTime):
        return hung(traceback.extract_tb(frames), error.args[0])
    return "".join(traceback.format_exception(kind, error, frames, limit=-4)).strip()


class OutOfTime(BaseException):
    """The time limit (seconds) has passed. Not an `Exception`, so that no code catches it."""


def hung(frames: Iterable[Any], limit_s: float) -> str:
    """Return where the application's own code was at the time limit, as the end of a traceback."""
    every = [frame for frame in frames if not frame.filename.startswith("<")]
    own = [frame for frame in every if not said.is_foreign(os.path.realpath(frame.filename))]
    shown = (own or every)[-4:]
    last = shown[-1]
    at = "still at {}, line {}, after {:.0f} s".format(last.filename, last.lineno, limit_s)
    return "".join(traceback.format_list(shown)) + at


@contextlib.contextmanager
def at_most(limit_s: float) -> Iterator[None]:
    """Raise OutOfTime if the block takes longer. If its code never returns to Python, exit.

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


try:
    os.chdir(question["directory"])
except OSError as error:
    answer(
        failed="cannot enter celery_directory {}: {}".format(question["directory"], error.strerror)
    )
set_environment()
# Python does so at its start, but had none of these variables then.
sys.path[:0] = [
    question["directory"],
    *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
]

try:
    from celery import Celery
    from celery.app.utils import find_app
except Exception as failure:
    version = "Python {}.{}".format(*sys.version_info)
    why = "celery_python is {}, and this {} cannot import Celery ({})".format(
        question["python"], version, failure
    )
    answer(failed=why + ": name the Python of the application's environment\n" + trace())


def find_application() -> Any:
    """Return the application that `celery_app` names. Raises the errors of its own code.

    **Source:** celery 5.7.0 `app/utils.py: find_app`: an AttributeError of the module becomes an
    ImportError, and an ImportError of MODULE.celery an AttributeError.
    """
    name = question["app"]
    module, colon, attribute = name.partition(":")
    wrong = "celery_app is {}, ".format(name)
    advice = ": correct celery_app (MODULE:ATTRIBUTE)"
    try:
        named = find_app(name)
    except (AttributeError, ImportError):
        loaded = imported(module)
        if not loaded:
            where = "{} does not find module {} in {}".format(
                question["python"], module, question["directory"]
            )
            answer(failed=wrong + "and " + where + ": correct celery_app or celery_directory")
        if colon and hasattr(loaded, attribute):
            raise
        if not colon:
            imported(module + ".celery")
        where = getattr(loaded, "__file__", None) or module
        lacks = "and {} has no {}".format(where, attribute or "Celery application")
        answer(failed=wrong + lacks + advice)
    if not isinstance(named, Celery):
        other = "which has type {}, not a Celery application".format(type(named).__name__)
        answer(failed=wrong + other + advice)
    return named


def imported(module: str) -> Any:
    """Import a module; return None if it does not exist."""
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
    """Return which messages a worker of the application can read; None for unknown parts.

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
    """Return the broker of a worker that starts now, and why it would get no messages ("": it
    would).

    Empty if not known. It opens one connection, and leaves nothing in the broker.
    """
    at = ""
    urls = ""
    connected = False
    run_id = ""
    try:
        with at_most(limit_s):
            named = app.conf.broker_read_url or app.conf.broker_url
            if isinstance(named, (list, tuple)):
                named = ";".join(named)
            urls = str(named)
            short = {"socket_connect_timeout": 3.0, "socket_timeout": 5.0}
            connection = app.connection_for_read(transport_options=short)
            if not misread(urls):
                at = re.sub("//[^/]*@", "//", connection.as_uri())
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
        if misread(urls) or isinstance(error, (ValueError, KeyError)):
            return {"at": at, "error": "the URL cannot be read"}
        return {"at": at, "error": str(error)}


def misread(urls: str) -> bool:
    """Whether a URL has an unquoted password, a part of which an error text could show."""
    try:
        parts = [urlsplit(url) for url in urls.split(";")]
    except ValueError:
        return True
    return any("@" in part.path + part.query + part.fragment for part in parts)


def connect(connection: Any) -> None:
    """Try each server of the URL once, until one answers."""
    failed = []

    def failing(error: Exception, _: Any) -> None:
        failed.append(error)
        if len(failed) >= len(connection.alt or "1"):
            raise error

    connection.ensure_connection(errback=failing)


def refusals(channel: Any, queues: List[str]) -> Iterator[str]:
    """Yield the commands of a worker that the user of its connection may not run.

    Redis looks up rights when a command is queued, and the transaction is discarded; a subscription
    ends with its connection. **Source:** kombu 5.7.0 `transport/redis.py: Channel._brpop_start,
    _subscribe, _queue_bind; QoS.append`.
    """
    prefix = getattr(channel, "global_keyprefix", "")
    exchange = app.control.mailbox.exchange.name
    keys = []
    for step in channel.priority_steps:
        keys += [prefix + channel._q_for_pri(queue, step) for queue in queues]
    commands = [
        ["BRPOP", *keys, "1"],
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
    """Whether an error is permanent: not a lack of memory or disk space."""
    permanent = "permission|NOPERM|unknown command|read.only"
    return re.search(permanent, str(error), re.IGNORECASE) is not None


def route(
    name: str, args: List[Any], kwargs: Dict[str, Any], options: Dict[str, Any]
) -> Dict[str, Any]:
    task = app.tasks.get(name)
    sent = said.routed(app, name, args, kwargs, options)
    found = {
        "task": name,
        "args": said.plain(args),
        "kwargs": said.plain(kwargs),
        "queue": said.queue_of(app, sent),
        "priority": sent.get("priority"),
        "broker": app.connection_for_write().as_uri(),
        "keeps_result": not app.conf.task_ignore_result,
        "max_retries": None,
        "results": results.results_of(app),
        "import_error": next(iter(import_errors([name]).values()), ""),
    }
    if task:
        found["keeps_result"] = not task.ignore_result
        found["max_retries"] = task.max_retries
    found.update(fit(task, args, kwargs))
    return found


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
    """Return the call that was asked for, or that of a schedule's entry, with the given options."""
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


print('\n{"began": true}', flush=True)  # from here on, failures are the application's
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
    found = {"registered": sorted(registered)}  # type: Dict[str, Any]
    found["remote"] = bool(app.conf.worker_enable_remote_control)
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
