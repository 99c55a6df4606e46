"""The files that services were started with, as runs saw them.

So a file that has changed since the start can be distinguished from one that was only touched.

`started/APPLICATION/HOST.json` in the state directory (0600) has the process of each service, and
digests of the files that it loads. A run writes it before it changes anything, and after it has
started something. Looks only read it.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.effects import sha256
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import HostState, ServiceState, Snapshot, StartedWith
from runbooks.core.private import make_private, require_private
from runbooks.diagnosis.since_start import MARGIN_S, has_environment_of, loads


class _Seen(Struct, frozen=True):
    """A process of a service, and the digests of the files that it was started with."""

    pid: int
    started_at: float
    files: dict[str, str]
    drop_ins: dict[str, str]
    unsure: tuple[str, ...]

    def recalled(self, found: ServiceState) -> StartedWith:
        late_s = abs(self.started_at - (found.started_at or math.inf))
        same = self.pid == found.pid and late_s < MARGIN_S
        return StartedWith(self.files, self.drop_ins, frozenset(self.unsure), same)


def recall(state_directory: Path, app: str, snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with the records of earlier runs about its services.

    Ignores records that another user may have written.
    """
    states = dict(snapshot.hosts)
    for name, state in snapshot.reachable().items():
        if state.services:
            seen = _read(_path(state_directory, app, name))
            states[name] = replace(state, services=_recalled(state.services, seen))
    return replace(snapshot, hosts=states)


def _recalled(
    services: Mapping[str, ServiceState], seen: Mapping[str, _Seen]
) -> dict[str, ServiceState]:
    recalled = dict(services)
    for name, found in services.items():
        if name in seen:
            recalled[name] = replace(found, started_with=seen[name].recalled(found))
    return recalled


def remember(
    state_directory: Path, app: str, hosts: tuple[FleetHost, ...], snapshot: Snapshot
) -> None:
    """Record what the services of this look were started with, if it is not recorded yet.

    If it cannot be written, a later look knows less, and restarts nothing because of it.
    """
    for host in hosts:
        state = snapshot.reachable().get(host.name)
        if not (state and state.files):
            continue
        new = dict(_seen(host, state))
        if new:
            with suppress(OSError):
                _write(_path(state_directory, app, host.name), new)


def _write(path: Path, new: Mapping[str, _Seen]) -> None:
    make_private(path.parent)
    beside = path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode({**_read(path), **new}))
    beside.rename(path)


def _seen(host: FleetHost, state: HostState) -> Iterator[tuple[str, _Seen]]:
    for service in host.services:
        found = state.services.get(service)
        if not found or found.pid is None or found.started_at is None:
            continue
        if found.started_with and found.started_with.same:
            continue
        files: dict[str, str] = {}
        unsure: set[str] = set()
        for path in loads(host, service, found):
            file = state.files.get(path)
            if file and file.content:
                files[path] = sha256(file.content)
                if file.changed_at > found.started_at:
                    unsure.add(path)
        drop_ins: dict[str, str] = {}
        for path, drop_in in found.drop_ins.items():
            drop_ins[path] = drop_in.digest
            if drop_in.changed_at > found.started_at:
                unsure.add(path)
        if found.needs_reload:
            unsure |= files.keys() | drop_ins.keys()
        if has_environment_of(host, found, state):
            unsure.discard(host.settings.env_file)
        ordered = tuple(sorted(unsure))
        yield service, _Seen(found.pid, found.started_at, files, drop_ins, ordered)


def _path(state_directory: Path, app: str, host: str) -> Path:
    folder = state_directory / "started" / quote(app, safe="")
    return folder / f"{quote(host, safe='')}.json"


def _read(path: Path) -> dict[str, _Seen]:
    with suppress(OSError, RunbookError, msgspec.MsgspecError):
        require_private(path.parents[2], path.parents[1], path.parent, path)
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Seen])
    return {}
