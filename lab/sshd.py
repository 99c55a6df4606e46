"""A real sshd on a loopback port, run by the caller, the only user it accepts."""

import getpass
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.redis_server import ServerNotStartedError, free_port

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or ""


def make_key(path: Path, kind: str = "ed25519") -> Path:
    """A private key without a passphrase at `path`, its public half beside it."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", path.name, "-f", path], check=True
    )
    return path


@contextmanager
def running_sshd(
    directory: Path, host_keys: Sequence[Path], user_key: Path, *extra: str
) -> Iterator[int]:
    """The port of an sshd that shows these host keys and lets `user_key` in; `extra` are lines of
    its configuration.
    """
    directory.mkdir(exist_ok=True)
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation wants it
    port = free_port()
    authorized = directory / "authorized_keys"
    authorized.write_text(user_key.with_suffix(".pub").read_text())
    config = directory / "sshd_config"
    config.write_text(
        "\n".join(
            (
                f"Port {port}", "ListenAddress 127.0.0.1", f"PidFile {directory}/pid", "UsePAM no", "StrictModes no",
                f"AuthorizedKeysFile {authorized}", "PasswordAuthentication no", "MaxStartups 100:30:200",
                "LogLevel VERBOSE", *(f"HostKey {key}" for key in host_keys), *extra,
            )
        )
    )  # fmt: skip
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=log)
    try:
        _await_banner(process, port, directory / "log")
        yield port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def dark_port() -> Iterator[int]:
    """A loopback port that drops every packet sent to it, as a host does that is off: its queue is
    full for good.
    """
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        yield listener.getsockname()[1]


def _await_banner(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    while process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            continue
    raise ServerNotStartedError(f"sshd ended: {log.read_text()[-1000:]}")
