"""A cgroup of each host's own in every hierarchy its systemd works in, and the fleet's processes
found by them.

Without it systemd-nspawn puts the payload of all hosts into one cgroup, and they fight over one
`system.slice`. **Source:** cgroups(7), systemd-nspawn(1) `--keep-unit`, cgroup v1's `cgroup.procs`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# systemd 252 uses these of cgroup v1. Not cpu: there the group of all hosts has the weight of one
# process.
_CONTROLLERS = {"name=systemd", "cpuacct", "blkio", "memory", "devices", "pids"}
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'
_GONE_S = 20.0


def create(name: str) -> None:
    """Make the cgroup `name`, parents included, in every hierarchy."""
    for root in _roots():
        (root / name).mkdir(parents=True, exist_ok=True)


def inside(name: str) -> list[str]:
    """What to put before a command to run it in the cgroup `name`, made if need be, from its first
    instant on.
    """
    create(name)
    return ["sh", "-euc", _ENTER, "sh", *(str(root / name) for root in _roots()), "--"]


def start(name: str, command: Sequence[object], log: Path, **options: Any) -> None:
    """Start a process in the cgroup `name` that goes on when this one ends; `options` are
    `subprocess.run`'s.
    """
    words = ["setsid", "--fork", *inside(name), *map(str, command)]
    with log.open("wb") as out:
        subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True, **options
        )


def pids(name: str) -> set[int]:
    """Every process in the cgroup `name` and below it."""
    return {
        int(pid)
        for root in _roots()
        for file in _tree(root / name, "cgroup.procs")
        for pid in _read(file).split()
    }


def remove(name: str) -> None:
    """Kill every process in the cgroup `name` and remove it from every hierarchy. Raises
    TimeoutError.
    """
    deadline = time.monotonic() + _GONE_S
    while any((root / name).exists() for root in _roots()):
        for pid in pids(name):
            _kill(pid)
        for root in _roots():
            for directory in _directories(root / name):
                _remove_directory(directory)
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the cgroup {name} still has processes {_GONE_S:g} s after they were killed"
            )
        time.sleep(0.02)


def _roots() -> Iterator[Path]:
    """Where the hierarchies are mounted. **Source:** proc(5), mountinfo: optional fields end with `
    - `.
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        controllers = set(options.split(","))
        if kind == "cgroup2" or (
            kind == "cgroup" and controllers & _CONTROLLERS and "cpu" not in controllers
        ):
            yield Path(left.split()[4])


def _directories(top: Path) -> Iterator[Path]:
    for directory, _, _ in os.walk(top, topdown=False):
        yield Path(directory)


def _tree(top: Path, name: str) -> Iterator[Path]:
    return (directory / name for directory in _directories(top))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # removed meanwhile, or a threaded cgroup of v2
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _remove_directory(directory: Path) -> None:
    with suppress(OSError):  # still busy, or gone
        directory.rmdir()
