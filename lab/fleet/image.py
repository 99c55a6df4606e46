"""Root file systems of Debian, built once and cached: the one that all hosts share, and one with an
old Python.
"""

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from platformdirs import user_cache_path

from lab.fleet.machine import Tell
from lab.fleet.shell import FleetError, run

SUITE = "bookworm"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "openssh-server", "cron", "python3", "sudo", "logrotate",
            "procps", "iproute2", "redis-server")  # fmt: skip
SETUP = Path(__file__).with_name("image.sh")
SITE_PACKAGES = "srv/venv/lib/python3.11/site-packages"
# What Celery on Redis and Django come to on the image's Python 3.11.2; all of it is pure Python.
PATIENT_PACKAGES = ("amqp", "asgiref", "async-timeout", "billiard", "celery", "click", "click-didyoumean",
                    "click-plugins", "click-repl", "django", "kombu", "packaging", "prompt-toolkit", "python-dateutil",
                    "redis", "six", "sqlparse", "typing-extensions", "tzlocal", "vine", "wcwidth")  # fmt: skip

OLD_SUITE = "bullseye"
OLD_PACKAGES = ("python3-celery", "python3-redis")


def image(checkout: Path, tell: Tell) -> Path:
    """The directory of the hosts' root file system, built if it is not there yet. Raises
    FleetError.
    """
    requirements = _requirements((checkout / "requirements.lock").read_text())
    made_from = (SUITE, *PACKAGES, SETUP.read_text(), requirements)
    return cached("fleet", made_from, tell, lambda root: _build(root, requirements))


def old_python(tell: Tell) -> Path:
    """The directory of a Debian 11 with its Python 3.9 and Celery 5.0, built if not there yet.
    Raises FleetError.
    """
    return cached(
        "old",
        (OLD_SUITE, *OLD_PACKAGES),
        tell,
        lambda root: _debootstrap(root, OLD_SUITE, OLD_PACKAGES),
    )


def cached(name: str, made_from: Sequence[str], tell: Tell, build: Callable[[Path], None]) -> Path:
    """A directory of this user's cache, built again when it is made from anything else."""
    cache = user_cache_path("celery-runbooks", ensure_exists=True)
    digest = hashlib.sha256("\n".join(made_from).encode()).hexdigest()[:12]
    directory = cache / f"{name}-{digest}"
    with locked(cache):
        if not directory.exists():
            tell(f"building a root file system in {directory} (once, about a minute)")
            unfinished = cache / f"{name}.unfinished"
            if unfinished.exists():
                shutil.rmtree(unfinished)
            build(unfinished)
            unfinished.rename(directory)
    return directory


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time; the kernel lets go of the lock when the process ends."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(root: Path, requirements: str) -> None:
    _debootstrap(
        root, SUITE, PACKAGES, f'--customize-hook=chroot "$1" sh -s <{shlex.quote(str(SETUP))}'
    )
    with TemporaryDirectory() as scratch:
        wanted = Path(scratch, "requirements.txt")
        wanted.write_text(requirements)
        run(*installer(Path(scratch)), "install", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes",
            "--python-version=3.11", f"--target={root / SITE_PACKAGES}", f"--requirement={wanted}")  # fmt: skip
    run("chroot", root, "/srv/venv/bin/python", "-m", "compileall", "-q", "/" + SITE_PACKAGES)
    run(
        "chroot",
        root,
        "/srv/venv/bin/python",
        "-c",
        "import celery.bin.worker, django, kombu.transport.redis",
    )


def _debootstrap(root: Path, suite: str, packages: Sequence[str], *options: str) -> None:
    """Build in namespaces of its own, and as this process's child: killed, it leaves neither mounts
    nor processes.
    """
    run("setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
        "mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}", "--dpkgopt=path-exclude=/usr/share/man/*",
        *options, suite, root)  # fmt: skip


def installer(scratch: Path) -> list[str]:
    """An installer of this machine, so that it reaches the package index as `inv` itself did."""
    if uv := shutil.which("uv"):
        return [uv, "pip"]
    run(sys.executable, "-m", "venv", scratch / "venv")
    return [str(scratch / "venv/bin/python"), "-m", "pip", "--disable-pip-version-check"]


def _requirements(lock: str) -> str:
    """The lock file's versions and hashes of the patient's packages, without their environment
    markers.
    """
    entries = re.findall(r"^([a-z0-9-]+)==(\S+).*\\\n((?: +--hash=.*\n)+)", lock, re.MULTILINE)
    wanted = [
        f"{name}=={version} \\\n{hashes}"
        for name, version, hashes in entries
        if name in PATIENT_PACKAGES
    ]
    if len(wanted) != len(PATIENT_PACKAGES):
        raise FleetError(
            f"requirements.lock lacks some of what the patient needs: {', '.join(PATIENT_PACKAGES)}"
        )
    return "".join(wanted)
