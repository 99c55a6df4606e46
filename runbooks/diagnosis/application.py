"""Compare what the application says on each host with the inventory and with the other hosts."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from runbooks.core.application import Application, Place, Route
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, HostState, Severity, Snapshot
from runbooks.core.redaction import is_secret_name
from runbooks.diagnosis.code import blocking, environment_of, with_values
from runbooks.hosts.describe_application import places

Held = tuple[FleetHost, HostState, Application]
"""A host that answered, and what the application says there."""

_OF_A_BROKER = re.compile(r"redis|valkey|broker|celery", re.IGNORECASE)
_CELERYS_OWN = re.compile(r"/site-packages/(?:celery|kombu)/")
"""Celery looks for many variables, whether they are set or not."""

_UNHEARD = frozenset({"global_keyprefix", "sep"})
"""The options without which a worker does not receive remote control."""

_MOST = 10


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """Yield one finding for each fault, for all hosts that have it.

    The fixes are changes of the findings that are `known`.
    """
    yield from _other_broker(fleet, snapshot, known)
    yield from _other_options(fleet, snapshot)
    yield from _other_results(fleet, snapshot)
    yield from _hosts_differ(fleet, snapshot)


def held(fleet: Fleet, snapshot: Snapshot) -> list[Held]:
    """Return the hosts on which the application was loaded."""
    states = snapshot.reachable()
    asked = [(host, states[host.name]) for host in fleet.hosts if host.name in states]
    return [(host, state, state.application) for host, state in asked if state.application]


def places_of(url: str) -> tuple[Place, ...]:
    """Return where a URL of the inventory leads."""
    return msgspec.convert(places(url), tuple[Place, ...])


def _shown_places(where: Iterable[Place]) -> str:
    return ", ".join(str(place.usual) for place in where)


# --- the broker


class _Elsewhere(Struct, frozen=True):
    """Hosts whose workers use, or would use once they are started, the same other broker."""

    silent: bool
    """Whether workers run there, and none answers at the inventory's broker."""
    theirs: tuple[Place, ...]
    hosts: list[tuple[FleetHost, HostState]]


def _other_broker(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the hosts whose workers use, or would use, another broker than the inventory names.

    A restart does not fix that: silent workers would stay silent, and those that answer would be
    lost.
    """
    assert snapshot.broker is not None
    ours = places_of(fleet.app.broker_url.get_secret_value())
    found: dict[tuple[bool, tuple[Place, ...]], list[tuple[FleetHost, HostState]]] = {}
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if not state or not host.services:
            continue
        nodes = [host.node(worker) for worker in host.settings.workers]
        answers = any(node in snapshot.broker.nodes for node in nodes)
        silent = not answers and any(service.pid for service in state.services.values())
        theirs: tuple[Place, ...] = ()
        if state.application:
            theirs = state.application.broker
        elif silent:
            theirs = _urls_of(host, state)
        same = answers or _is_same_server(snapshot, state)
        if _leads_elsewhere(theirs, ours, same_server=same):
            found.setdefault((silent, theirs), []).append((host, state))
    for (silent, theirs), hosts in found.items():
        yield _at_another(fleet, snapshot, _Elsewhere(silent, theirs, hosts), ours, known)


def _at_another(
    fleet: Fleet,
    snapshot: Snapshot,
    elsewhere: _Elsewhere,
    ours: Sequence[Place],
    known: Sequence[Finding],
) -> Finding:
    assert snapshot.broker is not None
    names = ", ".join(host.name for host, _ in elsewhere.hosts)
    theirs = _shown_places(elsewhere.theirs)
    here = _shown_places(ours)
    which = f"the broker that {fleet.worded('the inventory names', 'was checked')}"
    if elsewhere.silent:
        how = "could not be asked" if snapshot.broker.unasked else "do not answer"
        summary = (
            f"the workers of {names} run and {how} at {here}, {which}; their application uses"
            f" {theirs}"
        )
    else:
        summary = f"a worker started on {names} would use {theirs} and not {here}, {which}"
    advice = fleet.worded("correct one of the two", "omit --broker, or correct the application's")
    fixed = all(_is_fixed(state, ours) for _, state in elsewhere.hosts)
    if fixed:
        advice = "with the inventory's celery_env it uses that one"
    evidence = list[str]()
    for host, state in elsewhere.hosts:
        evidence += _where_from(host, state, elsewhere.theirs)
    evidence.append(f"{fleet.worded('celery_broker_url of the inventory', 'checked')}: {here}")
    finding = Finding(
        "broker.not_the_workers" if elsewhere.silent else "broker.would_be_another",
        names,
        f"{summary}: {advice}",
        tuple(dict.fromkeys(evidence)),
    )
    hosts = [host for host, _ in elsewhere.hosts]
    if not fixed:
        return blocking(finding, *hosts)
    changes = [change for host in hosts for change in environment_of(host, known)]
    return with_values(finding, tuple(changes))


def _leads_elsewhere(theirs: Sequence[Place], ours: Sequence[Place], *, same_server: bool) -> bool:
    """Return whether these places are certainly others.

    A server may have several names and addresses, so these prove something only if it is not known
    to be the `same_server`.
    """
    if not theirs:
        return False
    if not any(place.is_redis for place in theirs):
        kinds = {(place.scheme, place.db) for place in theirs}
        return kinds != {(place.scheme, place.db) for place in ours}
    if {place.usual.db for place in theirs}.isdisjoint(place.usual.db for place in ours):
        return True
    sockets = {place.is_socket for place in (*theirs, *ours)}
    if same_server or len(sockets) > 1:
        return False
    return {place.usual.server for place in theirs}.isdisjoint(place.usual.server for place in ours)


def _is_same_server(snapshot: Snapshot, state: HostState) -> bool:
    """Return whether a worker's connection from the host came to the server that was checked."""
    assert snapshot.broker is not None
    tried = state.imports_now.broker_run_id if state.imports_now else ""
    return bool(tried) and tried == snapshot.broker.run_id


def _urls_of(host: FleetHost, state: HostState) -> tuple[Place, ...]:
    """Return the Redis URLs in the environment file of an application that could not be loaded.

    If some of them are called the broker's, the others (a cache, say) prove nothing.
    """
    variables = host.environment_in(state.files[host.settings.env_file]).values
    urls = {name: url for name, url in variables.items() if re.match(r"rediss?://", url)}
    brokers = {name: url for name, url in urls.items() if "BROKER" in name.upper()}
    return tuple(place for url in (brokers or urls).values() for place in places_of(url))


def _is_fixed(state: HostState, ours: Sequence[Place]) -> bool:
    """Return whether the application, loaded with the inventory's values, uses its broker."""
    wanted = state.imports_wanted
    if wanted is None or wanted is state.imports_now or wanted.application is None:
        return False
    theirs = wanted.application.broker
    return bool(theirs) and not _leads_elsewhere(theirs, ours, same_server=False)


def _where_from(host: FleetHost, state: HostState, theirs: Sequence[Place]) -> Iterator[str]:
    """Yield the variables that give the application its broker, by their names and values."""
    file = host.settings.env_file
    values = host.environment_in(state.files[file]).values
    read = {one.name: one.place for one in state.application.variables} if state.application else {}
    parts = set[str | None]()
    for place in theirs:
        parts.update((place.host, str(place.usual.port), place.usual.db))
    found = []
    for name in read or values:
        value = values.get(name)
        at = f", read at {read[name]}" if name in read else ""
        is_url = "://" in (value or "")
        if value and is_url and set(places_of(value)) & set(theirs):
            found.append(f"{file}: {name} is at {_shown_places(places_of(value))}{at}")
        elif _OF_A_BROKER.search(name) and not is_secret_name(name) and not is_url:
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
    """Yield the transport options that differ from the application's.

    They are known from its nodes, or from loading it with the inventory's environment. With another
    prefix or separator no question reaches the workers, so a restart does not help. **Source:**
    kombu 5.7.0 `transport/redis.py: Channel.from_transport_options`.
    """
    faults: dict[tuple[str, ...], list[str]] = {}
    unheard = set[str]()
    other = fleet.worded("the inventory", "what was found first")
    for host in fleet.hosts:
        differing = _differing_options(fleet, host, snapshot)
        if not differing:
            continue
        lines = []
        for name, (own, ours) in differing.items():
            lines.append(f"{name}: the application has {own!r}, {other} {ours!r}")
        faults.setdefault((", ".join(differing), *lines), []).append(host.name)
        if _UNHEARD & differing.keys():
            unheard.add(host.name)
    advice = fleet.worded(
        "correct celery_broker_options, or the application's", "give everything that runs the same"
    )
    for (names, *evidence), hosts in faults.items():
        mute = not unheard.isdisjoint(hosts)
        yield Finding(
            "broker.options_differ",
            ", ".join(hosts),
            f"the application on {', '.join(hosts)} has another {names} than {other}, which is used"
            f" for all checks here: {advice} broker_transport_options",
            tuple(evidence),
            severity=Severity.ERROR if mute else Severity.WARNING,
            blocks=tuple(Block(host) for host in hosts) if mute else (),
        )


def _differing_options(
    fleet: Fleet, host: FleetHost, snapshot: Snapshot
) -> dict[str, tuple[Any, Any]]:
    assert snapshot.broker is not None
    here = fleet.app.broker_options
    state = snapshot.reachable().get(host.name)
    heard = {"global_keyprefix": here.global_keyprefix, "sep": here.sep}  # of those who answer
    nodes = [snapshot.broker.nodes.get(host.node(worker)) for worker in host.settings.workers]
    options = [{**heard, **node.options} for node in nodes if node and node.options is not None]
    loaded = _options_of(state) if state else None
    if loaded is not None:
        options.append(dict(loaded))
    return next(filter(None, map(here.differing, options)), {})


def _options_of(state: HostState) -> Mapping[str, Any] | None:
    """Return the application's options, with the inventory's environment if that was tried."""
    if state.imports_wanted:
        return state.imports_wanted.options
    return state.application.transport_options if state.application else None


# --- results


def _other_results(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the hosts whose application keeps results elsewhere than this tool looks for them.

    A server may have several names, so these prove something only if both sides name the broker
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
    here = _shown_places(ours)
    advice = fleet.worded(
        "correct celery_result_backend, or the application's", "give all hosts the same"
    )
    for places_there, hosts in faults.items():
        theirs = _shown_places(places_there)
        kept = "keeps none" if theirs == "disabled" else f"keeps them at {theirs}"
        yield Finding(
            "results.elsewhere",
            ", ".join(hosts),
            f"results are looked for at {here}, but the application on {', '.join(hosts)} {kept}:"
            f" {advice} result_backend",
            (
                f"{fleet.worded('celery_result_backend of the inventory', 'found first')}: {here}",
                f"result_backend, loaded: {theirs}",
            ),
            severity=Severity.WARNING,
        )


# --- between hosts


def _hosts_differ(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield what hosts say differently: the effect of a message depends on its sender and taker."""
    said = {host.name: one for host, _, one in held(fleet, snapshot)}
    has = {}
    for host, one in said.items():
        has[host] = dict.fromkeys((task.name for task in one.own_tasks), "registered")
    yield from _differ("tasks", "tasks", has)
    everywhere = set[str].intersection(*map(set, has.values())) if has else set[str]()
    routes = {}
    for host, one in said.items():
        common = [task for task in one.own_tasks if task.name in everywhere]
        routes[host] = {task.name: _shown(task.route) for task in common}
    yield from _differ("routes", "routes", routes)
    versions = {host: _versions(one) for host, one in said.items()}
    yield from _differ("versions", "versions of its libraries", versions)
    results = {host: {"result_backend": _shown_places(one.backend)} for host, one in said.items()}
    yield from _differ("results", "result backends", results)


def _differ(which: str, what: str, said: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Yield one finding for everything in which hosts differ: `said` is host → name → value."""
    names = sorted({name for facts in said.values() for name in facts})
    lines = []
    for name in names:
        by_value: dict[str, list[str]] = {}
        for host, facts in said.items():
            by_value.setdefault(facts.get(name, "missing"), []).append(host)
        if len(by_value) > 1:
            values = [f"{value} on {', '.join(on)}" for value, on in by_value.items()]
            lines.append(f"{name}: {'; '.join(values)}")
    if not lines:
        return
    shown = lines[:_MOST]
    if len(lines) > _MOST:
        shown.append(f"and {len(lines) - _MOST} more")
    yield Finding(
        f"application.{which}_differ",
        ", ".join(said),
        f"the hosts of the application have different {what}: deploy the same code and settings"
        " to all of them",
        tuple(shown),
        severity=Severity.WARNING,
    )


def _shown(route: Route) -> str:
    if route.looks_at_arguments:
        return "by its arguments"
    if route.error:
        return route.error
    to = route.queue or f"exchange {route.exchange} with {route.routing_key}"
    priority = "" if route.priority is None else f", priority {route.priority}"
    return f"to {to}{priority}"


def _versions(said: Application) -> dict[str, str]:
    """Return the versions; of Python only the part that makes a difference to code."""
    versions = dict(said.versions)
    if "python" in versions:
        versions["python"] = ".".join(versions["python"].split(".")[:2])
    return versions
