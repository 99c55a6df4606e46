"""Debian packages that the fleet lab, and in CI the tests, need of this machine."""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence

_LOCK_S = 120
"""How long to wait for another apt-get."""
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class PackagesError(RuntimeError):
    """Packages could not be installed; the message ends with apt-get's last words."""


def lacking(programs: Mapping[str, str]) -> list[str]:
    """The packages, of those given by program, whose program this machine does not have."""
    missing = [
        packages
        for program, packages in programs.items()
        if shutil.which(program, path=_PATH) is None
    ]
    return [package for packages in missing for package in packages.split()]


def install(packages: Sequence[str]) -> None:
    """Install packages; needs root. Raises PackagesError."""
    if shutil.which("apt-get") is None:
        names = ", ".join(packages)
        raise PackagesError(
            f"{names} (Debian's names) must be installed, and this machine has no apt-get"
        )
    _apt_get("update")
    _apt_get("install", "--yes", "--no-install-recommends", *packages)


def _apt_get(*arguments: str) -> None:
    """Run apt-get. It waits for dpkg's lock itself, but not for that of the lists."""
    command = ["apt-get", "--quiet", "-o", f"DPkg::Lock::Timeout={_LOCK_S}", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    deadline = time.monotonic() + _LOCK_S
    while True:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment
        )  # fmt: skip
        if done.returncode == 0:
            return
        if "Could not get lock" not in done.stderr or time.monotonic() > deadline:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise PackagesError(
                f"apt-get {arguments[0]} failed with exit code {done.returncode}:\n{last}"
            )
        time.sleep(1)
