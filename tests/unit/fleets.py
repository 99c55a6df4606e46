"""Hand-built fleets and snapshots for the unit tests: everything right, to be broken one thing at a
time.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from pydantic import SecretStr

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import (
    BrokerState,
    FileState,
    HostState,
    NodeState,
    QueueState,
    Selection,
    ServiceState,
    Snapshot,
    Unreachable,
)
from runbooks.core.operator import user_name
from runbooks.core.rules import QueueRule
from runbooks.core.settings import AppSettings, Commands, HostSettings, Worker
from runbooks.diagnosis.wanted_files import MODE, Wanted

NOW = 1_750_000_000.0
TASKS = ("shop.tasks.bill", "shop.tasks.ship")
ENV_FILE = "/srv/shop/shop.env"
NO_COMMANDS = Commands(start="false {worker}", stop="false {worker}", status="false")
NOTHING_MALFORMED = Selection("malformed", 0, {})


def make_host(name: str = "web1", **changes: Any) -> FleetHost:
    """A host with one worker, `high`, beat, and one variable in its environment."""
    settings: dict[str, Any] = {
        "directory": "/srv/shop", "python": sys.executable, "user": user_name(), "env_file": ENV_FILE,
        "env": {"TIMEOUT": "30"}, "workers": (Worker(name="high", queues=("high_q",)),), "beat": True,
        "service_manager": "commands", "commands": NO_COMMANDS,
    }  # fmt: skip
    return FleetHost(
        name, ("web",), HostSettings(**(settings | changes)), {"ansible_connection": "local"}
    )


def make_fleet(*hosts: FleetHost, state_directory: Path | None = None, **app: Any) -> Fleet:
    settings: dict[str, Any] = {
        "app": "shop", "broker_url": SecretStr("redis://:hunter2@127.0.0.1:1/0"), "expected_tasks": TASKS,
        "queue_rules": (QueueRule(reason="too late", queue="high_q", expired=True),),
    }  # fmt: skip
    hosts = hosts or (make_host(),)
    workers = tuple(worker for host in hosts for worker in host.settings.workers)
    has_beat = any(host.has_beat for host in hosts)
    return Fleet(
        AppSettings(**(settings | app)), hosts, workers, state_directory, has_beat=has_beat
    )


def make_queue(name: str = "high_q", depth: int = 0, **changes: Any) -> QueueState:
    return replace(
        QueueState(name, {name: depth} if depth else {}, {}, (), NOTHING_MALFORMED, 0), **changes
    )


def make_broker(fleet: Fleet, **changes: Any) -> BrokerState:
    """Every node answers, knows every task and consumes its queues; every queue is empty."""
    nodes = {
        host.node(worker): NodeState(
            host.node(worker), frozenset(fleet.app.expected_tasks), frozenset(worker.queues)
        )
        for host in fleet.hosts
        for worker in host.settings.workers
    }
    queues = {name: make_queue(name) for name in fleet.queues}
    return replace(
        BrokerState("7.2", 0, 0, "noeviction", 0, queues, nodes, 0, {}, {}, 1), **changes
    )


def make_state(host: FleetHost, **changes: Any) -> HostState:
    """A healthy host: a correct environment file, and services started after it last changed."""
    content = "".join(f"{name}={value}\n" for name, value in host.settings.env.items())
    files = {host.settings.env_file: FileState(content.encode(), 0o640, NOW - 1000)}
    services = {
        name: ServiceState(100 + n, NOW - 500, "100") for n, name in enumerate(host.services)
    }
    return replace(HostState(NOW, files, services), **changes)


def make_snapshot(
    fleet: Fleet,
    *,
    broker: BrokerState | None = None,
    hosts: Mapping[str, HostState | Unreachable] | None = None,
) -> Snapshot:
    """A fleet in which all is right, but for what is given."""
    states: dict[str, HostState | Unreachable] = {
        host.name: make_state(host) for host in fleet.hosts
    }
    return Snapshot(NOW, broker or make_broker(fleet), states | dict(hosts or {}))


def nothing_wanted(fleet: Fleet) -> Wanted:
    return {host.name: {} for host in fleet.hosts}


def in_place(content: bytes, mode: int = MODE) -> FileState:
    return FileState(content, mode, NOW - 2000)
