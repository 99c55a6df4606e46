"""Desired files: the systemd units and the cron file of each host, as the templates render them."""

import difflib
import re
from collections.abc import Mapping, Sequence

from runbooks.core.effects import Change, WriteFile, sha256
from runbooks.core.model import FileState, Snapshot
from runbooks.core.render import Templates
from runbooks.core.settings import Fleet, FleetHost
from runbooks.steps.step import Needs

MODE = 0o644

Wanted = Mapping[str, Mapping[str, bytes]]
"""Host name → path → the bytes that are wanted there."""


def unit_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The unit files of every host: one per worker instance, and one for beat where it runs."""
    return {host.name: _units(fleet, host, templates) for host in fleet.hosts}


def _units(fleet: Fleet, host: FleetHost, templates: Templates) -> dict[str, bytes]:
    directory = host.settings.unit_directory
    common = {"host": host, "settings": host.settings, "app": fleet.app.app}
    units = {
        f"{directory}/celery-worker@{worker.name}.service": templates.render(
            "systemd/celery-worker@.service.j2", worker=worker, node=host.node(worker), **common
        )
        for worker in host.settings.workers
    }
    if host.settings.beat:
        units[f"{directory}/celery-beat.service"] = templates.render("systemd/celery-beat.service.j2", **common)
    return units


def cron_files(fleet: Fleet, templates: Templates) -> Wanted:
    """The application's cron file on every host that has cron entries."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", f"celery-{fleet.app.app}")  # cron ignores names with a dot: cron(8)
    return {
        host.name: {
            f"{host.settings.cron_directory}/{name}": templates.render(
                "cron/celery.j2", host=host, entries=host.settings.cron, app=fleet.app.app
            )
        }
        if host.settings.cron
        else {}
        for host in fleet.hosts
    }


class FilesInPlace:
    """Every wanted file exists with exactly its bytes and mode."""

    needs = Needs.FILES
    patience_s = 0.0

    def __init__(self, name: str, wanted: Wanted) -> None:
        self.name = name
        self.wanted = wanted

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:  # noqa: ARG002
        return tuple(
            self._change(host, path, state.files[path], content)
            for host, state in snapshot.reachable().items()
            for path, content in self.wanted[host].items()
            if (state.files[path].content, state.files[path].mode) != (content, MODE)
        )

    def _change(self, host: str, path: str, actual: FileState, content: bytes) -> Change:
        verb = "create" if actual.content is None else "change"
        return Change(
            host,
            self.name,
            f"{verb} {path}",
            do=WriteFile(path, content, MODE, sha256(actual.content)),
            undo=WriteFile(path, actual.content, actual.mode, sha256(content)),
            detail=diff(path, actual.content, content) or f"mode {actual.mode:o} → {MODE:o}",
        )


def diff(path: str, before: bytes | None, after: bytes | None) -> str:
    """A unified diff of two states of a text file; None is no file."""
    old, new = ((text or b"").decode(errors="replace").splitlines() for text in (before, after))
    names = ("/dev/null" if before is None else path, "/dev/null" if after is None else path)
    return "\n".join(difflib.unified_diff(old, new, *names, lineterm=""))
