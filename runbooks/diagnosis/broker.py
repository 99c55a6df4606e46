"""Faults of the broker itself."""

from collections.abc import Iterator

from runbooks.core.model import Finding, Severity, Snapshot

_FULL = 0.9


def findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Eviction, memory, and the application's queues lying in another db than the one it is told to use."""
    broker = snapshot.broker
    assert broker is not None
    if broker.maxmemory_bytes and broker.maxmemory_policy != "noeviction":
        yield Finding(
            "broker.evicts",
            "broker",
            "Redis may evict whole queues when memory runs out",
            (f"maxmemory {broker.maxmemory_bytes:,} bytes, maxmemory-policy {broker.maxmemory_policy}",),
            severity=Severity.WARNING,
        )
    if broker.maxmemory_bytes and broker.used_memory_bytes > _FULL * broker.maxmemory_bytes:
        yield Finding(
            "broker.full",
            "broker",
            "Redis is nearly out of memory; publishing is about to fail",
            (f"{broker.used_memory_bytes:,} of {broker.maxmemory_bytes:,} bytes used",),
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
