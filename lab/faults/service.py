"""Faults of services: who else does their work, and a service manager that does not answer."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts, Sandbox, text_of
from lab.faults.on_hosts import changed, in_place_of_low


@fault(
    "service.manager_away",
    "the sockets of systemd and of D-Bus are moved away",
    ground="fleet",
    alone=True,
)
@contextmanager
def manager_away(ground: Hosts) -> Iterator[None]:
    sockets = ("/run/systemd/private", "/run/dbus/system_bus_socket")
    there = "; ".join(f"mv {socket} {socket}.away" for socket in sockets)
    back = "; ".join(f"mv {socket}.away {socket}" for socket in sockets)
    with changed(ground, "web1", there, back):
        yield


@fault("service.runs_elsewhere", "a worker is stopped, and a unit of another owner runs one of its name",
       ground="fleet", touches="worker_low theirs")  # fmt: skip
@contextmanager
def runs_elsewhere(ground: Hosts) -> Iterator[None]:
    with in_place_of_low(ground, "start"):
        yield


@fault(
    "service.untold",
    "the status command of a host's workers ends with exit code 4",
    touches="inventory",
    alone=True,
)
@contextmanager
def not_known(ground: Sandbox) -> Iterator[None]:
    with text_of(ground.inventory, ("./workers_status.sh {worker}", "exit 4")):
        yield
