"""The grounds that faults are injected on: healthy fleets, each put up once for many faults."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import redis

from lab.fleet.host import on_host
from lab.fleet.world import FleetWorld, broker_of, healed
from lab.world import Done, World, make_world

_VARIABLES = "        celery_expected_tasks:\n"


class GroundError(Exception):
    """A ground cannot be put up, or a verb printed no findings; the message ends with what was
    printed.
    """


class Ground(Protocol):
    """What every ground offers to faults and to the matrix."""

    @property
    def world(self) -> World:
        """The copy of the checkout."""

    @property
    def inventory(self) -> Path:
        """Its inventory, which a fault may change and has to put back."""

    def broker(self) -> "redis.Redis":
        """A client of the workers' db."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The sandbox of a copy: one host, this machine."""

    world: World

    @property
    def inventory(self) -> Path:
        return self.world.path / "inventory.yaml"

    def broker(self) -> "redis.Redis":
        return self.world.broker()

    def script(self, name: str, *arguments: str, **environment: str) -> None:
        """Run one of the application's own scripts, as `start_workers.sh worker_low`."""
        home = {"PRINTER_INVENTORY_HOME": str(self.world.root / "app")}
        home["PRINTER_INVENTORY_PYTHON"] = str(self.world.path / ".venv/bin/python")
        run(
            [f"./{name}", *arguments],
            self.world.path / "lab/patient",
            self.world.environment | home | environment,
        )

    def pid(self, service: str) -> int:
        """The main process of a service, by its pid file."""
        return int((self.world.root / f"app/run/{service}.pid").read_text().split()[0])

    def log(self, service: str) -> Path:
        return self.world.root / f"app/logs/{service}.log"

    @property
    def application(self) -> dict[str, str]:
        """The variables of the environment file."""
        return dict(
            line.split("=", 1)
            for line in self.world.env_file.read_text().splitlines()
            if line[:1] != "#"
        )

    def restart(self, *services: str, **environment: str) -> None:
        """Stop services and start them, with what is given in the environment."""
        self.script("stop_workers.sh", *services)
        self.script("start_workers.sh", *services, **environment)

    def manage(self, *arguments: str) -> None:
        """Run the application's `manage.py`."""
        python = str(self.world.path / ".venv/bin/python")
        variables = self.world.environment | self.application
        run([python, "manage.py", *arguments], self.world.path / "lab/patient", variables)

    @contextmanager
    def settings(self, lines: str, *services: str) -> Iterator[None]:
        """Add to the application's settings, and let these services take that up, and then back."""
        file = self.world.path / "lab/patient/printer_inventory/settings.py"
        before, at = file.read_bytes(), file.stat()
        file.write_bytes(before + lines.encode())
        try:
            if services:
                self.restart(*services)
            yield
        finally:
            file.write_bytes(before)
            os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))
            if services:
                self.restart(*services)

    @contextmanager
    def environment(self, **values: Callable[[str], str]) -> Iterator[None]:
        """Change variables of the environment file; restore the file and its time afterwards."""
        file = self.world.env_file
        before, at = file.read_text(), file.stat()
        lines = [line.partition("=") for line in before.splitlines()]
        file.write_text("".join(
            f"{name}{sign}{values[name](value) if name in values else value}\n" for name, sign, value in lines
        ))  # fmt: skip
        try:
            yield
        finally:
            file.write_text(before)
            os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))

    @contextmanager
    def variables(self, lines: str) -> Iterator[None]:
        """Give the inventory more variables, as lines of YAML."""
        with text_of(
            self.inventory,
            (_VARIABLES, "".join(f"        {line}\n" for line in lines.splitlines()) + _VARIABLES),
        ):
            yield


@dataclass(frozen=True, slots=True)
class Hosts:
    """Three real hosts with systemd and sshd: the broker's, web1 and web2."""

    world: FleetWorld

    @property
    def inventory(self) -> Path:
        return self.world.fleet / "inventory.yaml"

    def broker(self) -> "redis.Redis":
        return broker_of(self.world)

    def as_root(self, host: str, command: str, stdin: str = "") -> str:
        """Run a shell command as root on a host, also where no ssh leads there; returns what it
        printed.

        It ends with the first part that fails. Raises FleetError.
        """
        record = self.world.record
        its = next(one for one in record.hosts if one.name == host)
        return on_host(record, its, "sh", "-euc", command, stdin=stdin)


@contextmanager
def sandbox(folder: Path, *flags: str) -> Iterator[Sandbox]:
    world = make_world(folder)
    try:
        up = world.inv("sandbox", "--healthy", *flags)
        if up.code != 0:
            raise GroundError(up.out + up.err)
        ground = Sandbox(world)
        # Containers are up before their workers.
        until(lambda: not look(ground).faults, "workers that answer", timeout_s=120)
        yield ground
    finally:
        world.inv("sandbox", "--down")


@contextmanager
def hosts(folder: Path) -> Iterator[Hosts]:
    with healed(folder, 3) as world:
        yield Hosts(world)


GROUNDS: dict[str, Callable[[Path], AbstractContextManager[Ground]]] = {
    "sandbox": sandbox,
    "supervisor": lambda folder: sandbox(folder, "--manager", "supervisor"),
    "docker": lambda folder: sandbox(folder, "--manager", "docker"),
    "fleet": hosts,
}


@dataclass(frozen=True, slots=True)
class Look:
    """What a verb found on a ground: its findings as they are printed, one after the other."""

    findings: list[dict[str, Any]]
    seconds: float

    @property
    def faults(self) -> list[str]:
        """The codes of all findings except notes."""
        return [one["code"] for one in self.findings if one["severity"] != "info"]


def look(ground: Ground, command: tuple[str, ...] = ("diagnose",)) -> Look:
    """Run a verb on a ground. Raises GroundError where it prints no findings."""
    done, seconds = _timed(ground, command)
    try:
        document = done.json
        crossed = [
            {"severity": "error", "caused_by": [], **one}
            for one in document.get("look", {}).get("crossings", ())
        ]
        findings = crossed if "look" in document else document["findings"]
    except (ValueError, KeyError):
        raise GroundError(
            f"inv {' '.join(command)} printed no findings:\n{done.out}{done.err}"
        ) from None
    return Look(findings, seconds)


def look_at_plan(ground: Ground, command: tuple[str, ...], code: str, says: str) -> Look:
    """Run a verb that prints a plan and no findings; the code is found if the plan says so."""
    done, seconds = _timed(ground, command)
    found = says in json.dumps(done.json)
    return Look([{"code": code, "severity": "error", "caused_by": []}] if found else [], seconds)


def _timed(ground: Ground, command: tuple[str, ...]) -> tuple[Done, float]:
    """What a verb printed, and how many seconds it took."""
    began_at = time.monotonic()
    done = ground.world.inv(*command, "--json", "--inventory", str(ground.inventory))
    return done, time.monotonic() - began_at


@contextmanager
def text_of(file: Path, *replacements: tuple[str, str]) -> Iterator[None]:
    """Change the text of a file while the block lasts. Raises GroundError where what should
    be replaced is missing.
    """
    before = file.read_text()
    text = before
    for old, new in replacements:
        if old not in text:
            raise GroundError(f"{file} has no {old!r}")
        text = text.replace(old, new)
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(before)


@contextmanager
def installed_by(ground: Ground, verb: str, *replacements: tuple[str, str]) -> Iterator[None]:
    """Another inventory, whose files a verb of this tool's installs; afterwards those of before."""

    def install() -> None:
        done = ground.world.inv(verb, "--yes", "--inventory", str(ground.inventory))
        if done.code != 0:
            raise GroundError(done.out + done.err)

    with text_of(ground.inventory, *replacements):
        install()
        yield
    install()


def until(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Wait for a condition. Raises GroundError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise GroundError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.02)


def run(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run a program; returns what it printed. Raises GroundError."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise GroundError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout
