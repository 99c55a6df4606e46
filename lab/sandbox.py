"""The sandbox: the incident, live, as ordinary processes of the user, everything under `.sandbox/`.

A real Redis, the GLPI stand-in, the patient's workers and beat; broken as in the incident, or
healthy.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from lab import docker, incident, supervisord
from lab.redis_server import RedisServer
from runbooks.core.command import Command

_DOWN = Command("sandbox", "--down")
_READY_S = 20.0
MANAGERS = ("commands", "supervisor", "docker")
"""What can run its workers: the application's own scripts, or a supervisord or a Docker engine of
its own.
"""


class SandboxError(Exception):
    """The sandbox cannot be put up, or a part of it has died; the message ends with its last log
    lines.
    """


@dataclass(frozen=True, slots=True)
class Part:
    """A process of the sandbox; `created_at` distinguishes it from a later one with the same pid."""

    name: str
    pid: int
    created_at: float
    log: str

    def process(self) -> psutil.Process | None:
        """The living process, None when it is gone."""
        try:
            process = psutil.Process(self.pid)
            alive = (
                process.create_time() == self.created_at
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return None
        return process if alive else None


class Sandbox:
    """The sandbox of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.root = checkout / ".sandbox"
        self.app = self.root / "app"
        self.patient = checkout / "lab" / "patient"
        self.engine = docker.Engine(self.root / "docker")
        self._parts_file = self.root / "parts.json"

    # --- what an operator asks for

    def up(self, *, healthy: bool, manager: str = MANAGERS[0]) -> str:
        """Start the sandbox, unless it is up; return what to print. Raises
        SandboxError.
        """
        self._require_usable_path()
        if manager == "docker":
            docker.require()
        with self._alone():
            if self._is_complete():
                self._require_alive()
                chosen = ["--manager", manager] if manager != MANAGERS[0] else []
                again = Command("sandbox", *["--healthy"] * healthy, *chosen)
                return (
                    f"The sandbox is up already, as it was left. For a fresh one: {_DOWN}, then"
                    f" {again}."
                )
            self._end_everything()
            try:
                self._build(healthy=healthy, manager=manager)
            except BaseException:
                self._end_everything()
                raise
        state = "healthy" if healthy else "broken as in the incident"
        return f"The sandbox is up, {state}. Look: {Command('diagnose')}. End it: {_DOWN}."

    def _require_usable_path(self) -> None:
        if found := re.search(r'["\\*?\[\]{}\n]', str(self.checkout)):
            raise SandboxError(
                f"the path of this checkout holds {found[0]!r}, which logrotate cannot take:"
                f" {self.checkout}\n→ move the checkout to another folder, and put the sandbox up"
                " there; nothing was started"
            )

    def down(self) -> str:
        """End every process of the sandbox and remove its folder."""
        if not self.root.exists():
            return "There is no sandbox."
        with self._alone():
            self._end_everything()
        return "The sandbox is down; nothing of it runs, and .sandbox is gone."

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One of these at a time; the kernel lets go of the lock when the process ends."""
        with (self.checkout / ".sandbox.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- putting it up

    def _build(self, *, healthy: bool, manager: str) -> None:
        folders = ("systemd/system", supervisord.CONF_FOLDER, "cron.d", "logrotate.d")
        for directory in (self.app, *(self.root / "root/etc" / name for name in folders)):
            directory.mkdir(parents=True, mode=0o700)
        if manager != MANAGERS[0]:
            (self.root / "manager").write_text(manager)
        address = self._start_docker() if manager == "docker" else "127.0.0.1"
        tell("starting Redis and the GLPI stand-in")
        seen_by_containers = (
            ["--bind", "127.0.0.1", address, "--protected-mode", "no"]
            if manager == "docker"
            else []
        )
        redis = RedisServer.start(self.root / "redis", args=seen_by_containers)
        self._remember("redis", redis.pid, self.root / "redis/redis.log")
        broker, results = (
            f"redis://{address}:{redis.port}/{db}"
            for db in (incident.BROKER_DB, incident.RESULTS_DB)
        )
        self._write_secret(self.root / "broker.url", broker)
        self._write_secret(self.root / "results.url", results)
        tokens = incident.glpi_tokens()
        glpi = f"http://{address}:{self._start_glpi(address, tokens)}"
        self._write_env(broker, results, glpi, tokens, healthy=healthy)
        tell("creating the application's database")
        self._manage("migrate", "--verbosity", "0")
        self._manage("seed_printers", "--count", str(incident.PRINTERS))
        started = [] if healthy else ["worker_high", "worker_daemon", "beat"]
        if healthy:
            self._install_files()
        tell("starting the workers and beat")
        if manager == "supervisor":
            self._start_supervisord(started)
        elif manager == "docker":
            self._start_containers(started)
        else:
            self._script("start_workers.sh", *started)
        if not healthy:
            tell(f"queueing {incident.POLLS:,} polls and {incident.STUCK_CHECKS} stuck GLPI checks")
            incident.fill_queue(broker)
        (self.root / "complete").touch()

    def _start_docker(self) -> str:
        """Start an engine of its own; returns by which address its containers know this machine."""
        tell("starting Docker")
        pid = self.engine.start()
        self._remember("dockerd", pid, self.engine.log)
        return self.engine.gateway

    def _start_containers(self, services: Sequence[str]) -> None:
        """Make a container of each service, and start those of these services; where none is named,
        all.
        """
        file = self.root / "docker-compose.yml"
        (self.app / "run").mkdir()
        docker.write_project(file, self.checkout, self.app, self.app / "printer_inventory.env")
        self.engine.compose(file, "up", "--no-start")
        self.engine.compose(file, "start", *services)

    def _start_glpi(self, address: str, tokens: dict[str, str]) -> int:
        port_file, log = self.root / "glpi.port", self.root / "glpi.log"
        command = [
            sys.executable,
            "-m",
            "lab.glpi",
            "--address",
            address,
            "--port",
            "0",
            "--port-file",
            str(port_file),
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=self.checkout, env=os.environ | tokens, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        self._remember("glpi", process.pid, log)
        deadline = time.monotonic() + _READY_S
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SandboxError(f"the GLPI stand-in did not start:\n{last_lines(log)}")
            time.sleep(0.02)
        return int(port_file.read_text())

    def _write_env(
        self, broker: str, results: str, glpi: str, tokens: dict[str, str], *, healthy: bool
    ) -> None:
        text = incident.environment(
            broker_url=broker, result_backend=results, database=self.app / "db.sqlite3", glpi_url=glpi,
            glpi_tokens=tokens, healthy=healthy,
        )  # fmt: skip
        self._write_secret(self.app / "printer_inventory.env", text)

    def _write_secret(self, path: Path, text: str) -> None:
        path.touch(mode=0o600)
        path.write_text(text)

    def _start_supervisord(self, services: Sequence[str]) -> None:
        """With the programs of these services; where none is named, with those that are installed."""
        if services:
            self._install_files(supervisord.conf_names(services))
        log = self.root / "supervisord.log"
        self._remember("supervisord", supervisord.start(self.root).pid, log)
        if missing := supervisord.not_ready(self.root):
            raise SandboxError(f"a worker did not start:\n{last_lines(missing)}\n{last_lines(log)}")

    def _install_files(self, names: Collection[str] = ()) -> None:
        """Units, cron and logrotate files as the runbooks would install them; with `names` only
        these.
        """
        from runbooks.diagnosis.wanted_files import MODE, all_files
        from runbooks.inventory.build import build_fleet
        from runbooks.inventory.read import load_inventory
        from runbooks.inventory.templates import Templates

        inventory = load_inventory(self.checkout / "inventory.yaml")
        fleet = build_fleet(inventory, tuple(inventory.hosts))
        templates = Templates(self.checkout / "templates")
        for wanted in all_files(fleet, templates).values():
            for path, content in wanted["sandbox"].items():
                if not names or Path(path).name in names:
                    Path(path).write_bytes(content)
                    Path(path).chmod(MODE)

    def _manage(self, *arguments: str) -> None:
        from runbooks.core.envfile.edit import read

        variables = read((self.app / "printer_inventory.env").read_bytes(), "shell").values
        self._run([sys.executable, "manage.py", *arguments], variables)

    def _script(self, name: str, *arguments: str) -> None:
        self._run([f"./{name}", *arguments], {})

    def _run(self, command: list[str], variables: dict[str, str]) -> None:
        here = {"PRINTER_INVENTORY_HOME": str(self.app), "PRINTER_INVENTORY_PYTHON": sys.executable}
        done = subprocess.run(
            command, cwd=self.patient, env=os.environ | here | variables, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise SandboxError(
                f"{' '.join(command[-2:])} failed with exit code {done.returncode}:\n{last}"
            )

    # --- what runs

    def _remember(self, name: str, pid: int, log: Path) -> None:
        """Write a part down as soon as it runs, so that `--down` finds it whatever happens next."""
        part = Part(name, pid, psutil.Process(pid).create_time(), str(log))
        new = self._parts_file.with_suffix(".new")
        new.write_text(json.dumps([asdict(known) for known in (*self._parts(), part)]))
        new.replace(self._parts_file)

    def _parts(self) -> list[Part]:
        return (
            [Part(**part) for part in json.loads(self._parts_file.read_text())]
            if self._parts_file.exists()
            else []
        )

    def _is_complete(self) -> bool:
        return (self.root / "complete").exists()

    def _require_alive(self) -> None:
        workers = [self._worker_part(path) for path in sorted((self.app / "run").glob("*.pid"))]
        for part in (*self._parts(), *workers):
            if part is not None and part.process() is None:
                raise SandboxError(
                    f"{part.name} of the sandbox has died; its last log"
                    f" lines:\n{last_lines(Path(part.log))}\nFor a fresh sandbox: {_DOWN}, then"
                    f" {Command('sandbox')}."
                )

    def _worker_part(self, pid_file: Path) -> Part | None:
        """A worker by the pid file of `start_workers.sh`: its pid and its start in clock ticks
        after boot.
        """
        pid, ticks = map(int, pid_file.read_text().split())
        log = str(self.app / "logs" / f"{pid_file.stem}.log")
        created_at = psutil.boot_time() + ticks / os.sysconf("SC_CLK_TCK")
        return Part(pid_file.stem, pid, created_at, log)

    def _end_everything(self) -> None:
        """End what was started, the workers by their own script, and remove the folder. Safe to
        call at any time.
        """
        if self.engine.folder.exists():
            self.engine.remove()
        elif (self.app / "printer_inventory.env").exists():
            try:
                self._script("stop_workers.sh")
            except SandboxError as error:
                tell(f"{error}\nsandbox: ending the workers by their pids")
        workers = [self._worker_part(path) for path in (self.app / "run").glob("*.pid")]
        parts = [part for part in (*self._parts(), *workers) if part]
        for part in parts:
            if part.name == "supervisord":
                self._end_supervisord(part)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for part in parts:
                if process := part.process():
                    with suppress(psutil.NoSuchProcess):
                        end(process)
            _await_end(parts)
        if self.root.exists():
            shutil.rmtree(self.root)

    def _end_supervisord(self, part: Part) -> None:
        """It ends its programs before it ends; what outlives it, or was left by one that was
        killed, is killed.
        """
        if process := part.process():
            process.terminate()
        _await_end([part])
        if process := part.process():
            process.kill()
        left = supervisord.session_of(part.pid, self.checkout)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _await_end(parts: Sequence[Part], timeout_s: float = 10) -> None:
    """Wait until none of them lives. A zombie holds nothing any more."""
    deadline = time.monotonic() + timeout_s
    while any(part.process() for part in parts) and time.monotonic() < deadline:
        time.sleep(0.05)


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log file."""
    return (
        "\n".join(log.read_text(errors="replace").splitlines()[-count:])
        if log.exists()
        else f"{log} does not exist"
    )


def tell(text: str) -> None:
    """Progress, to standard error: standard output belongs to the verbs."""
    print(f"sandbox: {text}", file=sys.stderr, flush=True)
