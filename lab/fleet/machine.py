"""What the fleet needs of this machine: Linux, root, a few Debian packages and one kernel limit."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from lab.fleet.shell import FleetError, run

Tell = Callable[[str], None]

_TOOLS = {"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "ip": "iproute2",
          "ssh-keygen": "openssh-client"}  # fmt: skip
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_PER_HOST = 16  # systemd and its services hold 7 or 8


def require_root() -> None:
    """Raise FleetError where hosts cannot be made at all."""
    if not sys.platform.startswith("linux"):
        raise FleetError("the fleet lab needs Linux: its hosts are systemd-nspawn containers. Try: inv sandbox")
    if os.geteuid() != 0:
        raise FleetError("the fleet lab needs root, to make namespaces, mounts and cgroups. Try: sudo ./inv fleet "
                         "on a machine of your own, or without root: inv sandbox")  # fmt: skip


def require_tools(tell: Tell) -> None:
    """Install the Debian packages that the fleet needs and this machine lacks. Raises FleetError."""
    lacking = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if not lacking:
        return
    if shutil.which("apt-get") is None:
        raise FleetError(f"{', '.join(lacking)} (Debian's names) must be installed, and this machine has no apt-get")
    tell(f"installing Debian packages: {', '.join(lacking)}")
    run("apt-get", "update", "--quiet")
    run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--quiet", "--yes",
        "--no-install-recommends", *lacking)  # fmt: skip


def inotify_limit() -> int:
    """How many inotify instances a user may have."""
    return int(_INOTIFY.read_text())


def set_inotify_limit(limit: int) -> None:
    _INOTIFY.write_text(f"{limit}\n")


def lower_inotify_limit(raised: tuple[int, int]) -> None:
    """Take back what was added for one fleet: another one may have added its own since."""
    before, after = raised
    if (now := inotify_limit()) != before:  # it is the same where a killed run did not come so far
        set_inotify_limit(now - (after - before))
