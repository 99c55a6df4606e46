"""A copy of the checkout with a fleet of its own, driven through the real command line."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from platformdirs import user_cache_path

from lab.fleet.fleet import Fleet
from lab.fleet.record import Record, fleet_id
from lab.world import CHECKOUT, Done, World, make_world


@dataclass(frozen=True, slots=True)
class FleetWorld(World):
    """A copy of the checkout, and its fleet."""

    @property
    def environment(self) -> dict[str, str]:
        return super(FleetWorld, self).environment | {"XDG_CACHE_HOME": str(user_cache_path())}

    @property
    def fleet(self) -> Path:
        return self.path / ".fleet"

    @property
    def record(self) -> Record:
        record = Fleet(self.path).record()
        assert record is not None
        return record

    def ssh(self, host: str, command: str, stdin: str = "") -> Done:
        """Run a command on a host as a user of the fleet would: `web1`, or `operator@web1`."""
        words = ["ssh", "-F", str(self.fleet / "ssh_config"), "-o", "BatchMode=yes", host, command]
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def traces(self) -> set[str]:
        """Everything on this machine that names this fleet: links, mounts, cgroups, files under
        /run, processes.
        """
        id, folder = fleet_id(self.path), str(self.fleet)
        names = {name for top in ("/sys/class/net", "/run/systemd/nspawn/propagate", "/run/celery-runbooks-fleets")
                 if Path(top).exists() for name in os.listdir(top) if id in name}  # fmt: skip
        cgroups = {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/*{id}*")}
        mounts = {
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if folder in line
        }
        return names | cgroups | mounts | {str(process) for process in _processes(id, folder)}


def _processes(*words: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and any(
                w in " ".join(process.cmdline()) for w in words
            ):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def make_fleet_world(path: Path) -> FleetWorld:
    make_world(path)
    shutil.copy(CHECKOUT / "requirements.lock", path)
    return FleetWorld(path)


@contextmanager
def two_hosts(
    path: Path, first: Callable[[FleetWorld], object] = lambda _: None
) -> Iterator[FleetWorld]:
    """A fleet of two hosts, which a remediation has made healthy; `first` is done before it."""
    with healed(path, 2, first) as world:
        yield world


@contextmanager
def healed(
    path: Path, hosts: int, first: Callable[[FleetWorld], object] = lambda _: None
) -> Iterator[FleetWorld]:
    """A fleet of so many hosts, which a remediation has made healthy; `first` is done before it."""
    world = make_fleet_world(path)
    try:
        up = world.inv("fleet", "--hosts", str(hosts), timeout_s=600)
        assert up.code == 0, up.err
        with broker_of(world) as client:
            client.delete(*client.keys("low_priority*"))
        first(world)
        healed = world.inv(
            "remediate", "--yes", "--kill-running", "--inventory", ".fleet/inventory.yaml"
        )
        assert healed.code == 0, healed.out + healed.err
        yield world
    finally:
        down = world.inv("fleet", "--down")
        assert down.code == 0, down.err


def broker_of(world: FleetWorld) -> "redis.Redis":
    return redis.Redis.from_url((world.fleet / "broker.url").read_text().strip(), protocol=2)
