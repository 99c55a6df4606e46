"""A Docker engine of the sandbox's own, and its Compose project: the patient's workers and beat in
containers.

The image is empty; what runs is this machine's own Python and checkout, mounted read-only at their
own paths. All of it is in one folder, one control group and one bridge, which are removed with it,
however the engine ended.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from ipaddress import IPv4Network
from pathlib import Path

from lab import packages
from lab.fleet import cgroups

PROJECT = "printer_inventory"
SERVICES = ("worker_high", "worker_low", "worker_daemon", "beat")
_IMAGE = "celery-runbooks-sandbox:1"
_PACKAGES = {"dockerd": "docker.io", "docker-compose": "docker-compose"}
_UP_S = 30.0
_GONE_S = 20.0

Done = subprocess.CompletedProcess[bytes]


class DockerError(RuntimeError):
    """The engine or its containers cannot be put up; the message says why."""


def require() -> None:
    """Root, and Docker with Compose, which are installed where they are missing. Raises
    DockerError.
    """
    if os.geteuid() != 0 or sys.platform != "linux":
        raise DockerError(
            "a sandbox with --manager docker needs root on Linux, for an engine of its own"
        )
    try:
        if missing := packages.lacking(_PACKAGES):
            packages.install(missing)
    except packages.PackagesError as error:
        raise DockerError(str(error)) from None


class Engine:
    """The engine whose files are in this folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket, self.log = folder, folder / "docker.sock", folder / "dockerd.log"
        digest = sha256(str(folder).encode()).digest()
        self.name = f"cr-docker-{digest.hex()[:8]}"
        self.bridge = f"crd{digest.hex()[:8]}"
        self.network = IPv4Network(
            (bytes([10, 128 + digest[0] % 100, digest[1], digest[2] & 0xF0]), 28)
        )
        self.gateway = str(self.network[1])

    def start(self) -> int:
        """Start it and make its network and image; returns its pid."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            "dockerd", "--host", f"unix://{self.socket}", "--data-root", self.folder / "data",
            "--exec-root", self.folder / "run", "--pidfile", self.folder / "pid", "--bridge", "none",
            "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--storage-driver", "overlay2",
            "--cgroup-parent", f"/{self.name}/containers",
        ]  # fmt: skip
        cgroups.start(f"{self.name}/engine", command, self.log)
        deadline = time.monotonic() + _UP_S
        while self.docker("version", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise DockerError(f"dockerd did not start:\n{_end_of(self.log)}")
            time.sleep(0.05)
        options = [
            "--subnet",
            str(self.network),
            "--opt",
            f"com.docker.network.bridge.name={self.bridge}",
        ]
        self.docker("network", "create", *options, PROJECT)
        self.docker("import", "-", _IMAGE, stdin=_empty_image())
        return int((self.folder / "pid").read_text())

    def docker(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> Done:
        return self._run(["docker", *arguments], stdin=stdin, check=check)

    def compose(self, file: Path, *arguments: str, project: str = PROJECT) -> Done:
        return self._run(["docker-compose", "-p", project, "-f", str(file), *arguments])

    def _run(self, command: Sequence[str], *, stdin: bytes = b"", check: bool = True) -> Done:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}"}
        done = subprocess.run(
            command, input=stdin, capture_output=True, env=environment, check=False
        )
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise DockerError(
                f"{' '.join(command[:4])} failed with exit code {done.returncode}:\n{said[-1500:]}"
            )
        return done

    def remove(self) -> None:
        """End it and its containers, also where it was killed, and remove what it leaves: mounts,
        bridge, groups.
        """
        containers = f"{self.name}/containers"
        for pid in cgroups.pids(f"{self.name}/engine"):
            _signal(
                pid, signal.SIGTERM
            )  # so that it starts no container again; shims end with theirs
        deadline = time.monotonic() + _GONE_S
        while cgroups.pids(self.name) and time.monotonic() < deadline:
            for pid in cgroups.pids(containers):
                _signal(pid, signal.SIGKILL)
            for pid in () if cgroups.pids(containers) else cgroups.pids(f"{self.name}/engine"):
                _signal(pid, signal.SIGTERM)
            time.sleep(0.05)
        cgroups.remove(self.name)
        for directory in _left_groups(self.name):
            with suppress(OSError):
                directory.rmdir()
        for mount in sorted(_mounts_in(self.folder), reverse=True):
            subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
        if Path("/sys/class/net", self.bridge).exists():
            subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)


def write_project(file: Path, checkout: Path, app: Path, env_file: Path) -> None:
    """The Compose file of the patient's workers and beat, as an operator would have written it."""
    python, patient = str(checkout / ".venv/bin/python"), str(checkout / "lab/patient")
    venv = checkout / ".venv"
    mounts = {
        "/usr": "/usr",
        sys.base_prefix: sys.base_prefix,
        str(venv.resolve()): str(venv),
        patient: patient,
    }
    volumes = [f"{source}:{target}:ro" for source, target in mounts.items()] + [f"{app}:{app}"]
    celery = [
        python,
        "-m",
        "celery",
    ]  # APP names the application: the folder distinguishes a worker of another sandbox
    usual = {
        "image": _IMAGE, "working_dir": patient, "env_file": str(env_file), "volumes": volumes,
        "environment": {"APP": PROJECT},
        "restart": "unless-stopped", "stop_grace_period": "60s",
    }  # fmt: skip
    options = ["--pool=prefork", "--without-gossip", "--without-mingle", "--loglevel=INFO"]
    commands = {
        name: [*celery, "worker", "-n", f"{name}@%h", "-Q", queue, "-c", str(number), *options]
        for name, queue, number in (
            ("worker_high", "high_priority", 2), ("worker_low", "low_priority", 2), ("worker_daemon", "daemon", 1),
        )
    }  # fmt: skip
    commands["beat"] = [
        *celery,
        "beat",
        f"--schedule={app}/run/beat-schedule",
        "--pidfile=",
        "--loglevel=INFO",
    ]
    services = {name: {**usual, "command": command} for name, command in commands.items()}
    networks = {"default": {"external": True, "name": PROJECT}}
    file.write_text(
        json.dumps({"version": "2.4", "services": services, "networks": networks}, indent=2)
    )


def _empty_image() -> bytes:
    """A root folder that has only what is mounted on, and the user root."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in (
            "usr",
            "etc",
            "tmp",
            "run",
            "proc",
            "sys",
            "dev",
            "root",
            "sbin",
            "var",
            "var/lib",
        ):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(folder)
        for name in ("bin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for name, text in (
            ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
            ("etc/group", b"root:x:0:\n"),
        ):
            file = tarfile.TarInfo(name)
            file.size = len(text)
            tar.addfile(file, io.BytesIO(text))
    return out.getvalue()


def _left_groups(name: str) -> Iterator[Path]:
    """The groups of this name, and below it, in every hierarchy, the deepest first."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - cgroup" in line:
            for directory, _, _ in os.walk(Path(line.split()[4]) / name, topdown=False):
                yield Path(directory)


def _mounts_in(folder: Path) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split()[4].encode().decode("unicode_escape")
        if place.startswith(f"{folder}/"):
            yield place


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_of(log: Path, lines: int = 15) -> str:
    return (
        "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
        if log.exists()
        else "it wrote no log"
    )
