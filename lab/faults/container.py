"""Faults of containers, in a sandbox whose workers run in them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lab.docker import PROJECT, Engine
from lab.faults.fault import fault
from lab.faults.grounds import Sandbox, until
from lab.faults.messages import producer

_HIGH, _LOW = f"{PROJECT}_worker_high_1", f"{PROJECT}_worker_low_1"


def _engine(ground: Sandbox) -> Engine:
    return Engine(ground.world.root / "docker")


@contextmanager
def _made_of(ground: Sandbox, **changes: Any) -> Iterator[None]:
    """worker_low's container, created again from a Compose file with these changes; an old one is made
    again afterwards.
    """
    file, other = ground.world.root / "docker-compose.yml", ground.world.root / "other.yml"
    project = json.loads(file.read_text())
    project["services"]["worker_low"] |= changes
    other.write_text(json.dumps(project))
    compose = _engine(ground).compose
    compose(other, "up", "-d", "--no-deps", "--force-recreate", "worker_low")
    try:
        yield
    finally:
        compose(file, "up", "-d", "--no-deps", "--force-recreate", "worker_low")
        other.unlink()


def _inspected(ground: Sandbox) -> Any:
    return json.loads(_engine(ground).docker("inspect", _LOW).stdout)[0]


@fault("container.paused", "docker pause", ground="docker", touches="worker_low")
@contextmanager
def paused(ground: Sandbox) -> Iterator[None]:
    docker = _engine(ground).docker
    docker("pause", _LOW)
    try:
        yield
    finally:
        docker("unpause", _LOW)


@fault(
    "host.not_loaded",
    "all containers are stopped, and one is in a second network",
    ground="docker",
    command=("diagnose", "--fresh"),
    after="worker.not_running",
    alone=True,
)
@contextmanager
def not_loaded(ground: Sandbox) -> Iterator[None]:
    docker = _engine(ground).docker
    all_ids = docker("ps", "-q").stdout.decode().split()
    docker("stop", *all_ids)
    docker("network", "create", "--subnet", "10.254.253.0/28", "second")
    docker("network", "connect", "second", _HIGH)
    try:
        yield
    finally:
        docker("network", "disconnect", "second", _HIGH)
        docker("network", "rm", "second")
        docker("start", *all_ids)


@fault("container.none", "docker rm -f", ground="docker", touches="worker_low")
@contextmanager
def none(ground: Sandbox) -> Iterator[None]:
    _engine(ground).docker("rm", "-f", _LOW)
    try:
        yield
    finally:
        file = ground.world.root / "docker-compose.yml"
        _engine(ground).compose(file, "up", "-d", "--no-deps", "worker_low")


@fault(
    "container.not_running",
    "one of two containers of a worker was stopped",
    ground="docker",
    touches="worker_low",
)
@contextmanager
def not_running(ground: Sandbox) -> Iterator[None]:
    engine, file = _engine(ground), ground.world.root / "docker-compose.yml"
    scale = ("up", "-d", "--no-deps", "--scale")
    engine.compose(file, *scale, "worker_low=2", "worker_low")
    engine.docker("stop", f"{PROJECT}_worker_low_2")
    try:
        yield
    finally:
        engine.compose(file, *scale, "worker_low=1", "worker_low")


@fault("container.restarting", "its command ends at once", ground="docker", touches="worker_low")
@contextmanager
def restarting(ground: Sandbox) -> Iterator[None]:
    with _made_of(ground, command=["/usr/bin/false"]):
        until(lambda: _inspected(ground)["RestartCount"] > 2, "restarts")
        yield


@fault("container.unhealthy", "its health check fails", ground="docker", touches="worker_low")
@contextmanager
def unhealthy(ground: Sandbox) -> Iterator[None]:
    check = {"test": ["CMD", "/usr/bin/false"], "interval": "1s", "retries": 1}
    with _made_of(ground, healthcheck=check):
        until(
            lambda: _inspected(ground)["State"]["Health"]["Status"] == "unhealthy",
            "its health check",
        )
        yield


@fault(
    "container.stop_loses_tasks",
    "stop_grace_period is 5 seconds",
    ground="docker",
    touches="worker_low",
)
@contextmanager
def stop_loses_tasks(ground: Sandbox) -> Iterator[None]:
    with producer(ground) as app, _made_of(ground, stop_grace_period="5s"):
        until(lambda: len(app.control.inspect(timeout=1).ping() or {}) == 3, "its worker")
        yield


@fault("container.out_of_memory", "mem_limit is 40 MiB", ground="docker", touches="worker_low")
@contextmanager
def out_of_memory(ground: Sandbox) -> Iterator[None]:
    with _made_of(ground, mem_limit="40m", restart="no"):
        until(lambda: _inspected(ground)["State"]["OOMKilled"], "the kernel")
        yield
