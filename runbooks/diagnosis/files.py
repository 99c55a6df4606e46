"""Find units, cron entries, rotations and other files that differ from the inventory."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import PurePosixPath
from typing import Literal

from msgspec.structs import replace

from runbooks.core.command import Command
from runbooks.core.effects import (
    Change,
    ControlService,
    EnableService,
    ReloadUnits,
    WriteFile,
    sha256,
)
from runbooks.core.fleet import Fleet, FleetHost, mark_of
from runbooks.core.model import Block, FileState, Finding, HostState, Severity, Snapshot
from runbooks.core.outside import as_lines
from runbooks.core.redaction import holds_secret, is_secret_name
from runbooks.core.wording import counted, them
from runbooks.diagnosis import kept_units, take_over
from runbooks.diagnosis.task_lines import running_on
from runbooks.diagnosis.wanted_files import (
    MODE,
    Kind,
    Wanted,
    diff,
    rotated_by_others,
    stale_files,
    timer_of,
    without_the_other,
)
from runbooks.hosts.foreign import variable_of, words_of

STEPS: Mapping[Kind, str] = {
    "unit": "units",
    "cron": "cron",
    "timer": "cron",
    "logrotate": "logrotate",
}
"""The step that installs the files of a kind."""

STALE = "stale"
"""The step before it, which stops services whose unit is removed."""

MANAGER = "service manager"
"""The step after it, in which the service manager reads its files again."""

_SHOWN_EDITS = 6

_REMOVED = "the inventory no longer has it"
_RUN_BY_THE_OTHER = {
    "cron": "timers run its entries here",
    "timer": "cron runs its entry here",
    "logrotate": "another file rotates its logs here, and logrotate fails if two do",
}


def faults(
    fleet: Fleet, snapshot: Snapshot, files: Mapping[Kind, Wanted], *, taking: bool = False
) -> Iterator[Finding]:
    """Yield the faults of files and units of all hosts that answer, and hosts that are one machine.

    `taking` also replaces files of other owners. Without an inventory no file is expected, and
    none is stale.
    """
    yield from same_machine(fleet, snapshot)
    if fleet.found:
        yield from of_systemd(fleet, snapshot)
        return
    yield from units_of_others(fleet, snapshot)
    for kind, wanted in files.items():
        yield from of_kind(fleet, snapshot, kind, wanted, taking=taking)
    yield from of_systemd(fleet, snapshot)


def of_kind(
    fleet: Fleet, snapshot: Snapshot, kind: Kind, wanted: Wanted, *, taking: bool = False
) -> Iterator[Finding]:
    """Yield the files of one kind that are missing, edited, of another owner, or ours and stale.

    A masked unit stays masked.
    """
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state is None:
            continue
        files = without_the_other(host, state, kind, wanted[host.name])
        theirs = _theirs(fleet, host, state, kind, files, taking=taking)
        yield from _folders(host, state, files)
        yield from _not_ours(host, state, kind, files, theirs)
        yield from _missing_or_edited(host, state, kind, files, theirs)
        yield from _timers_off(host, state, files, theirs)
        yield from _stale_files(fleet, host, state, kind, wanted)
        if kind == "logrotate" and wanted[host.name]:
            yield from _rotated_by_others(host, state, wanted[host.name])


def _rotated_by_others(
    host: FleetHost, state: HostState, ours: Collection[str]
) -> Iterator[Finding]:
    """**Source:** logrotate(8): of two stanzas that name one log, the second is an error."""
    rotated = rotated_by_others(host, state, ours)
    if not rotated:
        return
    left = [log for log in host.settings.logs if log not in rotated]
    twice = [log for log, places in rotated.items() if len(places) > 1]
    places = [place for places in rotated.values() for place in places]
    summary = f"other files on {host.name} rotate {', '.join(rotated)}, so ours is not installed"
    if left:
        summary += f"; nothing rotates {', '.join(left)}"
    if twice:
        summary += f"; more than one file rotates {', '.join(twice)}, which makes logrotate fail"
    yield Finding(
        "logrotate.by_another",
        host.name,
        summary,
        (
            *(f"{place.path}:{place.line}: {place.pattern}" for place in places),
            "set celery_logrotate: false if the logs are rotated elsewhere; or remove these names"
            " there",
        ),
        severity=Severity.WARNING if left or twice else Severity.INFO,
    )


def of_systemd(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the units that systemd has not read or does not start at boot, and stale ones."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state is None:
            continue
        yield from kept_units.faults(host, state)
        yield from _not_loaded(host, state)
        yield from _not_enabled(host, state)
        if not fleet.found:
            yield from _stale_services(host, state, snapshot)
        yield from _drop_ins(host, state)


def same_machine(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield each two hosts that are one machine and share files or units: each overwrites them."""
    states = snapshot.reachable()
    for one, other in combinations([host for host in fleet.hosts if host.name in states], 2):
        a = states[one.name]
        b = states[other.name]
        shared = sorted({*a.files, *a.managed} & {*b.files, *b.managed})
        if not (a.machine and a.machine == b.machine):
            continue
        if shared or _share_services(one, other):
            advice = fleet.worded(
                "keep one of the two names in the inventory, with all its workers; check where each"
                f" leads: {Command('hosts')}",
                "name it once",
            )
            yield Finding(
                "inventory.same_machine",
                f"{one.name}, {other.name}",
                f"{one.name} and {other.name} are one machine: each would overwrite the units and"
                " files of the other",
                (
                    "both answer with the same machine-id, the same boot and the same processes",
                    *(f"both have {path}" for path in shared),
                    advice,
                ),
                blocks=(Block(one.name), Block(other.name)),
            )


def _share_services(one: FleetHost, other: FleetHost) -> bool:
    """Return whether both hosts, if they are one machine, have the same services."""
    return one.manager.is_the_machines and other.manager.is_the_machines


def may_not_be_written(snapshot: Snapshot, planned: Iterable[Change]) -> Iterator[Finding]:
    """Yield the hosts on which a planned file goes into a folder that is not writable.

    Nothing at all is changed there.
    """
    wanted: dict[str, set[str]] = {}
    for change in planned:
        if change.path:
            wanted.setdefault(change.host, set()).add(str(PurePosixPath(change.path).parent))
    states = snapshot.reachable()
    for host, folders in wanted.items():
        unwritable = states[host].unwritable if host in states else {}
        refused = sorted(folders & unwritable.keys())
        if not refused:
            continue
        user = unwritable[refused[0]]
        advice = "scripts run there as that user; ansible_become: true runs them as root"
        if user == "root":
            advice = "is the file system read-only?"
        yield Finding(
            "host.cannot_write",
            host,
            f"{user} may not write in {', '.join(refused)}, so nothing is changed on {host}",
            (advice,),
            blocks=(Block(host),),
        )


def units_of_others(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the hosts with a unit of ours for a node of a host that was not checked.

    They may be one machine. `same_machine` compares those that were checked.
    """
    states = snapshot.reachable()
    seen = set[str]()
    for host in fleet.hosts:
        if host.name in states:
            seen.update(host.node(worker) for worker in host.settings.workers)
    unseen = [node for node in fleet.all_nodes if node not in seen]
    for host in fleet.hosts:
        state = states.get(host.name)
        units = {**state.files, **state.managed} if state else {}
        named = _nodes_in(fleet, units, unseen)
        for other in sorted({node.rpartition("@")[2] for node in named.values()}):
            its = {path: node for path, node in named.items() if node.endswith(f"@{other}")}
            yield _has_units_of(host.name, other, its)


def _nodes_in(fleet: Fleet, units: Mapping[str, FileState], nodes: Sequence[str]) -> dict[str, str]:
    """Return the node that each unit file of ours names (path → node), as far as it is of these."""
    named = {}
    for path, unit in sorted(units.items()):
        for node in nodes:
            if _runs(unit, fleet, node):
                named[path] = node
    return named


def _has_units_of(host: str, other: str, named: Mapping[str, str]) -> Finding:
    return Finding(
        "inventory.units_of_another",
        host,
        f"{host} has units of {other}, which was not checked: if the two are one machine, {other}"
        " would lose them",
        (
            *(f"{path} is for {node}" for path, node in named.items()),
            f"check {host} and {other} together (--limit names both), to compare their machine-ids;"
            " remove a name that is no longer used from the inventory",
        ),
        blocks=(Block(host),),
    )


def _runs(unit: FileState, fleet: Fleet, node: str) -> bool:
    """Return whether a file of ours names this node.

    **Source:** `templates/systemd/celery-worker@.service.j2`.
    """
    content = (unit.content or b"").decode(errors="replace")
    if not content.startswith(mark_of(fleet.app.app)):
        return False
    return re.search(rf"[\s='\"]{re.escape(node)}(?![\w.-])", content) is not None


def _folders(host: FleetHost, state: HostState, wanted: Iterable[str]) -> Iterator[Finding]:
    found = [path for path in wanted if state.files[path].is_folder]
    if found:
        yield Finding(
            "host.folder_in_place",
            host.name,
            f"a folder is in the place of a file, so nothing is changed on {host.name}",
            (*found, "check what it is, and move it away"),
            blocks=(Block(host.name),),
        )


def _theirs(
    fleet: Fleet,
    host: FleetHost,
    state: HostState,
    kind: Kind,
    wanted: Mapping[str, bytes],
    *,
    taking: bool,
) -> list[str]:
    """Return the files of other owners at places of ours, which are not changed."""
    kept = kept_units.of(host, state) if kind == "unit" else {}
    theirs = []
    for path, content in wanted.items():
        file = state.files[path]
        differs = not file.is_folder and file.content != content
        if path in kept or not differs or take_over.is_ours(fleet.app.app, file):
            continue
        if taking and (kind != "unit" or take_over.may_replace(host, state, path)):
            continue
        theirs.append(path)
    return theirs


def _not_ours(
    host: FleetHost,
    state: HostState,
    kind: Kind,
    wanted: Mapping[str, bytes],
    theirs: Sequence[str],
) -> Iterator[Finding]:
    services = {}
    if theirs and kind == "unit":
        services = {host.unit_path(name): name for name in host.own_services}
    for path in theirs:
        service = services.get(path, "")
        name = PurePosixPath(path).name if kind == "unit" else path
        preview = Command("remediate", "--take-over", "--dry-run")
        blocks: tuple[Block, ...] = ()
        if service and host.manager.starts_from_units:
            blocks = (Block(host.name, service),)
        yield Finding(
            f"{kind}.not_ours",
            f"{service or name} on {host.name}",
            f"{name} was not written by this tool; not changed",
            (
                *_edits(state, wanted, [path]),
                f"preview taking it over: {preview}",
            ),
            blocks=blocks,
            severity=Severity.WARNING,
        )


def _missing_or_edited(
    host: FleetHost,
    state: HostState,
    kind: Kind,
    wanted: Mapping[str, bytes],
    theirs: Sequence[str],
) -> Iterator[Finding]:
    kept = {*theirs}
    if kind == "unit":
        kept.update(kept_units.of(host, state))
    missing = []
    edited = []
    for path, content in wanted.items():
        file = state.files[path]
        if path in kept or file.is_folder:
            continue
        if file.content is None:
            missing.append(path)
        elif (file.content, file.mode) != (content, MODE):
            edited.append(path)
    edits = tuple(_edits(state, wanted, edited))
    for what, how, found, evidence in (
        ("missing", "not installed", missing, tuple(missing)),
        ("differs", "edited", edited, edits),
    ):
        if found:
            writes = [_write(host, kind, path, state.files[path], wanted[path]) for path in found]
            yield Finding(
                f"{kind}.{what}",
                host.name,
                f"{len(found)} of {counted(len(wanted), f'{kind} file')}: {how}",
                evidence,
                remedy=f"install {them(len(found))} from the templates",
                fix=(*writes, *_read_again(host, kind, found)),
                severity=Severity.WARNING,
            )


def _edits(state: HostState, wanted: Mapping[str, bytes], found: Iterable[str]) -> Iterator[str]:
    """Yield each path, and the first lines that installing it would remove (-) and add (+)."""
    for path in found:
        yield path
        lines = diff(path, state.files[path].content, wanted[path]).splitlines()[2:]
        edits = [f"  {line}" for line in lines if line[:1] in ("-", "+")]
        edits = edits or [f"  mode {state.files[path].mode:o}"]
        yield from edits[:_SHOWN_EDITS]
        if len(edits) > _SHOWN_EDITS:
            yield f"  {counted(len(edits) - _SHOWN_EDITS, 'more line')}"


def _timers_off(
    host: FleetHost, state: HostState, wanted: Iterable[str], theirs: Collection[str]
) -> Iterator[Finding]:
    """Yield the timers of ours that do not run, now or after the next boot."""
    kept = {PurePosixPath(path).stem for path in theirs}
    timers = [timer for timer in map(timer_of, wanted) if timer]
    off = []
    for timer in timers:
        enabled = timer in state.timers and state.timers[timer].enabled
        if PurePosixPath(timer).stem not in kept and not enabled:
            off.append(timer)
    if off:
        yield Finding(
            "timer.not_enabled",
            host.name,
            f"not enabled: {', '.join(off)}",
            tuple(f"{name}: {state.timers[name].answer}" for name in off if name in state.timers),
            remedy="enable it",
            fix=tuple(_enable_timer(host, name, enabled=True) for name in off),
            severity=Severity.WARNING,
        )


def _enable_timer(host: FleetHost, name: str, *, enabled: bool) -> Change:
    """Return the change that enables and starts a timer, or disables and stops it."""
    verb = "enable and start" if enabled else "disable and stop"
    do = EnableService(name, enabled)
    undo = EnableService(name, not enabled)
    return Change(host.name, STEPS["timer"], f"{verb} {name}", do, undo)


def _stale_files(
    fleet: Fleet, host: FleetHost, state: HostState, kind: Kind, wanted: Wanted
) -> Iterator[Finding]:
    services = {host.unit_path(name) for name in state.stale}
    for path, file in stale_files(fleet, host, state, kind, wanted).items():
        if path in services:
            continue  # it is removed with its service
        timer = timer_of(path)
        why = _REMOVED if path not in wanted[host.name] else _RUN_BY_THE_OTHER[kind]
        fix = [_write(host, kind, path, file, None, why), *_read_again(host, kind, [path])]
        if timer in state.timers and state.timers[timer].enabled:
            fix.insert(0, _enable_timer(host, timer, enabled=False))
        yield Finding(
            f"{kind}.stale",
            host.name,
            f"{path} is ours, and {why}",
            remedy="remove it",
            fix=tuple(fix),
            severity=Severity.WARNING,
        )


def _write(
    host: FleetHost,
    kind: Kind,
    path: str,
    actual: FileState,
    content: bytes | None,
    why_removed: str = _REMOVED,
) -> Change:
    """Return the change that writes or removes a file.

    A host checks each file by its own means before it is installed, if its manager can.
    """
    by: Literal["unit", "cron", "logrotate"] = "unit" if kind == "timer" else kind
    judged = host.manager.judges_files or (host.manager.judges_units and by == "unit")
    judge: Literal["", "unit", "cron", "logrotate"] = by if content and judged else ""
    if actual.content is None:
        summary = f"create {path}"
    elif content is None:
        summary = f"remove {path}"
    else:
        summary = f"change {path}"
    if content is None:
        summary += f": {why_removed}"
    before = sha256(actual.content)
    after = sha256(content)
    changed_at = actual.changed_at or None
    return Change(
        host.name,
        STEPS[kind],
        summary,
        do=WriteFile(path, content, MODE, before, check=judge),
        undo=WriteFile(path, actual.content, actual.mode, after, changed_at=changed_at),
        detail=diff(path, actual.content, content) or f"mode {actual.mode:o} → {MODE:o}",
    )


def _read_again(host: FleetHost, kind: Kind, paths: Sequence[str]) -> tuple[Change, ...]:
    """Return the change that makes systemd read its units again, if some of them change."""
    if kind not in ("unit", "timer") or not host.manager.starts_from_units:
        return ()
    step = MANAGER if kind == "unit" else STEPS[kind]
    why = [f"{PurePosixPath(path).name} changes" for path in paths]
    return (_reload(host, *why, step=step),)


def with_reload(fleet: Fleet, found: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings; a fix that writes a drop-in also makes systemd read its units again."""
    hosts = {host.name: host for host in fleet.hosts}
    for finding in found:
        reloads = list[Change]()
        for change in finding.fix:
            if change.writes and change.step == STEPS["unit"]:
                reloads += _read_again(hosts[change.host], "unit", [change.path])
        yield replace(finding, fix=(*finding.fix, *reloads))


def _reload(host: FleetHost, *why: str, step: str = MANAGER) -> Change:
    effect = ReloadUnits(f"make {host.manager.reported_by} read its {_called(host)}s again")
    return Change(host.name, step, effect.summary, effect, effect, why=why)


def _called(host: FleetHost) -> str:
    """Return what a file that describes a service is called."""
    return host.manager.units.called if host.manager.units else "file"


def _not_loaded(host: FleetHost, state: HostState) -> Iterator[Finding]:
    known = {**state.services, **state.timers}
    unread = [name for name, unit in known.items() if unit.needs_reload]
    units = host.manager.units
    if not unread or not units:
        return
    manager = host.manager.reported_by
    others = ", ".join(name for name in unread if host.is_others(name))
    ours = ", ".join(name for name in unread if not host.is_others(name))
    if others:
        yield Finding(
            "unit.not_loaded",
            host.name,
            f"{manager} has not read {others} since it changed; not changed, because it is not from"
            " this inventory",
            (units.unread, f"on {host.name}: {units.read_again}"),
            severity=Severity.WARNING,
        )
    if ours:
        yield Finding(
            "unit.not_loaded",
            host.name,
            f"{manager} has not read the {_called(host)} of {ours} since it changed",
            (units.unread,),
            remedy=f"make {manager} read it",
            fix=(_reload(host, f"the {_called(host)} of {ours} has changed"),),
            severity=Severity.WARNING,
        )


def _not_enabled(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Yield the services that do not start at boot, also those that are down now."""
    if not host.manager.starts_at_boot:
        return
    others = []
    ours = []
    for name, service in state.services.items():
        if service.enabled or service.masked or service.alias_of:
            continue
        if host.is_others(name):
            others.append(name)
        else:
            ours.append(name)
    if others:
        yield Finding(
            "unit.not_enabled",
            host.name,
            f"{', '.join(others)} is not enabled, and does not start at boot unless something else"
            " starts it; not changed",
            ("systemctl show: UnitFileState=disabled",),
            severity=Severity.INFO,
        )
    if ours:
        yield Finding(
            "unit.not_enabled",
            host.name,
            f"{', '.join(ours)} does not start at boot",
            ("systemctl show: UnitFileState is not enabled",),
            remedy="enable it",
            fix=tuple(_enable(host, name) for name in ours),
            severity=Severity.WARNING,
        )


def _enable(host: FleetHost, name: str) -> Change:
    summary = f"enable {name}, so that it starts at boot"
    do = EnableService(name, True)
    undo = EnableService(name, False)
    return Change(host.name, MANAGER, summary, do, undo)


def _stale_services(host: FleetHost, state: HostState, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the services of ours that the inventory no longer has; each is stopped and removed."""
    for name, service in state.stale.items():
        fix = tuple(_end_stale(host, state, name, snapshot))
        yield Finding(
            "unit.stale",
            f"{name} on {host.name}",
            f"{name} has a unit of ours, and the inventory no longer has it",
            (f"{host.manager.reported_by} says: {service.answer}",),
            remedy=f"stop it and remove its {_called(host)}" if fix else None,
            fix=fix,
            severity=Severity.WARNING,
        )


def _end_stale(
    host: FleetHost, state: HostState, name: str, snapshot: Snapshot
) -> Iterator[Change]:
    service = state.stale[name]
    path = host.unit_path(name)
    why = f"{name}: {_REMOVED}"
    if service.enabled:
        disable = EnableService(name, False)
        enable = EnableService(name, True)
        yield Change(host.name, STALE, f"disable {why}", disable, enable)
    if service.pid is not None:
        running = as_lines(running_on(host.nodes_of(name), snapshot, state))
        stop = ControlService(name, "stop")
        start = ControlService(name, "start")
        yield Change(host.name, STALE, f"stop {why}", stop, start, running)
    if path in state.managed:
        yield _write(host, "unit", path, state.managed[path], None)
        yield from _read_again(host, "unit", [path])


def _drop_ins(host: FleetHost, state: HostState) -> Iterator[Finding]:
    for name, service in state.all_services.items():
        if host.is_others(name):
            continue
        for path, drop_in in service.drop_ins.items():
            yield Finding(
                "unit.drop_in",
                f"{name} on {host.name}",
                f"{path} changes the unit; not changed",
                tuple(map(_without_secret, drop_in.lines[:_SHOWN_EDITS])),
                severity=Severity.INFO,
            )


def _without_secret(line: str) -> str:
    """Return a line of a drop-in; of variables that may hold a secret only the names."""
    key, _, value = line.partition("=")
    if key.strip() != "Environment":
        return line
    shown = []
    for word in words_of(value):
        name, _, content = variable_of(word)
        hidden = is_secret_name(name) or holds_secret(content)
        shown.append(f"{name}=…" if hidden else f"{name}={content}")
    return f"{key}={' '.join(shown)}"
