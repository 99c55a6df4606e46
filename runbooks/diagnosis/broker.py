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


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """What keeps the broker from being asked, eviction, memory, clocks, and the application's
    queues in another db.
    """
    broker = snapshot.broker
    assert broker is not None
    if broker.unasked:
        yield _not_asked(
            broker, broker.unasked, _tried_on_hosts(fleet, snapshot) if broker.unseen else ()
        )
    if broker.throws_queues_away:
        yield _evicts(broker)
    elif not (broker.unasked and broker.unasked.trouble is Trouble.FULL):
        yield from _memory(broker)
    yield from _running_out(broker)
    if broker.clocks_differ:
        ahead_s = broker.clock_ahead_s
        yield Finding(
            "broker.clock",
            "broker",
            f"this machine's clock is {span(ahead_s)} {'ahead of' if ahead_s > 0 else 'behind'} the"
            " broker's",
            (
                (
                    "Redis TIME; what is overdue, expired or fetched long ago is judged by this"
                    " machine's clock"
                ),
            ),
            severity=Severity.WARNING,
        )
    here = sum(queue.depth for queue in broker.queues.values())
    for db, depth in broker.depths_by_db.items():
        takers = sum(client.db == db and client.takes_messages for client in broker.clients or ())
        why = fleet.worded("the inventory names", "was looked at")
        consumed = (
            f"CLIENT LIST: {counted(takers, 'client takes', 'clients take')} messages in db {db}"
        )
        yield Finding(
            "broker.other_db",
            f"db {db}",
            f"{counted(depth, 'message waits', 'messages wait')} under this application's queue"
            f" names in db {db}, not in db {broker.db}",
            (
                (
                    f"db {broker.db}, which {why}, holds {here:,}; db {db} holds {depth:,} under"
                    " these names"
                ),
                *([consumed] if takers else []),
            ),
            severity=Severity.INFO if takers else Severity.WARNING,
        )


def _running_out(broker: BrokerState) -> Iterator[Finding]:
    """What is well today, and will not be: connections, saves that fail, and what nobody reads and
    nothing removes.
    """
    if broker.connected and broker.max_clients and broker.connected > _NEARLY * broker.max_clients:
        yield Finding(
            "broker.many_clients",
            "broker",
            f"Redis has {broker.connected:,} of {broker.max_clients:,} clients that it takes;"
            " beyond them workers and whoever sends tasks are refused",
            (
                (
                    f"INFO clients: connected_clients {broker.connected:,}, maxclients"
                    f" {broker.max_clients:,}"
                ),
                "CLIENT LIST shows who they are; CONFIG SET maxclients raises the limit",
            ),
        )
    if broker.not_saved and not (broker.unasked and broker.unasked.trouble is Trouble.CANNOT_SAVE):
        yield Finding(
            "broker.saves_fail",
            "broker",
            f"{broker.not_saved} of Redis has failed: what waits is lost if it ends now, and by its"
            " default it refuses writes",
            (
                (
                    "INFO persistence: status err; the log of Redis says why, such as a full disk"
                    " or a folder's owner"
                ),
            ),
        )
    if (replies := broker.replies_left) and (replies.size_bytes or 0) >= _LARGE_BYTES:
        yield Finding(
            "broker.replies_left",
            "broker",
            f"{counted(replies.count, 'list')} of replies to remote control hold"
            f" {replies.size_bytes:,} bytes: nobody reads them, and they never expire",
            (
                "keys that end in .reply.celery.pidbox, and whose TTL is -1",
                "whoever asked (inspect, flower, a web request) ended before the answers came",
                (
                    f"to remove them all, at the broker: redis-cli -n {broker.db} --scan --pattern"
                    f" '*.reply.celery.pidbox' | xargs -r redis-cli -n {broker.db} UNLINK; whoever"
                    " asks just then gets no answer"
                ),
            ),
            severity=Severity.WARNING,
        )
    if results := broker.results_left:
        yield Finding(
            "results.never_expire",
            "broker",
            f"about {results.count:,} results in db {broker.db} never expire, so Redis fills up"
            " with them",
            (
                "of a sample of keys, more than half are celery-task-meta-… with a TTL of -1",
                "result_expires in the application lets new ones expire; those that are there stay",
            ),
            severity=Severity.WARNING,
        )


_LARGE_BYTES = 2**20

_NO_WRITES = {
    Trouble.FULL: "Redis is full and refuses writes, so nothing can be published",
    Trouble.CANNOT_SAVE: (
        "Redis cannot save to its disk and refuses writes, so nothing can be published"
    ),
    Trouble.FEW_REPLICAS: (
        "Redis has too few replicas and refuses writes, so nothing can be published"
    ),
}


def _not_asked(broker: BrokerState, why: NotAsked, tried: Iterable[str]) -> Finding:
    """While nothing of the broker is known, nothing is touched; where it can be read, nobody's
    silence counts.
    """
    summary = _NO_WRITES.get(why.trouble, why.problem)
    left = (
        "nothing is known of the queues and of what the workers do, so nothing is changed"
        if broker.unseen
        else (
            "no worker could be asked: that none answers proves nothing, and none is restarted"
            " for it"
        )
    )
    return Finding(
        f"broker.{why.trouble.value}",
        "broker",
        summary,
        (
            *([why.problem] if summary != why.problem else []),
            *filter(None, [why.advice]),
            *tried,
            left,
        ),
        blocks=(Block(),) if broker.unseen else (),
    )


def _tried_on_hosts(fleet: Fleet, snapshot: Snapshot) -> Iterator[str]:
    """What came of it where a worker's connection to this very broker was tried on hosts."""
    told: dict[str, list[str]] = {}
    for name, state in snapshot.reachable().items():
        if (probe := state.imports_now) and is_at(fleet, probe):
            told.setdefault(probe.broker_error, []).append(name)
    for error, hosts in told.items():
        yield f"tried on {', '.join(hosts)}, too: {error or 'a worker gets in there'}"


def is_at(fleet: Fleet, probe: ImportProbe) -> bool:
    """Whether an application's workers connect to the broker that the inventory names, by its
    address.
    """
    place = _place(probe.broker_at)
    return place == _place(fleet.app.broker_url.get_secret_value()) != _UNREADABLE


def _evicts(broker: BrokerState) -> Finding:
    """Queues have no time to live, so only the policies over all keys take them; the others take
    results.
    """
    lost, near = broker.evicted_keys, broker.is_nearly_full
    little = "has little memory left, and " if near else ""
    return Finding(
        "broker.evicts",
        "broker",
        f"Redis {little}throws whole queues away when memory runs out: CONFIG SET maxmemory-policy"
        " noeviction, and in its configuration file; then publishing fails instead, and tells",
        (
            (
                f"maxmemory {broker.maxmemory_bytes:,} bytes, maxmemory-policy"
                f" {broker.maxmemory_policy}"
            ),
            f"evicted_keys {lost:,}" + (": queues may have been among them" if lost else ""),
            *([_used(broker)] if near else []),
        ),
        severity=Severity.ERROR if near else Severity.WARNING,
    )


def _memory(broker: BrokerState) -> Iterator[Finding]:
    """Of a server that refuses writes when it is full, at once or when there is nothing left that
    it may evict.
    """
    if not broker.is_nearly_full:
        return
    then = "it refuses writes, and publishing fails"
    if broker.maxmemory_policy.startswith("volatile-"):
        then = (
            f"it throws away keys with a time to live, such as results; once none are left, {then}"
        )
    evidence = (
        _used(broker),
        f"maxmemory-policy {broker.maxmemory_policy}; CONFIG SET maxmemory raises the limit",
    )
    if broker.is_full:
        yield Finding("broker.full", "broker", f"Redis is full: {then}", evidence)
    else:
        yield Finding(
            "broker.nearly_full", "broker", f"Redis is nearly full; when it is, {then}", evidence
        )


def _used(broker: BrokerState) -> str:
    return f"{broker.used_memory_bytes:,} of {broker.maxmemory_bytes:,} bytes used"


def _place(url: str) -> str:
    """`host:port/db` of a Redis URL, without user and password."""
    try:
        parts = urlsplit(url)
        host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname
        return f"{host}:{parts.port or 6379}/{parts.path.strip('/') or '0'}"
    except ValueError:
        return _UNREADABLE


_UNREADABLE = "an unreadable URL"
