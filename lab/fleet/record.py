"""What a fleet consists of: on the disk before any of it is made, so that it can be removed
whatever happens.
"""

import hashlib
import ipaddress
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.fleet.shell import FleetError

_NETWORKS = 65536  # of 256 addresses in 10.0.0.0/8
CONTROLLER, GLPI, FIRST_HOST = 1, 2, 11  # the last byte of their addresses


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the fleet; `latency_ms` is added to every round trip to it."""

    name: str
    address: str
    latency_ms: float


@dataclass(frozen=True, slots=True)
class Record:
    """A fleet as it is meant to be; all else that it has of this machine is named after its id."""

    id: str
    network: str
    hosts: tuple[Host, ...]

    @classmethod
    def of(cls, id: str, network: str, latency_ms: Mapping[str, float]) -> "Record":
        """A fleet whose hosts are the keys of `latency_ms`, in this order."""
        addresses = ipaddress.IPv4Network(network)
        hosts = (Host(name, str(addresses[FIRST_HOST + number]), latency_ms[name])
                 for number, name in enumerate(latency_ms))  # fmt: skip
        return cls(id, network, tuple(hosts))

    @property
    def bridge(self) -> str:
        return f"cr{self.id}"

    @property
    def cgroup(self) -> str:
        return f"celery-runbooks-{self.id}"

    def address(self, number: int) -> str:
        """The address in the fleet's network that ends with `number`."""
        return str(ipaddress.IPv4Network(self.network)[number])

    def link(self, address: str) -> str:
        """The bridge's end of the link to an address; the kernel allows 15 characters."""
        return f"{self.bridge}-{address.rpartition('.')[2]}"

    def inner_tap(self, address: str) -> str:
        """The host's end of a delay line, until it is the host's eth0."""
        return f"{self.link(address)}i"

    def machine(self, host: Host) -> str:
        """What systemd-nspawn knows a host by; unique on this machine, unlike its name."""
        return f"{self.cgroup}-{host.name}"

    def save(self, path: Path) -> None:
        """Write it down; it is on the disk when this returns."""
        new = path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(asdict(self), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    @classmethod
    def load(cls, path: Path) -> "Record | None":
        """The fleet that was written down, None where there is none."""
        if not path.exists():
            return None
        read = json.loads(path.read_text())
        hosts = tuple(Host(**host) for host in read["hosts"])
        return cls(read["id"], read["network"], hosts)


def fleet_id(checkout: Path) -> str:
    """Distinguishes the fleets of several checkouts."""
    return hashlib.sha256(str(checkout.resolve()).encode()).hexdigest()[:6]


def free_network(id: str, taken: Iterable[str]) -> str:
    """The first 10.x.y.0/24 from the id's own on that overlaps none of the `taken` networks. Raises
    FleetError.
    """
    used = [
        network
        for text in taken
        if (network := ipaddress.IPv4Network(text, strict=False)).prefixlen
    ]
    for step in range(_NETWORKS):
        address = 0x0A000000 + ((int(id, 16) + step) % _NETWORKS << 8)
        candidate = ipaddress.IPv4Network((address, 24))
        if not any(map(candidate.overlaps, used)):
            return str(candidate)
    raise FleetError(
        "this machine has no free network 10.x.y.0/24 for the fleet; see: ip route show table all"
    )
