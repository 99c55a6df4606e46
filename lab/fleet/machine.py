"""What the fleet needs of this machine: Linux, root, a few Debian packages and one kernel limit."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from lab import packages
from lab.fleet.shell import FleetError
from runbooks.core.command import Command

Tell = Callable[[str], None]

_TOOLS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap debian-archive-keyring", "ip": "iproute2",
          "ssh-keygen": "openssh-client"}  # fmt: skip
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_PER_HOST = 16  # systemd and its services hold 7 or 8
_CLAIMS = Path(
    "/run/celery-runbooks-fleets"
)  # a file for what was found, and one for each fleet: NAME-NUMBER


def require_root() -> None:
    """Raise FleetError where hosts cannot be made at all."""
    if not sys.platform.startswith("linux"):
        raise FleetError(
            "the fleet lab needs Linux: its hosts are systemd-nspawn containers. Try:"
            f" {Command('sandbox')}"
        )
    if os.geteuid() != 0:
        raise FleetError(
            "the fleet lab needs root, to make namespaces, mounts and cgroups. As root, on a"
            f" machine of your own: {Command('fleet')}; without root: {Command('sandbox')}"
        )


def require_tools(tell: Tell) -> None:
    """Install the Debian packages that the fleet needs and this machine lacks. Raises FleetError."""
    if lacking := packages.lacking(_TOOLS):
        tell(f"installing Debian packages: {', '.join(lacking)}")
        try:
            packages.install(lacking)
        except packages.PackagesError as error:
            raise FleetError(str(error)) from None


def claim(fleet_id: str, hosts: int) -> None:
    """Raise the limit on inotify instances for a fleet; twice is as once."""
    _CLAIMS.mkdir(exist_ok=True)
    if not any(_CLAIMS.glob("base-*")):
        (_CLAIMS / f"base-{int(_INOTIFY.read_text())}").touch()
    (_CLAIMS / f"{fleet_id}-{hosts * _INOTIFY_PER_HOST}").touch()
    _set_limit()


def release(fleet_id: str) -> None:
    """Undo what was raised for a fleet; the last one restores the original limit."""
    if _CLAIMS.exists():
        for claimed in _CLAIMS.glob(f"{fleet_id}-*"):
            claimed.unlink()
        _set_limit()
        if len(list(_CLAIMS.iterdir())) < 2:
            shutil.rmtree(_CLAIMS)


def _set_limit() -> None:
    """The limit follows from the claims alone, so it is correct whichever process was killed,
    and whichever fleet goes first.
    """
    _INOTIFY.write_text(str(sum(int(claim.name.rpartition("-")[2]) for claim in _CLAIMS.iterdir())))
