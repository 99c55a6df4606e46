"""Faults of the broker itself."""

from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from runbooks.core.errors import Trouble
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    Block,
    BrokerState,
    Finding,
    ImportProbe,
    NotAsked,
    Severity,
    Snapshot,
)
from runbooks.core.wording import counted, span

_NEARLY = 0.9
_LARGE_BYTES = 2**20
_UNREADABLE = "an unreadable URL"
_NO_WRITES = {
    Trouble.FULL: "Redis is full and refuses writes, so nothing can be published",
    Trouble.CANNOT_SAVE: (
        "Redis cannot save to its disk and refuses writes, so nothing can be published"
    ),
    Trouble.FEW_REPLICAS: (
        "Redis has too few replicas and refuses writes, so nothing can be published"
    ),
}


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find what keeps the broker from answering, its memory, clock and limits, and other dbs."""
    broker = snapshot.broker
    assert broker is not None
    if broker.unasked:
        tried = _tried_on_hosts(fleet, snapshot) if broker.unseen else ()
        yield _not_asked(broker, broker.unasked, tried)
    if broker.throws_queues_away:
        yield _evicts(broker)
    elif not (broker.unasked and broker.unasked.trouble is Trouble.FULL):
        yield from _memory(broker)
    yield from _running_out(broker)
    if broker.clocks_differ:
        ahead_s = broker.clock_ahead_s
        way = "ahead of" if ahead_s > 0 else "behind"
        yield Finding(
            "broker.clock",
            "broker",
            f"this machine's clock is {span(ahead_s)} {way} the broker's",
            (
                "Redis TIME; this machine's clock decides which messages are overdue, expired or"
                " fetched long ago",
            ),
            severity=Severity.WARNING,
        )
    yield from _other_dbs(fleet, broker)


def _other_dbs(fleet: Fleet, broker: BrokerState) -> Iterator[Finding]:
    """Find messages under the inventory's queue names in other dbs."""
    here = sum(queue.depth for queue in broker.queues.values())
    which = fleet.worded("of the inventory", "that was checked")
    for db, depth in broker.depths_by_db.items():
        evidence = [
            f"db {broker.db} {which} holds {here:,}; db {db} holds {depth:,} of these names"
        ]
        takers = sum(client.db == db and client.takes_messages for client in broker.clients or ())
        if takers:
            clients = counted(takers, "client takes", "clients take")
            evidence.append(f"CLIENT LIST: {clients} messages in db {db}")
        yield Finding(
            "broker.other_db",
            f"db {db}",
            f"{counted(depth, 'message waits', 'messages wait')} under this application's queue"
            f" names in db {db}, not in db {broker.db}",
            tuple(evidence),
            severity=Severity.INFO if takers else Severity.WARNING,
        )


def _running_out(broker: BrokerState) -> Iterator[Finding]:
    """Find what works today and will fail: connections, saves, and keys that never expire."""
    if broker.connected and broker.max_clients and broker.connected > _NEARLY * broker.max_clients:
        yield Finding(
            "broker.many_clients",
            "broker",
            f"Redis has {broker.connected:,} of at most {broker.max_clients:,} clients; at the"
            " limit it refuses workers and programs that send tasks",
            (
                f"INFO clients: connected_clients {broker.connected:,}, maxclients"
                f" {broker.max_clients:,}",
                "CLIENT LIST shows the clients; CONFIG SET maxclients raises the limit",
            ),
        )
    if broker.not_saved and not (broker.unasked and broker.unasked.trouble is Trouble.CANNOT_SAVE):
        yield Finding(
            "broker.saves_fail",
            "broker",
            f"{broker.not_saved} of Redis has failed: messages that were sent since the last"
            " successful one may be lost if Redis ends now",
            (
                "INFO persistence: status err; Redis' log says why, such as a full disk or the"
                " owner of a folder",
            ),
        )
    replies = broker.replies_left
    if replies and (replies.size_bytes or 0) >= _LARGE_BYTES:
        scan = f"redis-cli -n {broker.db} --scan --pattern '*.reply.celery.pidbox'"
        yield Finding(
            "broker.replies_left",
            "broker",
            f"{counted(replies.count, 'list')} of replies to remote control hold"
            f" {replies.size_bytes:,} bytes: no one reads them, and they never expire",
            (
                "keys that end in .reply.celery.pidbox, and whose TTL is -1",
                "the programs that asked (inspect, flower, a web request) ended before the answers"
                " arrived",
                f"to remove them all, at the broker: {scan} | xargs -r redis-cli -n {broker.db}"
                " UNLINK; a program that asks at that moment gets no answer",
            ),
            severity=Severity.WARNING,
        )
    results = broker.results_left
    if results:
        yield Finding(
            "results.never_expire",
            "broker",
            f"about {results.count:,} results in db {broker.db} never expire, and fill Redis",
            (
                "more than half of a sample of keys are celery-task-meta-… with a TTL of -1",
                "with result_expires in the application, new results expire; old ones stay",
            ),
            severity=Severity.WARNING,
        )


def _not_asked(broker: BrokerState, why: NotAsked, tried: Iterable[str]) -> Finding:
    """Report why the broker does not work; it blocks all changes if it cannot be read."""
    summary = _NO_WRITES.get(why.trouble, why.problem)
    evidence = [why.problem] if summary != why.problem else []
    if why.advice:
        evidence.append(why.advice)
    evidence += tried
    if broker.unseen:
        evidence.append("the state of queues and workers is not known, so nothing is changed")
    else:
        evidence.append("no worker could be asked, so none is restarted for its silence")
    return Finding(
        f"broker.{why.trouble.value}",
        "broker",
        summary,
        tuple(evidence),
        blocks=(Block(),) if broker.unseen else (),
    )


def _tried_on_hosts(fleet: Fleet, snapshot: Snapshot) -> Iterator[str]:
    """Report whether a worker's connection to this broker works from the hosts."""
    hosts_by_error: dict[str, list[str]] = {}
    for name, state in snapshot.reachable().items():
        probe = state.imports_now
        if probe and is_at(fleet, probe):
            hosts_by_error.setdefault(probe.broker_error, []).append(name)
    for error, hosts in hosts_by_error.items():
        yield f"also tried on {', '.join(hosts)}: {error or 'a worker can connect there'}"


def is_at(fleet: Fleet, probe: ImportProbe) -> bool:
    """Whether the application's workers connect to the address of the inventory's broker."""
    place = _place(probe.broker_at)
    return place == _place(fleet.app.broker_url.get_secret_value()) != _UNREADABLE


def _evicts(broker: BrokerState) -> Finding:
    """Report a policy that evicts queues: queues have no TTL, so only allkeys policies do."""
    lost = broker.evicted_keys
    near = broker.is_nearly_full
    little = "has little memory left, and " if near else ""
    evidence = [
        f"maxmemory {broker.maxmemory_bytes:,} bytes, maxmemory-policy {broker.maxmemory_policy}",
        f"evicted_keys {lost:,}" + (": queues may have been among them" if lost else ""),
    ]
    if near:
        evidence.append(_used(broker))
    return Finding(
        "broker.evicts",
        "broker",
        f"Redis {little}deletes whole queues when memory runs out: CONFIG SET maxmemory-policy"
        " noeviction, and set it in its configuration file; then publishing fails with an error"
        " instead",
        tuple(evidence),
        severity=Severity.ERROR if near else Severity.WARNING,
    )


def _memory(broker: BrokerState) -> Iterator[Finding]:
    """Find a server that refuses writes when it is full, or has nothing left to evict."""
    if not broker.is_nearly_full:
        return
    then = "it refuses writes, and publishing fails"
    if broker.maxmemory_policy.startswith("volatile-"):
        then = f"it evicts keys with a time to live, such as results; once none are left, {then}"
    evidence = (
        _used(broker),
        f"maxmemory-policy {broker.maxmemory_policy}; CONFIG SET maxmemory raises the limit",
    )
    if broker.is_full:
        yield Finding("broker.full", "broker", f"Redis is full: {then}", evidence)
    else:
        summary = f"Redis is nearly full; when it is full, {then}"
        yield Finding("broker.nearly_full", "broker", summary, evidence)


def _used(broker: BrokerState) -> str:
    return f"{broker.used_memory_bytes:,} of {broker.maxmemory_bytes:,} bytes used"


def _place(url: str) -> str:
    """Return `host:port/db` of a Redis URL, without user and password."""
    try:
        parts = urlsplit(url)
        host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname
        return f"{host}:{parts.port or 6379}/{parts.path.strip('/') or '0'}"
    except ValueError:
        return _UNREADABLE
