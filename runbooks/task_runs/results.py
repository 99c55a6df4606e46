"""Chooses how a task is watched: by Redis, by the application, or by its workers' events.

The choice is made before the task is sent, so no one waits for a result that cannot be read.
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
"""How long the application waits for news at most: each look starts it once."""

_ONLY_THERE = {
    "none": "the application keeps no results",
    "sender": "gives a result only to the process that sent the task",
    "worker": "keeps results in the memory of the process that creates them",
}
"""Kinds of result backends that no other process can read → why."""


class WatchedBy(Struct, frozen=True):
    """Says how a task is watched: by a host's application, by events of nodes, or by Redis."""

    host: FleetHost | None = None
    nodes: Sequence[str] = ()
    said: str = ""
    """What an operator has to know about this; "" for nothing."""


def watched_by(fleet: Fleet, way: Way) -> WatchedBy:
    """Choose before sending. Raises RunbookError if the result backend cannot be loaded."""
    results = way.found.results
    named = fleet.app.result_backend
    _require_loaded(results, way.found.host)
    if not way.found.keeps_result:
        return _by_events(way, "the task keeps no result")
    if named is None:
        whose = fleet.worded(
            "the inventory names no celery_result_backend",
            "the application names no result_backend",
        )
        return _by_events(way, whose)
    if results.kind in _ONLY_THERE:
        why = _ONLY_THERE[results.kind]
        if results.kind != "none":
            why = f"{_setting(results)} {why}"
        return _by_events(way, why)
    if results.kind == "disk":
        return _on_disk(fleet, way)
    url = named.get_secret_value()
    if results.kind == "redis" and _same(url, results.at):
        return WatchedBy()
    return _through(way.host, _differs(url, results))


def _through(host: FleetHost, why: str) -> WatchedBy:
    said = f"results are read through the application on {host.name}: {why}"
    return WatchedBy(host, said=said)


def past_watched_by(
    session: Session,
    host: FleetHost | None,
    environment: Mapping[str, str],
) -> list[WatchedBy]:
    """Return where the result of a task that was sent earlier may be read.

    `host` has the application; it is asked if the inventory does not say. Empty if only a process
    that has ended could read it. Raises RunbookError if the application cannot answer.
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
        session.transports[host.name],
        question,
        timeout_s=HOST_TIMEOUT_S,
        private=question,
    )
    results = parse_results(host, answers["results"])
    _require_loaded(results, host.name)
    if results.kind in _ONLY_THERE:
        return []
    if results.kind == "disk":
        return [WatchedBy(one) for one in fleet.hosts]
    return [WatchedBy(host)]


def named_redis(fleet: Fleet) -> bool:
    """Return whether the inventory names a Redis for results, which needs no application."""
    named = fleet.app.result_backend
    return named is not None and _is_redis(named.get_secret_value())


def no_redis(fleet: Fleet) -> str:
    """Return why results are not read if none is named."""
    if fleet.found:
        return "the result backend is unknown without an inventory"
    return "the inventory names no Redis as celery_result_backend"


def _require_loaded(results: AppResults, host: str) -> None:
    if results.error:
        raise RunbookError(
            f"the application on {host} cannot load its result backend, so it can neither send a"
            f" task nor keep a result: {_setting(results)}: {results.error}",
            "install what it needs into celery_python, or set another result_backend there",
        )


def _differs(url: str, results: AppResults) -> str:
    if results.kind == "redis" and not results.at:
        return "it keeps them under its own prefix"
    keeps = f"it keeps them in {_setting(results)}"
    is_same_kind = url.partition(":")[0] == results.setting.partition(":")[0]
    if is_same_kind and (results.kind != "redis" or _place(url) == _place(results.at)):
        return keeps
    return f"{keeps}, and celery_result_backend names {_shown(url)}"


def _shown(url: str) -> str:
    """The URL without user and password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _setting(results: AppResults) -> str:
    if results.set_in:
        return f"{results.setting} ({results.set_in})"
    return results.setting


def _on_disk(fleet: Fleet, way: Way) -> WatchedBy:
    """If all consumers of the queue are on one host, its application finds the result."""
    consumers = set(way.consumers)
    hosts: list[FleetHost] = []
    known: set[str] = set()
    for host in fleet.hosts:
        nodes = {host.node(worker) for worker in host.settings.workers}
        if nodes & consumers:
            hosts.append(host)
            known.update(nodes)
    setting = _setting(way.found.results)
    if len(hosts) == 1 and known >= consumers:
        return _through(hosts[0], f"it keeps them in {setting}")
    any_of = ", ".join(way.consumers)
    return _by_events(way, f"{setting} is on the disk of each host, and any of {any_of} may run it")


def _by_events(way: Way, why: str) -> WatchedBy:
    if not way.consumers:
        problem = f"{why}, and no node that consumes {way.found.queue} answers to report it"
        raise RunbookError(problem, "")
    said = f"{why}: following its workers' events, which show no progress"
    return WatchedBy(nodes=way.consumers, said=said)


def _same(url: str, at: str) -> bool:
    """Whether the inventory's URL, perhaps with another host name, is the application's backend."""
    return _is_redis(url) and bool(at) and _place(url) == _place(at)


def _is_redis(url: str) -> bool:
    """Whether it can be read without the application: a Sentinel's needs its settings."""
    return url.partition("://")[0] in ("redis", "rediss", "redis+socket", "socket")


def _place(url: str) -> tuple[str, str]:
    """Port and db, or path and db of a socket.

    **Source:** kombu 5.7.0 `transport/redis.py: _connparams`.
    """
    parts = urlsplit(url)
    if "socket" in parts.scheme:
        return parts.path, parts.query
    return str(parts.port or 6379), parts.path.strip("/") or "0"


class AppWatch:
    """Asks the application on a host, which reads its results in its own way."""

    def __init__(self, session: Session, host: FleetHost, task_id: str) -> None:
        self._session = session
        self._host = host
        self._task_id = task_id
        self._environment: Mapping[str, str] | None = None
        self._digest = ""

    def look(self) -> TaskState:
        """See Watch; it waits for news, LOOK_S at most."""
        host = self._host
        try:
            if self._environment is None:
                self._environment = environment_of(self._session, host)
            app = self._session.fleet.app.app
            question = ask_result(host, app, self._environment, self._task_id, self._digest, LOOK_S)
            answers = run_fragments(
                self._session.transports[host.name],
                {"result": question},
                timeout_s=HOST_TIMEOUT_S,
                private=["result"],
            )
            seen, self._digest = parse_result(host, answers["result"])
        except HostUnreachable as error:
            raise BrokerUnreachable(
                f"{host.name}, whose application reads the results, does not answer:"
                f" {error.problem}",
                "is it up?",
            ) from error
        return seen


def look_once(session: Session, by: WatchedBy, task_id: str) -> TaskState:
    """Return a task's state now. Raises BrokerUnreachable if it cannot be read."""
    if by.host:
        return AppWatch(session, by.host, task_id).look()
    with session.broker.watch(task_id) as watch:
        return watch.look()


@contextmanager
def watching(session: Session, by: WatchedBy, task_id: str) -> Iterator[Watch]:
    """Watch a task as `by` says, from before it is sent.

    Raises RunbookError if results cannot be read.
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
