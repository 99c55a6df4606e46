"""The fleet of one checkout: put up whole or not at all, and removed without a trace."""

import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.fleet import access, cgroups, host, machine, network
from lab.fleet.image import image, locked
from lab.fleet.record import FIRST_HOST, GLPI, Host, Record, fleet_id, free_network
from lab.fleet.shell import FleetError, run

_MACHINE_LOCK = Path("/run")  # held while something machine-wide is chosen or changed


class Fleet:
    """The fleet of one checkout, everything under its folder `.fleet`."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.root = checkout / ".fleet"
        self.mounts = self.root / "run"  # a tmpfs: the hosts' layers and mounts, the network namespaces
        self._record = self.root / "record.json"

    # --- what an operator asks for

    def up(self, hosts: int, latency_ms: Mapping[str, float]) -> str:
        """Put the fleet up, or leave one that is up as it is; returns what to tell. Raises FleetError."""
        machine.require_root()
        machine.require_tools(tell)
        base = image(self.checkout, tell)
        with locked(self.checkout):
            if self._is_complete():
                return self._what_is_up(hosts)
            self._remove()
            try:
                self._build(base, hosts, latency_ms)
            except BaseException:
                self._remove()
                raise
        return f"{hosts} hosts are up. Look: inv diagnose --inventory .fleet/inventory.yaml. End it: inv fleet --down."

    def down(self) -> str:
        """Remove everything of the fleet."""
        with locked(self.checkout):
            if not self.root.exists():
                return "There is no fleet."
            machine.require_root()
            self._remove()
        return "The fleet is down; nothing of it is left."

    # --- putting it up

    def _build(self, base: Path, count: int, latency_ms: Mapping[str, float]) -> None:
        self.root.mkdir(mode=0o700)
        with locked(_MACHINE_LOCK):
            record = self._plan(count, latency_ms)
            record.save(self._record)
            network.make_bridge(record)
            machine.set_inotify_limit(record.inotify[1])
        self._make_common_layer(record, base)
        tell(f"booting {count} hosts")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            keys = dict(zip(record.hosts, pool.map(lambda each: self._boot(record, base, each), record.hosts), strict=True))
        access.write_known_hosts(self.root, keys)
        access.write_ssh_config(self.root, record.hosts)
        access.write_inventory(self.root, record.hosts)
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda each: host.await_ready(record, each, self._log(each.name)), record.hosts))
        (self.root / "complete").touch()

    def _plan(self, count: int, latency_ms: Mapping[str, float]) -> Record:
        id = fleet_id(self.checkout)
        now = machine.inotify_limit()
        inotify = (now, now + count * machine.INOTIFY_PER_HOST)
        record = Record(id, free_network(id, network.taken_networks()), (), inotify)
        names = ["broker", *(f"web{number}" for number in range(1, count))]
        hosts = tuple(Host(name, record.address(FIRST_HOST + number), latency_ms.get(name, 0))
                      for number, name in enumerate(names))  # fmt: skip
        return Record(id, record.network, hosts, inotify)

    def _make_common_layer(self, record: Record, base: Path) -> None:
        """What is the same on all hosts of the fleet, as one more layer over the image."""
        self.mounts.mkdir()
        (self.root / "logs").mkdir()
        run("mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", self.mounts)
        access.make_secrets(self.root)
        root = host.mount([base], self.mounts / "common")
        access.let_in(self.root, root)
        names = {"localhost": "127.0.0.1", "glpi": record.address(GLPI)} | {h.name: h.address for h in record.hosts}
        (root / "etc/hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
        run("umount", root)

    def _boot(self, record: Record, base: Path, each: Host) -> str:
        """Make a host and start it; returns its public key."""
        folder = self.mounts / each.name
        root = host.mount([self.mounts / "common/upper", base], folder)
        key = host.make_unique(root, each)
        network.make_namespace(folder / "netns")
        network.make_link(record, each.address, folder / "netns")
        host.boot(record, each, root, folder / "netns", self._log(each.name))
        return key

    # --- what is up, and its end

    def _is_complete(self) -> bool:
        return (self.root / "complete").exists()

    def _what_is_up(self, wanted: int) -> str:
        record = Record.load(self._record)
        assert record is not None, "it is written first"
        return f"The fleet is up already: {', '.join(each.name for each in record.hosts)}"

    def _log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def _remove(self) -> None:
        """Remove what there is of a fleet, however far it came. Safe to call at any time."""
        record = Record.load(self._record)
        if record is not None:
            cgroups.remove(record.cgroup)
            with locked(_MACHINE_LOCK):
                network.remove_links(record)
                before, after = record.inotify
                if (now := machine.inotify_limit()) != before:
                    machine.set_inotify_limit(now - (after - before))
        for mount in reversed(_mounts_under(self.mounts)):
            run("umount", mount)
        if self.root.exists():
            shutil.rmtree(self.root)


def _mounts_under(folder: Path) -> list[str]:
    """Where something is mounted at or below a folder, in the order of mounting. **Source:** proc(5), mountinfo."""
    points = [line.split()[4].encode().decode("unicode_escape") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if Path(point).is_relative_to(folder)]


def tell(text: str) -> None:
    """Progress, to standard error."""
    print(f"fleet: {text}", file=sys.stderr, flush=True)
