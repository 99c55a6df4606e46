"""What faults on real hosts have in common: root's commands there, and files that are put back with
their times.
"""

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lab.faults.grounds import Hosts, text_of, until

ENV_FILE = "/etc/printer_inventory.env"
APPLICATION = "/srv/printer_inventory"
UNITS = "/etc/systemd/system"
HIGH, LOW, DAEMON = (f"celery-worker@worker_{name}.service" for name in ("high", "low", "daemon"))
LOW_UNIT = f"{UNITS}/{LOW}"
PYTHON = "/srv/venv/bin/python"
THEIRS = "printers.service"
"""A unit that is not this tool's, and its text."""
WORKER = f"""\
[Service]
User=deploy
WorkingDirectory={APPLICATION}
EnvironmentFile={ENV_FILE}
ExecStart={PYTHON} -m celery -A printer_inventory worker -n printers@%%h -Q low_priority -c 1
Restart=always
RestartSec=2

[Install]
WantedBy=multi-user.target
"""


@contextmanager
def changed(ground: Hosts, host: str, change: str, back: str) -> Iterator[None]:
    """A host that a command of root's changes; another puts it back."""
    ground.as_root(host, change)
    try:
        yield
    finally:
        ground.as_root(host, back)


@contextmanager
def kept(ground: Hosts, host: str, path: str, change: str) -> Iterator[None]:
    """A file or folder that a command of root's changes, moves or removes; it comes back with its
    times.
    """
    aside = f"/root/{path.replace('/', '_')}"
    with changed(
        ground, host, f"cp -a {path} {aside}; {change}", f"rm -rf {path}; mv {aside} {path}"
    ):
        yield


@contextmanager
def away(ground: Hosts, host: str, path: str) -> Iterator[None]:
    """A file or folder that is not there."""
    aside = f"/root/{path.replace('/', '_')}"
    with changed(ground, host, f"mv {path} {aside}", f"mv {aside} {path}"):
        yield


def write(path: str, text: str) -> str:
    """The command that writes a file."""
    return f"printf %s {shlex.quote(text)} >{path}"


@contextmanager
def drop_in(ground: Hosts, unit: str, lines: str, *, restart: bool = False) -> Iterator[None]:
    """A drop-in of a unit on web1 with these lines of [Service]; `restart` starts the unit on it."""
    folder = f"{UNITS}/{unit}.d"
    again = f"systemctl reset-failed {unit}; systemctl restart {unit}" if restart else ":"
    file = write(f"{folder}/x.conf", f"[Service]\n{lines}\n")
    change = f"mkdir {folder}; {file}; systemctl daemon-reload; {again}"
    with changed(ground, "web1", change, f"rm -r {folder}; systemctl daemon-reload; {again}"):
        yield


@contextmanager
def installed(ground: Hosts, unit: str, text: str, then: str, host: str = "web1") -> Iterator[None]:
    """A unit of another owner, and what systemctl does with it: `enable`, `start` or both."""
    path = f"{UNITS}/{unit}"
    back = (
        f"systemctl disable --now {unit}; rm {path}; systemctl daemon-reload; systemctl"
        " reset-failed"
    )
    with changed(
        ground, host, f"{write(path, text)}; systemctl daemon-reload; systemctl {then} {unit}", back
    ):
        yield


@contextmanager
def one_more(ground: Hosts) -> Iterator[None]:
    """A unit of another owner on web1 whose worker consumes a queue of its own."""
    with installed(ground, THEIRS, WORKER.replace("-Q low_priority", "-Q other"), "start"):
        until_listens(ground, "printers@web1")
        yield


@contextmanager
def in_place_of_low(ground: Hosts, then: str) -> Iterator[None]:
    """A unit of another owner on web1 whose worker does the work of worker_low, which is stopped;
    `then` as for `installed`.
    """
    text = WORKER.replace("printers@", "worker_low@")
    with (
        changed(ground, "web1", f"systemctl stop {LOW}", f"systemctl start {LOW}"),
        installed(ground, THEIRS, text, then),
    ):
        until_listens(ground, "worker_low@web1")
        yield


@contextmanager
def named(ground: Hosts, text: str, then: str) -> Iterator[None]:
    """A unit of another owner in the place of worker_low's, which the inventory names; `then` as
    for `installed`.
    """
    name = "name: worker_low\n"
    with ExitStack() as stack:
        for host in (one.name for one in ground.world.record.hosts[1:]):
            stop, start = f"systemctl disable --now {LOW}", f"systemctl enable --now {LOW}"
            stack.enter_context(changed(ground, host, stop, start))
            stack.enter_context(away(ground, host, LOW_UNIT))
            stack.enter_context(
                installed(ground, THEIRS, text.replace("printers@", "worker_low@"), then, host)
            )
        stack.enter_context(
            text_of(ground.inventory, (name, f"{name}                unit: {THEIRS}\n"))
        )
        yield


def nodes(ground: Hosts) -> set[str]:
    """The names of the nodes that listen."""
    with ground.broker() as client:
        bound = client.smembers("_kombu.binding.celery.pidbox")
    return {entry.decode().rpartition("\x16")[2].removesuffix(".celery.pidbox") for entry in bound}


def until_listens(ground: Hosts, node: str) -> None:
    """Wait until a node listens. Raises GroundError."""
    until(lambda: node in nodes(ground), f"{node} to listen")
