"""How a task is watched: by Redis, by the application where it keeps results elsewhere, or by its
workers' events.

Which it is has to be known before the task is sent: a result that nobody can read is never waited
for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from msgspec import Struct

from runbooks.broker.nodes.task_watch import Watch
from runbooks.core.errors import BrokerUnreachable, HostUnreachable, RunbookError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import AppResults, TaskState
from runbooks.engine.context import Session
from runbooks.engine.host_look import HOST_TIMEOUT_S
from runbooks.hosts.script import run_fragments
from runbooks.task_runs.application import ask_result, ask_results, parse_result, parse_results
from runbooks.task_runs.send import Way, environment_of

LOOK_S = 5.0
"""How long the application waits at the most for something new to tell: each look costs it a start."""

_ONLY_THERE = {
    "none": "the application keeps no results",
    "sender": "gives a result only to the process that sent the task",
    "worker": "keeps results in the memory of the process that makes them",
}


class WatchedBy(Struct, frozen=True):
    """How a task is watched: through the application on a host, by the events of nodes, or by Redis
    itself.

    `said` is what an operator has to know of it, "" for nothing.
    """

    host: FleetHost | None = None
    nodes: Sequence[str] = ()
    said: str = ""


def watched_by(fleet: Fleet, way: Way) -> WatchedBy:
    """Raises RunbookError where the application cannot keep results as it is set to."""
    results, named = way.found.results, fleet.app.result_backend
    _require_loaded(results, way.found.host)
    if not way.found.keeps_result:
        return _by_events(way, "the task keeps no result")
    if named is None:
        whose = fleet.worded(
            "the inventory names no celery_result_backend",
            "the application names no result_backend",
        )
        return _by_events(way, whose)
    if why := _ONLY_THERE.get(results.kind):
        return _by_events(way, why if results.kind == "none" else f"{_told(results)} {why}")
    if results.kind == "disk":
        return _on_disk(fleet, way)
    url = named.get_secret_value()
    if results.kind == "redis" and _same(url, results.at):
        return WatchedBy()
    return WatchedBy(
        way.host,
        said=(
            f"results are read through the application on {way.host.name}: {_differs(url, results)}"
        ),
    )


def past_watched_by(
    session: Session, host: FleetHost | None, environment: Mapping[str, str]
) -> list[WatchedBy]:
    """Where the result of a task may be read that was sent before; `host` tells, where the
    inventory alone does not.

    None where nobody but a process that is gone could. Raises RunbookError where the application
    cannot tell.
    """
    fleet = session.fleet
    if fleet.app.result_backend is None:
        return []
    if named_redis(fleet):
        return [WatchedBy()]
    if host is None:
        return []
    question = {"results": ask_results(host, fleet.app.app, environment)}
    answers = run_fragments(
        session.transports[host.name], question, timeout_s=HOST_TIMEOUT_S, private=question
    )
    results = parse_results(host, answers["results"])
    _require_loaded(results, host.name)
    if results.kind in _ONLY_THERE:
        return []
    return [WatchedBy(one) for one in fleet.hosts] if results.kind == "disk" else [WatchedBy(host)]


def named_redis(fleet: Fleet) -> bool:
    """Whether the inventory names a Redis for results, which is read without the application."""
    named = fleet.app.result_backend
    return named is not None and _is_redis(named.get_secret_value())


def no_redis(fleet: Fleet) -> str:
    """Why results are not read where none is named."""
    if fleet.found:
        return "the result backend is not known without an inventory"
    return "the inventory names no Redis as celery_result_backend"


def _require_loaded(results: AppResults, host: str) -> None:
    if results.error:
        raise RunbookError(
            f"the result backend of the application on {host} cannot be loaded, so it can neither"
            f" send a task nor keep a result: {_told(results)}: {results.error}",
            "install what that needs into celery_python, or set another result_backend there",
        )


def _differs(url: str, results: AppResults) -> str:
    ours, own = url.partition(":")[0], results.setting.partition(":")[0]
    if results.kind == "redis" and not results.at:
        return "it keeps them under a prefix of its own"
    if ours == own and (results.kind != "redis" or _place(url) == _place(results.at)):
        return f"it keeps them in {_told(results)}"
    return f"it keeps them in {_told(results)}, and celery_result_backend names {_shown(url)}"


def _shown(url: str) -> str:
    """Without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _told(results: AppResults) -> str:
    return f"{results.setting} ({results.set_in})" if results.set_in else results.setting


def _on_disk(fleet: Fleet, way: Way) -> WatchedBy:
    """Where one host runs whatever the queue holds, its application finds the result."""
    hosts = [
        host
        for host in fleet.hosts
        if {host.node(worker) for worker in host.settings.workers} & {*way.consumers}
    ]
    known = {host.node(worker) for host in hosts for worker in host.settings.workers}
    told = _told(way.found.results)
    if len(hosts) != 1 or not known >= {*way.consumers}:
        return _by_events(
            way,
            f"{told} is on the disk of each host, and any of {', '.join(way.consumers)} may run it",
        )
    return WatchedBy(
        hosts[0],
        said=(
            f"results are read through the application on {hosts[0].name}: it keeps them in {told}"
        ),
    )


def _by_events(way: Way, why: str) -> WatchedBy:
    if not way.consumers:
        raise RunbookError(
            f"{why}, and no node that consumes {way.found.queue} answers to tell of it", ""
        )
    return WatchedBy(
        nodes=way.consumers, said=f"{why}: its workers' events are followed; they tell no progress"
    )


def _same(url: str, at: str) -> bool:
    """Whether a URL of the inventory's, which may name its host otherwise, leads where the
    application's does.
    """
    return _is_redis(url) and bool(at) and _place(url) == _place(at)


def _is_redis(url: str) -> bool:
    """Whether it can be read without the application: a Sentinel's needs settings of its own."""
    return url.partition("://")[0] in ("redis", "rediss", "redis+socket", "socket")


def _place(url: str) -> tuple[str, str]:
    """Port and db, or path and db of a socket. **Source:** kombu 5.7.0 `transport/redis.py:
    _connparams`.
    """
    parts = urlsplit(url)
    if "socket" in parts.scheme:
        return parts.path, parts.query
    return str(parts.port or 6379), parts.path.strip("/") or "0"


class AppWatch:
    """Asks the application on a host, which reads its results as it keeps them."""

    def __init__(self, session: Session, host: FleetHost, task_id: str) -> None:
        self._session, self._host, self._task_id = session, host, task_id
        self._environment: Mapping[str, str] | None = None
        self._digest = ""

    def look(self) -> TaskState:
        """See Watch; it waits until there is something new, LOOK_S at the most."""
        host = self._host
        try:
            if self._environment is None:
                self._environment = environment_of(self._session, host)
            app = self._session.fleet.app.app
            question = ask_result(host, app, self._environment, self._task_id, self._digest, LOOK_S)
            transport = self._session.transports[host.name]
            answers = run_fragments(
                transport, {"result": question}, timeout_s=HOST_TIMEOUT_S, private=["result"]
            )
            seen, self._digest = parse_result(host, answers["result"])
        except HostUnreachable as error:
            problem = (
                f"{host.name}, through whose application results are read, does not answer:"
                f" {error.problem}"
            )
            raise BrokerUnreachable(problem, "is it up?") from error
        return seen


def look_once(session: Session, by: WatchedBy, task_id: str) -> TaskState:
    """How a task stands now. Raises BrokerUnreachable where that cannot be read."""
    if by.host:
        return AppWatch(session, by.host, task_id).look()
    with session.broker.watch(task_id) as watch:
        return watch.look()


@contextmanager
def watching(session: Session, by: WatchedBy, task_id: str) -> Iterator[Watch]:
    """Watch a task as `by` says, from before it is sent. Raises RunbookError where results cannot
    be read.
    """
    if by.host is None:
        with session.broker.watch(task_id, by.nodes) as watch:
            yield watch
        return
    through = AppWatch(session, by.host, task_id)
    try:
        through.look()
    except BrokerUnreachable as error:
        raise RunbookError(error.problem, error.advice) from None
    yield through
