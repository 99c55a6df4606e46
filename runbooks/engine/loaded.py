"""What applications said when they were loaded, so that a later look need not load them again.

`applications/APPLICATION/HOST.json` in the state directory (0600) has the record of the last load,
and what it came from. It holds as long as all of that is as it was: the modules and other files
that the load read, by size and time; the environment file, units and drop-ins by what they say;
this tool's question, and where the inventory says the application is. The files are looked at in
the look that is made anyway. Every look of a host renews its record; one that no look has renewed
for 30 days, as of a host that left the inventory, is removed.
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
    """What an application said."""

    asked: str
    """A digest of what it was asked, and with which environment."""
    said: Application


def recall(state_directory: Path, app: str, host: str) -> Kept | None:
    """What was kept of a host; None where nothing is, or somebody else may have written it."""
    path = _path(state_directory, app, host)
    with suppress(OSError, RunbookError, msgspec.MsgspecError):
        require_private(path.parents[2], path.parents[1], path.parent, path)
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    return None


def still_holds(kept: Kept, host: FleetHost, app: str, state: HostState) -> bool:
    """Whether a load would say the same, by what the look has seen."""
    if state.digest != kept.said.came_from.digest:
        return False
    return kept.asked == _asked(host, app, state)


def keep(state_directory: Path, host: FleetHost, app: str, state: HostState) -> None:
    """Write down what the application of this look said; a load that something changed meanwhile is
    not kept.

    Where it cannot be written the next look loads it again.
    """
    said = state.application
    if said is None or not said.came_from.digest:
        return
    if not host.settings.env_file:
        # It has the environment of a process, and nothing shows when that is another one's.
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
    """Remove the records that no look has renewed for long, of whichever application."""
    for path in (state_directory / "applications").glob("*/*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > UNUSED_S:
                path.unlink()


def _asked(host: FleetHost, app: str, state: HostState) -> str:
    """A digest of all that a load depends on beside the files that it reads itself."""
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
