"""The fleet's network: a bridge that carries the controller's address, and a namespace with one
link for every host.

A namespace is held by a file of the fleet's own, as `ip netns` holds its by files under /run/netns:
nothing is named machine-wide but the bridge and its ends of the links.
"""

import ipaddress
import json
import shlex
import subprocess
from pathlib import Path

from lab.fleet.record import CONTROLLER, Record
from lab.fleet.shell import FleetError, ip_batch, run


def taken_networks() -> list[str]:
    """Every IPv4 network that this machine has an address in or a route to."""
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))
    return [route["dst"] for route in routes if route["dst"] != "default"]


def make_bridge(record: Record) -> None:
    """The bridge, up at once, with the controller's address."""
    ip_batch([
        f"link add {record.bridge} type bridge forward_delay 0",
        f"address add {_with_prefix(record, record.address(CONTROLLER))} dev {record.bridge}",
        f"link set {record.bridge} up",
    ])  # fmt: skip


def make_namespace(file: Path) -> None:
    """A new network namespace, held by `file` until that is unmounted."""
    file.touch()
    run("unshare", f"--net={file}", "true")


def join(record: Record, address: str, namespace: Path, *, by_tap: bool = False) -> None:
    """Link a namespace to the bridge, by a veth pair or by the two taps of a delay line, and give
    it its address.
    """
    link, file = record.link(address), shlex.quote(str(namespace))
    if by_tap:
        first = f"link set {record.inner_tap(address)} netns {file} name eth0"
    else:
        first = f"link add {link} type veth peer name eth0 netns {file}"
    ip_batch([first, f"link set {link} master {record.bridge} up"])
    ip_batch([
        "link set lo up",
        f"address add {_with_prefix(record, address)} dev eth0",
        "link set eth0 up",
        f"route add default via {record.address(CONTROLLER)}",
    ], prefix=inside(namespace))  # fmt: skip


def inside(namespace: Path) -> tuple[object, ...]:
    """What to put before a command to run it in a network namespace."""
    return ("nsenter", f"--net={namespace}")


def remove_links(record: Record) -> None:
    """Remove the bridge and every link of the fleet; both ends of a link go at once."""
    mine = [path.name for path in Path("/sys/class/net").iterdir() if _is_mine(record, path.name)]
    for name in sorted(mine, reverse=True):  # the bridge last
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
    if left := [name for name in mine if Path("/sys/class/net", name).exists()]:
        raise FleetError(f"these links could not be removed: {', '.join(left)}; see: ip link")


def _is_mine(record: Record, link: str) -> bool:
    return link == record.bridge or link.startswith(f"{record.bridge}-")


def _with_prefix(record: Record, address: str) -> str:
    return f"{address}/{ipaddress.IPv4Network(record.network).prefixlen}"
