"""What the application says of itself on each host, held against the inventory and against the
other hosts.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from runbooks.core.application import Application, Place, Route
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, HostState, Severity, Snapshot
from runbooks.core.redaction import is_secret_name
from runbooks.diagnosis.code import SET_VALUES, environment_of
from runbooks.hosts.describe_application import places

Held = tuple[FleetHost, HostState, Application]
"""A host that answered, and what the application says there."""


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """One finding for each fault, however many hosts it has; what mends it are changes of those
    that are `known`.
    """
    yield from _other_broker(fleet, snapshot, known)
    yield from _other_options(fleet, snapshot)
    yield from _other_results(fleet, snapshot)
    yield from _hosts_differ(fleet, snapshot)


def held(fleet: Fleet, snapshot: Snapshot) -> list[Held]:
    """The hosts on which the application says something."""
    states = snapshot.reachable()
    asked = [(host, states[host.name]) for host in fleet.hosts if host.name in states]
    return [(host, state, state.application) for host, state in asked if state.application]


def places_of(url: str) -> tuple[Place, ...]:
    """Where a URL of the inventory leads."""
    return msgspec.convert(places(url), tuple[Place, ...])


# --- the broker


def _other_broker(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """Where workers use, or would use once they are started, another broker than the inventory
    names.

    Then restarting them mends nothing: silent ones would be as silent, and those that answer would
    be lost.
    """
    assert snapshot.broker is not None
    ours = places_of(fleet.app.broker_url.get_secret_value())
    faults: dict[tuple[bool, tuple[Place, ...]], list[tuple[FleetHost, HostState]]] = {}
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if not state or not host.services:
            continue
        answers = any(
            host.node(worker) in snapshot.broker.nodes for worker in host.settings.workers
        )
        silent = not answers and any(service.pid for service in state.services.values())
        theirs = (
            state.application.broker
            if state.application
            else _urls_of(host, state)
            if silent
            else ()
        )
        same = answers or _is_same_server(snapshot, state)
        if _leads_elsewhere(theirs, ours, same_server=same):
            faults.setdefault((silent, theirs), []).append((host, state))
    for (silent, theirs), hosts in faults.items():
        names = ", ".join(host.name for host, _ in hosts)
        mended = all(_is_mended(state, ours) for _, state in hosts)
        fix = (
            tuple(change for host, _ in hosts for change in environment_of(host, known))
            if mended
            else ()
        )
        blocks = () if mended else tuple(Block(host.name) for host, _ in hosts)
        evidence = [line for host, state in hosts for line in _where_from(host, state, theirs)]
        sides = (
            *dict.fromkeys(evidence),
            f"{fleet.worded('celery_broker_url of the inventory', 'looked at')}: {told(ours)}",
        )
        advice = fleet.worded(
            "correct one of the two", "leave --broker out, or correct the application's"
        )
        advice = "with the inventory's celery_env it uses that" if mended else advice
        which = f"the broker that {fleet.worded('the inventory names', 'was looked at')}"
        if silent:
            asked = "none could be asked" if snapshot.broker.unasked else "none answers"
            yield Finding(
                "broker.not_the_workers",
                names,
                f"the workers of {names} run and {asked} at {told(ours)}, {which}; their "
                f"application uses {told(theirs)}: {advice}",
                sides,
                remedy=SET_VALUES if mended else None,
                fix=fix,
                blocks=blocks,
            )
        else:
            yield Finding(
                "broker.would_be_another",
                names,
                f"a worker that is started on {names} would use {told(theirs)} and not"
                f" {told(ours)}, {which}: {advice}",
                sides,
                remedy=SET_VALUES if mended else None,
                fix=fix,
                blocks=blocks,
            )


def _leads_elsewhere(theirs: Sequence[Place], ours: Sequence[Place], *, same_server: bool) -> bool:
    """A server may have several names and addresses, so these prove something only where nobody
    answers there.
    """
    if not theirs:
        return False
    if not any(place.is_redis for place in theirs):
        return {(place.scheme, place.db) for place in theirs} != {
            (place.scheme, place.db) for place in ours
        }
    if {place.usual.db for place in theirs}.isdisjoint(place.usual.db for place in ours):
        return True
    sockets = {place.is_socket for place in (*theirs, *ours)}
    if same_server or len(sockets) > 1:
        return False
    return {place.usual.server for place in theirs}.isdisjoint(place.usual.server for place in ours)


def _is_same_server(snapshot: Snapshot, state: HostState) -> bool:
    """Whether the server that a worker's connection from the host came to is the one that was
    looked at.
    """
    assert snapshot.broker is not None
    tried = state.imports_now.broker_run_id if state.imports_now else ""
    return bool(tried) and tried == snapshot.broker.run_id


def _urls_of(host: FleetHost, state: HostState) -> tuple[Place, ...]:
    """The Redis URLs in the environment file of an application that could not be loaded.

    Where some of them are called the broker's, the others (a cache, say) prove nothing.
    """
    variables = host.environment_in(state.files[host.settings.env_file]).values
    urls = {name: url for name, url in variables.items() if re.match(r"rediss?://", url)}
    brokers = {name: url for name, url in urls.items() if "BROKER" in name.upper()}
    return tuple(place for url in (brokers or urls).values() for place in places_of(url))


def _is_mended(state: HostState, ours: Sequence[Place]) -> bool:
    """Whether the application was loaded with the inventory's values too, and uses the inventory's
    broker then.
    """
    wanted = state.imports_wanted
    if wanted is None or wanted is state.imports_now or wanted.application is None:
        return False
    return bool(wanted.application.broker) and not _leads_elsewhere(
        wanted.application.broker, ours, same_server=False
    )


def told(where: Iterable[Place]) -> str:
    return ", ".join(str(place.usual) for place in where)


_OF_A_BROKER = re.compile(r"redis|valkey|broker|celery", re.IGNORECASE)
_CELERYS_OWN = re.compile(r"/site-packages/(?:celery|kombu)/")
"""Celery looks for many variables, whether anybody sets them or not."""


def _where_from(host: FleetHost, state: HostState, theirs: Sequence[Place]) -> Iterator[str]:
    """Which variables the application has its broker from, as far as their names and values tell."""
    file, values = (
        host.settings.env_file,
        host.environment_in(state.files[host.settings.env_file]).values,
    )
    read = {one.name: one.place for one in state.application.variables} if state.application else {}
    parts = {
        text for place in theirs for text in (place.host, str(place.usual.port), place.usual.db)
    }
    found = []
    for name in read or values:
        value, at = values.get(name), f", read at {read[name]}" if name in read else ""
        if value and "://" in value and set(places_of(value)) & set(theirs):
            found.append(f"{file}: {name} is at {told(places_of(value))}{at}")
        elif _OF_A_BROKER.search(name) and not is_secret_name(name) and "://" not in (value or ""):
            if value is None and name in read and not _CELERYS_OWN.search(at):
                found.append(f"{file}: {name} is not set{at}")
            elif value in parts:
                found.append(f"{file}: {name} is {value!r}{at}")
    if state.application and not found:
        yield (
            f"no variable of {file} that it reads names that: look for it in the application's"
            " settings"
        )
    yield from found


# --- transport options


def _other_options(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Transport options that the application has otherwise, by its nodes or, with the inventory's
    environment, loaded.

    With another prefix or separator no question arrives at the workers, so that restarting them
    mends nothing. **Source:** kombu 5.7.0 `transport/redis.py: Channel.from_transport_options`.
    """
    faults: dict[tuple[str, ...], list[str]] = {}
    unheard = set[str]()
    for host in fleet.hosts:
        if differing := _differing_options(fleet, host, snapshot):
            other = fleet.worded("the inventory", "what was found first")
            each = (f"{name}: the application has {own!r}, {other} {ours!r}"
                    for name, (own, ours) in differing.items())  # fmt: skip
            faults.setdefault((", ".join(differing), *each), []).append(host.name)
            unheard |= {host.name} if _UNHEARD & differing.keys() else set()
    for (names, *lines), hosts in faults.items():
        mute = not unheard.isdisjoint(hosts)
        yield Finding(
            "broker.options_differ",
            ", ".join(hosts),
            f"the application on {', '.join(hosts)} has another {names} than "
            + fleet.worded("the inventory", "what was found first")
            + ", by which all is judged here: "
            + fleet.worded(
                "correct celery_broker_options, or the application's", "give all that runs the same"
            )
            + " broker_transport_options",
            tuple(lines),
            severity=Severity.ERROR if mute else Severity.WARNING,
            blocks=tuple(Block(host) for host in hosts) if mute else (),
        )


_UNHEARD = frozenset({"global_keyprefix", "sep"})
"""The options without which a worker does not hear what it is asked."""


def _differing_options(
    fleet: Fleet, host: FleetHost, snapshot: Snapshot
) -> dict[str, tuple[Any, Any]]:
    assert snapshot.broker is not None
    here, state = fleet.app.broker_options, snapshot.reachable().get(host.name)
    heard = {"global_keyprefix": here.global_keyprefix, "sep": here.sep}  # of those who answer
    nodes = (snapshot.broker.nodes.get(host.node(worker)) for worker in host.settings.workers)
    options = [{**heard, **node.options} for node in nodes if node and node.options is not None]
    if state and (loaded := _options_of(state)) is not None:
        options.append(dict(loaded))
    return next(filter(None, map(here.differing, options)), {})


def _options_of(state: HostState) -> Mapping[str, Any] | None:
    """Those of the application with the inventory's environment, where that was tried."""
    if state.imports_wanted:
        return state.imports_wanted.options
    return state.application.transport_options if state.application else None


# --- results


def _other_results(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Results that the application keeps elsewhere than this tool looks for them.

    A server may have several names, so these prove something only where both sides name the broker
    alike.
    """
    if not fleet.app.result_backend:
        return
    ours = places_of(fleet.app.result_backend.get_secret_value())
    broker = places_of(fleet.app.broker_url.get_secret_value())
    faults: dict[tuple[Place, ...], list[str]] = {}
    for host, _, said in held(fleet, snapshot):
        alike = [place.usual for place in said.broker] == [place.usual for place in broker]
        if _leads_elsewhere(said.backend, ours, same_server=not alike):
            faults.setdefault(said.backend, []).append(host.name)
    for theirs, hosts in faults.items():
        kept = "keeps none" if told(theirs) == "disabled" else f"keeps them at {told(theirs)}"
        yield Finding(
            "results.elsewhere",
            ", ".join(hosts),
            f"results are looked for at {told(ours)}, but the application on"
            f" {', '.join(hosts)} {kept}: "
            + fleet.worded(
                "correct celery_result_backend, or the application's", "give all hosts the same"
            )
            + " result_backend",
            (
                (
                    f"{fleet.worded('celery_result_backend of the inventory', 'found first')}:"
                    f" {told(ours)}"
                ),
                f"result_backend, loaded: {told(theirs)}",
            ),
            severity=Severity.WARNING,
        )


# --- between hosts


def _hosts_differ(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Hosts that do not say the same: what becomes of a message depends on who sends it, and on who
    takes it.
    """
    said = {host.name: one for host, _, one in held(fleet, snapshot)}
    has = {
        host: dict.fromkeys((task.name for task in one.own_tasks), "registered")
        for host, one in said.items()
    }
    yield from _differ("tasks", "tasks", has)
    everywhere = set[str].intersection(*map(set, has.values())) if has else set[str]()
    routes = {
        host: {task.name: _shown(task.route) for task in one.own_tasks if task.name in everywhere}
        for host, one in said.items()
    }
    yield from _differ("routes", "routes", routes)
    yield from _differ(
        "versions",
        "versions of its libraries",
        {host: _versions(one) for host, one in said.items()},
    )
    results = {host: {"result_backend": told(one.backend)} for host, one in said.items()}
    yield from _differ("results", "result backends", results)


def _differ(which: str, what: str, said: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """One finding of all that hosts say otherwise: host → what → which."""
    names = sorted({name for facts in said.values() for name in facts})
    lines = []
    for name in names:
        by_value: dict[str, list[str]] = {}
        for host, facts in said.items():
            by_value.setdefault(facts.get(name, "not there"), []).append(host)
        if len(by_value) > 1:
            lines.append(
                f"{name}: "
                + "; ".join(f"{value} on {', '.join(on)}" for value, on in by_value.items())
            )
    if lines:
        yield Finding(
            f"application.{which}_differ",
            ", ".join(said),
            f"the hosts of the application have different {what}: deploy the same code and settings"
            " to all of them",
            (*lines[:_MOST], *([f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else [])),
            severity=Severity.WARNING,
        )


_MOST = 10


def _shown(route: Route) -> str:
    if route.looks_at_arguments:
        return "by its arguments"
    to = route.queue or f"exchange {route.exchange} with {route.routing_key}"
    return (
        route.error
        or f"to {to}{f', priority {route.priority}' if route.priority is not None else ''}"
    )


def _versions(said: Application) -> dict[str, str]:
    """Of Python only as far as it makes a difference to code."""
    return {
        name: ".".join(one.split(".")[:2]) if name == "python" else one
        for name, one in said.versions.items()
    }
