"""The fleet of one checkout: put up whole or not at all, and removed without a trace."""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab import incident
from lab.fleet import access, cgroups, faults, host, latency, machine, network
from lab.fleet.application import Application
from lab.fleet.image import image, locked
from lab.fleet.record import GLPI, Host, Record, fleet_id, free_network
from lab.fleet.shell import FleetError, run
from runbooks.core.command import Command

_MACHINE_LOCK = Path("/run")  # held while something machine-wide is chosen or changed
_DOWN = Command("fleet", "--down")
_AFRESH = f"For a fresh fleet: {_DOWN}, then {Command('fleet')}."


def host_names(count: int) -> list[str]:
    """The names of a fleet's hosts: the broker's, then the workers'. Raises ValueError."""
    if not 2 <= count <= 100:
        raise ValueError(
            f"--hosts: {count} is not a number from 2 to 100; the first host is the broker's"
        )
    return ["broker", *(f"web{number}" for number in range(1, count))]


class Fleet:
    """The fleet of one checkout, everything under its folder `.fleet`."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.root = checkout / ".fleet"
        self.mounts = (
            self.root / "run"
        )  # a tmpfs: the hosts' layers and mounts, the network namespaces
        self._record = self.root / "record.json"
        self._complete = self.root / "complete"

    # --- what an operator asks for

    def up(self, names: Sequence[str], latency_ms: Mapping[str, float]) -> str:
        """Start the fleet, unless it is up; return what to print. Raises
        FleetError.
        """
        machine.require_root()
        machine.require_tools(tell)
        base = image(self.checkout, tell)
        with locked(self.checkout):
            if self._complete.exists():
                return self._what_is_up(names, latency_ms)
            self._remove()
            try:
                self._build(base, names, latency_ms)
            except BaseException:
                self._remove()
                raise
        return (
            f"{len(names)} hosts are up, broken in several ways. "
            f"Look: {Command('diagnose', '--inventory', '.fleet/inventory.yaml')}. "
            f"Log in: ssh -F .fleet/ssh_config {names[-1]}. End it: {_DOWN}."
        )

    def down(self) -> str:
        """Remove everything of the fleet. Raises FleetError."""
        if not self.root.exists():
            return "There is no fleet."
        machine.require_root()
        with locked(self.checkout):
            self._remove()
        return "The fleet is down; nothing of it is left."

    def record(self) -> Record | None:
        """The fleet that is up, or was begun; None where there is none."""
        return Record.load(self._record)

    # --- putting it up

    def _build(self, base: Path, names: Sequence[str], latency_ms: Mapping[str, float]) -> None:
        self.root.mkdir(mode=0o700)
        (self.root / "logs").mkdir()
        record = self._claim(names, latency_ms)
        application = Application.of(record)
        access.make_secrets(self.root)
        access.write_secret(self.root / "broker.url", application.broker_url)
        access.write_secret(self.root / "results.url", application.result_backend)
        tell("installing the application")
        self.mounts.mkdir()
        run("mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", self.mounts)
        layers = [self._common_layer(record, application, base), base]
        tell(f"booting {len(names)} hosts")
        delayed = self._start_delay_line(record)
        keys = {
            each: self._boot(record, application, layers, each, by_tap=each in delayed)
            for each in record.hosts
        }
        application.start_glpi(self.checkout, record, self.mounts / "glpi", self._log("glpi"))
        access.write_known_hosts(self.root, keys)
        access.write_ssh_config(self.root, record.hosts)
        access.write_inventory(self.root, record.hosts)
        for each in record.hosts:
            host.await_ready(record, each, self._log(each.name))
        faults.leak(record)
        tell(f"queueing {incident.POLLS:,} polls and {incident.STUCK_CHECKS} stuck GLPI checks")
        incident.fill_queue(application.broker_url)
        faults.await_leaked(record, application.broker_url)
        self._complete.touch()

    def _claim(self, names: Sequence[str], latency_ms: Mapping[str, float]) -> Record:
        """Choose and take what the fleet has of this machine, written down first."""
        with locked(_MACHINE_LOCK):
            id = fleet_id(self.checkout)
            own = free_network(id, network.taken_networks())
            record = Record.of(id, own, {name: latency_ms.get(name, 0) for name in names})
            record.save(self._record)
            network.make_bridge(record)
            machine.claim(id, len(names))
        return record

    def _common_layer(self, record: Record, application: Application, base: Path) -> Path:
        """What is the same on all hosts of the fleet, as one more layer over the image."""
        root = host.mount([base], self.mounts / "common")
        access.let_in(self.root, record, root)
        names = {"localhost": "127.0.0.1", "glpi": record.address(GLPI)} | {
            h.name: h.address for h in record.hosts
        }
        (root / "etc/hosts").write_text(
            "".join(f"{address} {name}\n" for name, address in names.items())
        )
        application.install(self.checkout, record, root)
        run("umount", root)
        return self.mounts / "common/upper"

    def _start_delay_line(self, record: Record) -> Sequence[Host]:
        """Start it where it is needed; returns the hosts whose links it carries."""
        delayed = [each for each in record.hosts if each.latency_ms]
        if not delayed or latency.has_netem(record):
            return []
        latency.start_delay_line(self.checkout, record, delayed, self._log("delay"))
        return delayed

    def _boot(
        self,
        record: Record,
        application: Application,
        layers: Sequence[Path],
        each: Host,
        *,
        by_tap: bool,
    ) -> str:
        """Make a host and start it; returns its public key."""
        folder = self.mounts / each.name
        namespace = folder / "netns"
        root = host.mount(layers, folder)
        key = host.make_unique(root, each)
        faults.spoil(record.hosts, each, root)
        if each == record.hosts[0]:
            application.install_broker(record, root)
        network.make_namespace(namespace)
        network.join(record, each.address, namespace, by_tap=by_tap)
        if each.latency_ms and not by_tap:
            latency.add_netem(record, each, namespace)
        host.boot(record, each, root, namespace, self._log(each.name))
        return key

    def _log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    # --- what is up, and its end

    def _what_is_up(self, names: Sequence[str], latency_ms: Mapping[str, float]) -> str:
        record = self.record()
        assert record is not None, "it was on the disk before the rest"
        if dead := [each.name for each in record.hosts if host.leader(record, each) is None]:
            raise FleetError(f"{', '.join(dead)} of the fleet runs no more. {_AFRESH}")
        wanted = {name: latency_ms.get(name, 0) for name in names}
        if {each.name: each.latency_ms for each in record.hosts} != wanted:
            raise FleetError(f"Another fleet is up: {_described(record)}. {_AFRESH}")
        return f"The fleet is up already, as it was left: {_described(record)}. {_AFRESH}"

    def _remove(self) -> None:
        """Remove what there is of a fleet, however far it came. Safe to call at any time."""
        if record := self.record():
            cgroups.remove(record.cgroup)
            for each in record.hosts:
                host.forget(record, each, self.mounts / each.name / "root")
            with locked(_MACHINE_LOCK):
                network.remove_links(record)
                machine.release(record.id)
        for mount in reversed(_mounts_under(self.mounts)):
            run("umount", mount)
        if self.root.exists():
            shutil.rmtree(self.root)


def _described(record: Record) -> str:
    return ", ".join(
        each.name + (f" (+{each.latency_ms:g} ms)" if each.latency_ms else "")
        for each in record.hosts
    )


def _mounts_under(folder: Path) -> list[str]:
    """Where something is mounted at or below a folder, in the order of mounting.

    **Source:** proc(5), mountinfo: the fifth field, with octal escapes for spaces and the like.
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [
        re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines
    ]
    return [point for point in points if Path(point).is_relative_to(folder)]


def tell(text: str) -> None:
    """Progress, to standard error: standard output belongs to the verbs."""
    print(f"fleet: {text}", file=sys.stderr, flush=True)
