"""Faults of the broker: its settings, its memory, its clients."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Ground


@contextmanager
def setting(ground: Ground, **values: str) -> Iterator[None]:
    """Change settings of the Redis server for as long as the block lasts."""
    with ground.broker() as client:
        names = {name: name.replace("_", "-") for name in values}
        before = {name: client.config_get(names[name])[names[name]] for name in values}
        for name, value in values.items():
            client.config_set(names[name], value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(names[name], value)


@fault("broker.evicts", "maxmemory-policy is allkeys-lru", touches="memory")
@contextmanager
def evicts(ground: Ground) -> Iterator[None]:
    with setting(ground, maxmemory="1gb", maxmemory_policy="allkeys-lru"):
        yield
