"""One host: the shared root file system with a writable layer of its own, booted by systemd-nspawn.

**Source:** systemd-nspawn(1) of systemd 252; overlayfs in the kernel's documentation.
"""

import shutil
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from lab.fleet import cgroups
from lab.fleet.record import Host, Record
from lab.fleet.shell import FleetError, run
from runbooks.core.command import Command

READY_S = 60.0
_NSPAWN = Path("/run/systemd/nspawn")


def mount(layers: Sequence[Path], folder: Path) -> Path:
    """Mount a root file system: the `layers`, uppermost first, under a writable one in `folder`;
    returns its path.
    """
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    lower = ":".join(map(str, layers))
    options = f"lowerdir={lower},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    run("mount", "-t", "overlay", "overlay", "-o", options, folder / "root")
    return folder / "root"


def in_root(record: Record, root: Path, script: str, stdin: str = "") -> str:
    """Run a shell script as root in a root file system that is not booted. Raises FleetError.

    It runs in the fleet's cgroup: should this process be killed, `--down` still finds and ends it.
    """
    group = cgroups.inside(f"{record.cgroup}/setup")
    return run(*group, "chroot", root, "sh", "-euc", script, stdin=stdin)


def make_unique(root: Path, host: Host) -> str:
    """Give a root file system its own identity; return the host's public key."""
    (root / "etc/hostname").write_text(f"{host.name}\n")
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    key = root / "etc/ssh/ssh_host_ed25519_key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"root@{host.name}", "-f", key)
    return key.with_suffix(".pub").read_text().strip()


def boot(record: Record, host: Host, root: Path, namespace: Path, log: Path) -> None:
    """Start the host's systemd; it goes on after this process has ended."""
    cgroups.start(group_of(record, host), [
        "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", f"--directory={root}",
        f"--machine={record.machine(host)}", f"--hostname={host.name}", f"--network-namespace-path={namespace}",
        "--link-journal=no", "--resolv-conf=off", "--timezone=off",
    ], log)  # fmt: skip


def forget(record: Record, host: Host, root: Path) -> None:
    """Remove what a killed systemd-nspawn leaves under /run.

    **Source:** systemd 252, src/nspawn/nspawn.c (propagate) and src/shared/discover-image.c:
    image_path_lock (locks).
    """
    shutil.rmtree(_NSPAWN / "propagate" / record.machine(host), ignore_errors=True)
    if root.exists():
        where = root.stat()
        (_NSPAWN / f"locks/inode-{where.st_dev}:{where.st_ino}").unlink(missing_ok=True)


def group_of(record: Record, host: Host) -> str:
    """The host's cgroup."""
    return f"{record.cgroup}/{host.name}"


def leader(record: Record, host: Host) -> int | None:
    """The pid, on this machine, of the host's PID 1; None when the host does not run."""
    for pid in cgroups.pids(group_of(record, host)):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[2:] == [
            "1"
        ]:
            return pid
    return None


def on_host(record: Record, host: Host, *command: object, stdin: str = "") -> str:
    """Run a command as root on a host without going through sshd. Raises FleetError, also where the
    host is down.
    """
    pid = leader(record, host)
    if pid is None:
        afresh = f"{Command('fleet', '--down')}, then {Command('fleet')}"
        raise FleetError(f"the host {host.name} does not run; for a fresh fleet: {afresh}")
    namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
    return run("nsenter", f"--target={pid}", *namespaces, "--", *command, stdin=stdin)


def await_ready(record: Record, host: Host, log: Path) -> None:
    """Wait until sshd answers and systemd has started everything. Raises FleetError with the end of
    the host's log.
    """
    deadline = time.monotonic() + READY_S
    while not _sshd_answers(host.address):
        if time.monotonic() > deadline:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise FleetError(
                f"the host {host.name} did not come up within {READY_S:g} s; its last"
                f" words:\n{last}"
            )
        time.sleep(0.05)
    on_host(
        record,
        host,
        "sh",
        "-euc",
        "systemctl is-system-running --wait || { systemctl --failed; exit 1; }",
    )


def _sshd_answers(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
