"""Faults of the broker itself."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from runbooks.core.envfile import read_environment
from runbooks.core.fleet import Fleet
from runbooks.core.model import Block, BrokerState, Finding, Severity, Snapshot
from runbooks.core.wording import span

_FULL = 0.9


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Eviction, memory, clocks, and the application's queues lying in another db than the one it is told to use."""
    broker = snapshot.broker
    assert broker is not None
    yield from _not_the_workers_broker(fleet, snapshot)
    if broker.unasked:
        yield Finding(
            "broker.refuses_writes",
            "broker",
            "Redis refuses writes, so no worker can be asked anything: that none answers proves nothing, and none is "
            "restarted for it",
            (broker.unasked,),
        )
    yield from _evicts(broker)
    if broker.maxmemory_bytes and broker.used_memory_bytes > _FULL * broker.maxmemory_bytes:
        yield Finding(
            "broker.full",
            "broker",
            "Redis is nearly out of memory; publishing is about to fail",
            (f"{broker.used_memory_bytes:,} of {broker.maxmemory_bytes:,} bytes used",),
        )
    if broker.clocks_differ:
        ahead_s = broker.clock_ahead_s
        yield Finding(
            "broker.clock",
            "broker",
            f"this machine's clock is {span(ahead_s)} {'ahead of' if ahead_s > 0 else 'behind'} the broker's",
            ("Redis TIME; what is overdue, expired or fetched long ago is judged by this machine's clock",),
            severity=Severity.WARNING,
        )
    here = sum(queue.depth for queue in broker.queues.values())
    for db, depth in broker.depths_by_db.items():
        yield Finding(
            "broker.other_db",
            f"db {db}",
            f"{depth:,} messages wait under this application's queue names in db {db}, not in db {broker.db}",
            (f"db {broker.db}, which the inventory names, holds {here:,}; db {db} holds {depth:,} under these names",),
            severity=Severity.WARNING,
        )


def _evicts(broker: BrokerState) -> Iterator[Finding]:
    """Queues have no time to live, so only the policies over all keys take them; the others take results.

    **Source:** Redis, "Key eviction": `volatile-…` policies evict among keys with a TTL, and refuse writes without any.
    """
    if not broker.maxmemory_bytes or not broker.maxmemory_policy.startswith("allkeys"):
        return
    lost = broker.evicted_keys
    yield Finding(
        "broker.evicts",
        "broker",
        "Redis throws whole queues away when memory runs out: CONFIG SET maxmemory-policy noeviction, and in its "
        "configuration file; then publishing fails instead, and tells",
        (
            f"maxmemory {broker.maxmemory_bytes:,} bytes, maxmemory-policy {broker.maxmemory_policy}",
            f"evicted_keys {lost:,}" + (": queues may have been among them" if lost else ""),
        ),
        severity=Severity.WARNING,
    )


def _not_the_workers_broker(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Workers run, none answers, and their environment names Redis elsewhere: then restarting them mends nothing."""
    assert snapshot.broker is not None
    ours = _place(fleet.app.broker_url.get_secret_value())
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        nodes = {host.node(worker) for worker in host.settings.workers}
        if not state or nodes & snapshot.broker.nodes.keys() or not any(s.pid for s in state.services.values()):
            continue
        content = (state.files[host.settings.env_file].content or b"").decode(errors="replace")
        urls = {name: url for name, url in read_environment(content).items() if re.match(r"rediss?://", url)}
        if urls and ours not in map(_place, urls.values()):
            yield Finding(
                "broker.not_the_workers",
                host.name,
                f"the workers of {host.name} run and none answers at {ours}, the broker that the inventory names; "
                "their environment file names another: correct one of the two",
                tuple(f"{host.settings.env_file}: {name} is at {_place(url)}" for name, url in urls.items()),
                blocks=(Block(host.name),),
            )


def _place(url: str) -> str:
    """`host:port/db` of a Redis URL, without user and password."""
    try:
        parts = urlsplit(url)
        host = "127.0.0.1" if parts.hostname in (None, "localhost") else parts.hostname
        return f"{host}:{parts.port or 6379}/{parts.path.strip('/') or '0'}"
    except ValueError:
        return "an unreadable URL"
