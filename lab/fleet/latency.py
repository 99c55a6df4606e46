"""Latency of a host's link: by the kernel's netem, or by a delay line of our own where the kernel
has none.

Half of it is added in each direction, so a round trip takes the whole.
"""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.fleet import cgroups, network
from lab.fleet.record import Host, Record
from lab.fleet.shell import FleetError, run

_READY_S = 20.0


def parse(text: str, names: Sequence[str]) -> Mapping[str, float]:
    """Milliseconds by host of `20` (all of `names`), `web1=20,web2=5` or `20,web1=0`; the last that
    fits counts.

    Raises ValueError.
    """
    by_host: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, equals, number = part.rpartition("=")
        if equals and name not in names:
            raise ValueError(f"--latency: there is no host '{name}'; there are {', '.join(names)}")
        try:
            latency_ms = float(number)
        except ValueError:
            latency_ms = -1
        if not 0 <= latency_ms <= 10_000:
            raise ValueError(
                f"--latency: '{number}' is not a number of milliseconds from 0 to 10000"
            )
        by_host |= dict.fromkeys([name] if equals else names, latency_ms)
    return by_host


def has_netem(record: Record) -> bool:
    """Whether this kernel knows netem, tried on the fleet's own bridge."""
    on_bridge = ("dev", record.bridge, "root", "netem")
    done = subprocess.run(
        ["tc", "qdisc", "add", *on_bridge, "delay", "1ms"], capture_output=True, check=False
    )
    if done.returncode == 0:
        run("tc", "qdisc", "del", *on_bridge)
    return done.returncode == 0


def add_netem(record: Record, host: Host, namespace: Path) -> None:
    """Delay what leaves by either end of a host's link."""
    for prefix, link in (((), record.link(host.address)), (network.inside(namespace), "eth0")):
        run(
            *prefix,
            "tc",
            "qdisc",
            "add",
            "dev",
            link,
            "root",
            "netem",
            "delay",
            f"{host.latency_ms / 2}ms",
        )


def start_delay_line(checkout: Path, record: Record, hosts: Sequence[Host], log: Path) -> None:
    """Start the delay line of these hosts and wait until its taps are there. Raises FleetError."""
    taps = [
        f"{record.link(host.address)}:{record.inner_tap(host.address)}:{host.latency_ms / 2}"
        for host in hosts
    ]
    cgroups.start(
        f"{record.cgroup}/delay",
        [sys.executable, "-m", "lab.fleet.delay", *taps],
        log,
        cwd=checkout,
    )
    deadline = time.monotonic() + _READY_S
    while not Path("/sys/class/net", record.inner_tap(hosts[-1].address)).exists():
        if time.monotonic() > deadline:
            raise FleetError(
                f"the delay line did not start:\n{log.read_text(errors='replace')[-2000:]}"
            )
        time.sleep(0.02)
