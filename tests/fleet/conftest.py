"""Fleets of the tests' own: copies of the checkout in temporary folders, driven through the real
command line.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.fleet import machine
from lab.fleet.image import image, old_python
from lab.fleet.shell import FleetError
from lab.fleet.world import FleetWorld, broker_of, make_fleet_world, two_hosts
from lab.world import CHECKOUT

__all__ = ["FleetWorld", "broker_of", "make_fleet_world", "two_hosts", "wait_until"]


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.01)


def connect_s(address: str) -> float:
    """The time of one round trip: how long it takes to connect to a host's sshd."""
    started = time.perf_counter()
    with socket.create_connection((address, 22), timeout=10):
        return time.perf_counter() - started


@pytest.fixture(scope="session")
def machine_of_root() -> None:
    """Skips where no hosts can be made, and fails there in CI."""
    try:
        machine.require_root()
    except FleetError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    machine.require_tools(print)


@pytest.fixture(scope="session")
def real_hosts(machine_of_root: None) -> None:
    """Builds the hosts' image if it is not there yet."""
    image(CHECKOUT, print)


@pytest.fixture(scope="session")
def debian11(machine_of_root: None) -> Path:
    """A root file system with Python 3.9 and Celery 5.0; tests leave it as it is."""
    return old_python(print)


@pytest.fixture(scope="session")
def fleet(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Three hosts, as broken as a fresh fleet is; 30 ms lie between here and web2. Tests leave it
    as it is.
    """
    world = make_fleet_world(tmp_path_factory.mktemp("fleet"))
    up = world.inv("fleet", "--hosts", "3", "--latency", "web2=30")
    assert up.code == 0, up.err
    yield world
    down = world.inv("fleet", "--down")
    assert down.code == 0, down.err
    assert world.traces() == set()


@pytest.fixture
def world(real_hosts: None, tmp_path: Path) -> Iterator[FleetWorld]:
    """A world of one test's own; its fleet, if it puts one up, is taken down afterwards."""
    world = make_fleet_world(tmp_path)
    yield world
    down = world.inv("fleet", "--down")
    assert down.code == 0, down.err
