"""Keep the answers of loaded applications, so that a later look need not load them again.

`applications/APPLICATION/HOST.json` in the state directory (0600) holds the answer of the last
load, and the files that it came from. It is valid as long as all of these are unchanged: the
modules and other files that the load read (size and time); the contents of the environment file,
units and drop-ins; this tool's question; and the inventory's place of the application. The look
checks these files anyway. Every look at a host renews its record. A record that was not renewed for
30 days, such as that of a host that left the inventory, is removed.
"""

import os
import time
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct

from runbooks.core.application import Application
from runbooks.core.effects import sha256
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import HostState
from runbooks.core.private import make_private, require_private
from runbooks.diagnosis.since_start import loads
from runbooks.hosts.application import SOURCES

UNUSED_S = 30 * 86_400


class Kept(Struct, frozen=True):
    """The answer of an application."""

    asked: str
    """A digest of the question and the environment that it was loaded with."""
    said: Application


def recall(state_directory: Path, app: str, host: str) -> Kept | None:
    """Return the record of a host; None if there is none, or another user may have written it."""
    path = _path(state_directory, app, host)
    with suppress(OSError, RunbookError, msgspec.MsgspecError):
        require_private(path.parents[2], path.parents[1], path.parent, path)
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    return None


def still_holds(kept: Kept, host: FleetHost, app: str, state: HostState) -> bool:
    """Whether a new load would give the same answer, by what the look has seen."""
    if state.digest != kept.said.came_from.digest:
        return False
    return kept.asked == _asked(host, app, state)


def keep(state_directory: Path, host: FleetHost, app: str, state: HostState) -> None:
    """Record the answer of this look's application, unless its files changed during the load.

    If it cannot be written, the next look loads the application again.
    """
    said = state.application
    if said is None or not said.came_from.digest:
        return
    if not host.settings.env_file:
        # It was loaded with the environment of a process, whose changes cannot be seen.
        return
    path = _path(state_directory, app, host.name)
    with suppress(OSError):
        make_private(path.parent)
        beside = path.with_suffix(f".{os.getpid()}.new")
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(Kept(_asked(host, app, state), said)))
        beside.rename(path)


def forget_unused(state_directory: Path) -> None:
    """Remove the records of all applications that no look has renewed for `UNUSED_S`."""
    for path in (state_directory / "applications").glob("*/*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > UNUSED_S:
                path.unlink()


def _asked(host: FleetHost, app: str, state: HostState) -> str:
    """Return a digest of everything that a load depends on, except for the files that it reads."""
    settings = host.settings
    own = (app, settings.directory, settings.python, settings.user, settings.group)
    read: dict[str, str] = {}
    for service in host.services:
        for path in loads(host, service, None):
            file = state.files.get(path)
            if file:
                read[path] = sha256(file.content)
    drop_ins: dict[str, str] = {}
    for found in state.services.values():
        for path, drop_in in found.drop_ins.items():
            drop_ins[path] = drop_in.digest
    asked = (_question(), own, sorted(read.items()), sorted(drop_ins.items()))
    return sha256(msgspec.json.encode(asked))


@cache
def _question() -> str:
    folder = files("runbooks.hosts")
    return sha256(b"".join(folder.joinpath(name).read_bytes() for name in SOURCES))


def _path(state_directory: Path, app: str, host: str) -> Path:
    folder = state_directory / "applications" / quote(app, safe="")
    return folder / f"{quote(host, safe='')}.json"
