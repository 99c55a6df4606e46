"""Faults of the files: units, cron entries and rotations that are not as the inventory wants them,
and of systemd.
"""

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
from runbooks.core.wording import counted
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
"""The step that puts the files of a kind in place. Services whose unit goes are stopped before, and
their manager reads its files after: `STALE` and `MANAGER`."""

_SHOWN_EDITS = 6

STALE = "stale"
MANAGER = "service manager"


def faults(
    fleet: Fleet, snapshot: Snapshot, files: Mapping[Kind, Wanted], *, taking: bool = False
) -> Iterator[Finding]:
    """Of each host that answers; and hosts that are one. `taking`: files of somebody else's are
    replaced, too.

    Without an inventory no file is wanted, and none is one too many.
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
    """Files of one kind: missing, edited, somebody else's, or ours and no longer wanted. A masked
    unit stays masked.
    """
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            files = without_the_other(host, states[host.name], kind, wanted[host.name])
            theirs = _theirs(fleet, host, states[host.name], kind, files, taking=taking)
            yield from _folders(host, states[host.name], files)
            yield from _not_ours(host, states[host.name], kind, files, theirs)
            yield from _missing_or_edited(host, states[host.name], kind, files, theirs)
            yield from _timers_off(host, states[host.name], files, theirs)
            yield from _stale_files(fleet, host, states[host.name], kind, wanted)
            if kind == "logrotate" and wanted[host.name]:
                yield from _rotated_by_others(host, states[host.name], wanted[host.name])


def _rotated_by_others(
    host: FleetHost, state: HostState, ours: Collection[str]
) -> Iterator[Finding]:
    """**Source:** logrotate(8): a log that two stanzas name is an error, and the second stanza is
    left out.
    """
    if not (rotated := rotated_by_others(host, state, ours)):
        return
    left = [log for log in host.settings.logs if log not in rotated]
    twice = [log for log, places in rotated.items() if len(places) > 1]
    summary = (
        f"other files on {host.name} rotate {', '.join(rotated)}, so this tool's is not installed"
    )
    summary += f"; nothing rotates {', '.join(left)}" if left else ""
    summary += (
        f"; {', '.join(twice)} is rotated by more than one, which makes logrotate fail"
        if twice
        else ""
    )
    yield Finding(
        "logrotate.by_another",
        host.name,
        summary,
        (
            *(
                f"{one.path}:{one.line}: {one.pattern}"
                for places in rotated.values()
                for one in places
            ),
            (
                "celery_logrotate: false says that somebody else rotates the logs; or take these"
                " names out there"
            ),
        ),
        severity=Severity.WARNING if left or twice else Severity.INFO,
    )


def of_systemd(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Units that systemd has not read, does not start with the host, or that the inventory no
    longer has.
    """
    states = snapshot.reachable()
    for host in fleet.hosts:
        if host.name in states:
            yield from kept_units.faults(host, states[host.name])
            yield from _not_loaded(host, states[host.name])
            yield from _not_enabled(host, states[host.name])
            yield from () if fleet.found else _stale_services(host, states[host.name], snapshot)
            yield from _drop_ins(host, states[host.name])


def same_machine(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Two hosts of the inventory that are one machine, and share files or units there: each would
    undo the other's.
    """
    states = snapshot.reachable()
    for one, other in combinations([host for host in fleet.hosts if host.name in states], 2):
        a, b = states[one.name], states[other.name]
        shared = sorted({*a.files, *a.managed} & {*b.files, *b.managed})
        if a.machine and a.machine == b.machine and (shared or _share_services(one, other)):
            yield Finding(
                "inventory.same_machine",
                f"{one.name}, {other.name}",
                f"{one.name} and {other.name} are one machine: each would put its own units and"
                " files in the place of the other's",
                (
                    "both answer with the same machine-id, the same boot and the same processes",
                    *(f"both have {path}" for path in shared),
                    fleet.worded(
                        "leave one of the two names in the inventory, with all its workers; look"
                        f" where each leads: {Command('hosts')}",
                        "name it once",
                    ),
                ),
                blocks=(Block(one.name), Block(other.name)),
            )


def may_not_be_written(snapshot: Snapshot, planned: Iterable[Change]) -> Iterator[Finding]:
    """Hosts where a planned file goes into a folder that may not be written: nothing is changed
    there, not a part.
    """
    wanted: dict[str, set[str]] = {}
    for change in planned:
        if change.path:
            wanted.setdefault(change.host, set()).add(str(PurePosixPath(change.path).parent))
    states = snapshot.reachable()
    for host, folders in wanted.items():
        unwritable = states[host].unwritable if host in states else {}
        if refused := sorted(folders & unwritable.keys()):
            user = unwritable[refused[0]]
            yield Finding(
                "host.cannot_write",
                host,
                f"{user} may not write in {', '.join(refused)}, so nothing is changed on {host}",
                (
                    (
                        "is the file system read-only?"
                        if user == "root"
                        else (
                            "scripts run there as that user: ansible_become: true runs them as root"
                        )
                    ),
                ),
                blocks=(Block(host),),
            )


def _share_services(one: FleetHost, other: FleetHost) -> bool:
    """Whether the services of both are those of the machine, where the two are one."""
    return one.manager.is_the_machines and other.manager.is_the_machines


def units_of_others(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Hosts with a unit of ours for a node of a host that was not looked at: they may be one
    machine.

    Of those that were looked at `same_machine` knows.
    """
    states = snapshot.reachable()
    seen = {
        host.node(worker)
        for host in fleet.hosts
        if host.name in states
        for worker in host.settings.workers
    }
    unseen = [node for node in fleet.all_nodes if node not in seen]
    for host in fleet.hosts:
        state = states.get(host.name)
        units = {**state.files, **state.managed} if state else {}
        named = {
            path: node
            for path, unit in sorted(units.items())
            for node in unseen
            if _runs(unit, fleet, node)
        }
        for other in sorted({node.rpartition("@")[2] for node in named.values()}):
            yield Finding(
                "inventory.units_of_another",
                host.name,
                f"{host.name} has units of {other}, which was not looked at: it may be the same"
                " machine, and lose them",
                (
                    *(
                        f"{path} is of {node}"
                        for path, node in named.items()
                        if node.endswith(f"@{other}")
                    ),
                    (
                        f"let it see both, {host.name} and {other} (--limit names both): their"
                        " machine-ids tell; leave a name that means nothing any more out of the"
                        " inventory"
                    ),
                ),
                blocks=(Block(host.name),),
            )


def _runs(unit: FileState, fleet: Fleet, node: str) -> bool:
    """Whether a file of ours names this node. **Source:**
    `templates/systemd/celery-worker@.service.j2`.
    """
    content = (unit.content or b"").decode(errors="replace")
    return (
        content.startswith(mark_of(fleet.app.app))
        and re.search(rf"[\s='\"]{re.escape(node)}(?![\w.-])", content) is not None
    )


def _folders(host: FleetHost, state: HostState, wanted: Iterable[str]) -> Iterator[Finding]:
    if found := [path for path in wanted if state.files[path].is_folder]:
        yield Finding(
            "host.folder_in_place",
            host.name,
            f"a folder is where a file belongs, so nothing is changed on {host.name}",
            (*found, "look what it is, and move it away"),
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
    """The files at the places of ours that somebody else wrote, and that are left as they are."""
    kept = kept_units.of(host, state) if kind == "unit" else {}
    return [
        path
        for path, content in wanted.items()
        if path not in kept
        and not state.files[path].is_folder
        and state.files[path].content != content
        if not take_over.is_ours(fleet.app.app, state.files[path])
        if not (taking and (kind != "unit" or take_over.may_replace(host, state, path)))
    ]


def _not_ours(
    host: FleetHost,
    state: HostState,
    kind: Kind,
    wanted: Mapping[str, bytes],
    theirs: Sequence[str],
) -> Iterator[Finding]:
    for path in theirs:
        service = next(
            (name for name in host.own_services if kind == "unit" and host.unit_path(name) == path),
            "",
        )
        name = PurePosixPath(path).name if kind == "unit" else path
        yield Finding(
            f"{kind}.not_ours",
            f"{service or name} on {host.name}",
            f"{name} was not written by this tool, so it is left as it is",
            (
                *_edits(state, wanted, [path]),
                f"what taking it over would do: {Command('remediate', '--take-over', '--dry-run')}",
            ),
            blocks=(
                (Block(host.name, service),) if service and host.manager.starts_from_units else ()
            ),
            severity=Severity.WARNING,
        )


def _missing_or_edited(
    host: FleetHost,
    state: HostState,
    kind: Kind,
    wanted: Mapping[str, bytes],
    theirs: Sequence[str],
) -> Iterator[Finding]:
    kept = [*(kept_units.of(host, state) if kind == "unit" else ()), *theirs]
    paths = {
        path: content
        for path, content in wanted.items()
        if path not in kept and not state.files[path].is_folder
    }
    missing = [path for path in paths if state.files[path].content is None]
    edited = [
        path
        for path, content in paths.items()
        if path not in missing
        and (state.files[path].content, state.files[path].mode) != (content, MODE)
    ]
    edits = tuple(_edits(state, paths, edited))
    for what, told, found, evidence in (
        ("missing", "not installed", missing, tuple(missing)),
        ("differs", "edited", edited, edits),
    ):
        if found:
            yield Finding(
                f"{kind}.{what}",
                host.name,
                f"{len(found)} of {counted(len(wanted), f'{kind} file')}: {told}",
                evidence,
                remedy="install it from its template",
                fix=(
                    *(_write(host, kind, path, state.files[path], paths[path]) for path in found),
                    *_read_again(host, kind, found),
                ),
                severity=Severity.WARNING,
            )


def _edits(state: HostState, wanted: Mapping[str, bytes], found: Iterable[str]) -> Iterator[str]:
    """Each path, and below it what installing the file would take away (-) and bring (+), in its
    first lines.
    """
    for path in found:
        yield path
        lines = diff(path, state.files[path].content, wanted[path]).splitlines()[2:]
        edits = [f"  {line}" for line in lines if line[:1] in ("-", "+")] or [
            f"  mode {state.files[path].mode:o}"
        ]
        yield from edits[:_SHOWN_EDITS]
        if len(edits) > _SHOWN_EDITS:
            yield f"  {counted(len(edits) - _SHOWN_EDITS, 'more line')}"


def _timers_off(
    host: FleetHost, state: HostState, wanted: Iterable[str], theirs: Collection[str]
) -> Iterator[Finding]:
    """Timers that would not run, now or after the next boot; none that is, or starts, somebody
    else's unit.
    """
    kept = {PurePosixPath(path).stem for path in theirs}
    timers = [
        timer for timer in map(timer_of, wanted) if timer and PurePosixPath(timer).stem not in kept
    ]
    if off := [
        name for name in timers if name not in state.timers or not state.timers[name].enabled
    ]:
        yield Finding(
            "timer.not_enabled",
            host.name,
            f"{', '.join(off)} would run nothing",
            tuple(f"{name}: {state.timers[name].answer}" for name in off if name in state.timers),
            remedy="enable it",
            fix=tuple(_enable_timer(host, name, enabled=True) for name in off),
            severity=Severity.WARNING,
        )


def _enable_timer(host: FleetHost, name: str, *, enabled: bool) -> Change:
    """Enabled, it is started, too."""
    return Change(
        host.name,
        STEPS["timer"],
        f"{'enable and start' if enabled else 'disable and stop'} {name}",
        EnableService(name, enabled),
        EnableService(name, not enabled),
    )


def _stale_files(
    fleet: Fleet, host: FleetHost, state: HostState, kind: Kind, wanted: Wanted
) -> Iterator[Finding]:
    services = {host.unit_path(name) for name in state.stale}
    for path, file in stale_files(fleet, host, state, kind, wanted).items():
        timer = timer_of(path)
        runs = timer in state.timers and state.timers[timer].enabled
        why = _GONE if path not in wanted[host.name] else _RUN_BY_THE_OTHER[kind]
        if path not in services:  # that goes with its service
            yield Finding(
                f"{kind}.stale",
                host.name,
                f"{path} is ours, and {why}",
                remedy="remove it",
                fix=(
                    *([_enable_timer(host, timer, enabled=False)] if runs else []),
                    _write(host, kind, path, file, None, why),
                    *_read_again(host, kind, [path]),
                ),
                severity=Severity.WARNING,
            )


_GONE = "the inventory no longer has it"
_RUN_BY_THE_OTHER = {
    "cron": "timers run its entries here",
    "timer": "cron runs its entry here",
    "logrotate": "another file rotates its logs here, and logrotate fails where two do",
}


def _write(
    host: FleetHost,
    kind: Kind,
    path: str,
    actual: FileState,
    content: bytes | None,
    why_gone: str = _GONE,
) -> Change:
    """A host judges each file by its own means before it is put in place, where its manager is one
    that does.
    """
    by: Literal["unit", "cron", "logrotate"] = "unit" if kind == "timer" else kind
    judged = host.manager.judges_files or (host.manager.judges_units and by == "unit")
    judge: Literal["", "unit", "cron", "logrotate"] = by if content and judged else ""
    verb = "create" if actual.content is None else "remove" if content is None else "change"
    why = f": {why_gone}" if content is None else ""
    return Change(
        host.name,
        STEPS[kind],
        f"{verb} {path}{why}",
        do=WriteFile(path, content, MODE, sha256(actual.content), check=judge),
        undo=WriteFile(
            path, actual.content, actual.mode, sha256(content), changed_at=actual.changed_at or None
        ),
        detail=diff(path, actual.content, content) or f"mode {actual.mode:o} → {MODE:o}",
    )


def _read_again(host: FleetHost, kind: Kind, paths: Sequence[str]) -> tuple[Change, ...]:
    """systemd reads its units again where some of them change."""
    if kind not in ("unit", "timer") or not host.manager.starts_from_units:
        return ()
    step = MANAGER if kind == "unit" else STEPS[kind]
    return (_reload(host, *(f"{PurePosixPath(path).name} changes" for path in paths), step=step),)


def with_reload(fleet: Fleet, found: Iterable[Finding]) -> Iterator[Finding]:
    """The findings; where their changes write a drop-in, systemd reads its units again."""
    hosts = {host.name: host for host in fleet.hosts}
    for finding in found:
        reloads = [
            reload
            for change in finding.fix
            if change.writes and change.step == STEPS["unit"]
            for reload in _read_again(hosts[change.host], "unit", [change.path])
        ]
        yield replace(finding, fix=(*finding.fix, *reloads))


def _reload(host: FleetHost, *why: str, step: str = MANAGER) -> Change:
    effect = ReloadUnits(f"let {host.manager.told_by} read its {_called(host)}s again")
    return Change(host.name, step, effect.summary, effect, effect, why=why)


def _called(host: FleetHost) -> str:
    """What a file that describes a service is called."""
    return host.manager.units.called if host.manager.units else "file"


def _not_loaded(host: FleetHost, state: HostState) -> Iterator[Finding]:
    unread = [
        name for name, unit in {**state.services, **state.timers}.items() if unit.needs_reload
    ]
    if not (unread and (units := host.manager.units)):
        return
    if others := [name for name in unread if host.is_others(name)]:
        yield Finding(
            "unit.not_loaded",
            host.name,
            f"{host.manager.told_by} has not read {', '.join(others)} since it changed, and is not"
            " told to: that is not this tool's",
            (units.unread, f"on {host.name}: {units.read_again}"),
            severity=Severity.WARNING,
        )
    if unread := [name for name in unread if not host.is_others(name)]:
        yield Finding(
            "unit.not_loaded",
            host.name,
            f"{host.manager.told_by} has not read the {_called(host)} of {', '.join(unread)} since"
            " it changed",
            (units.unread,),
            remedy=f"let {host.manager.told_by} read it",
            fix=(_reload(host, f"the {_called(host)} of {', '.join(unread)} has changed"),),
            severity=Severity.WARNING,
        )


def _not_enabled(host: FleetHost, state: HostState) -> Iterator[Finding]:
    """Also of a service that is down: it would be down again after the next boot."""
    if not host.manager.starts_at_boot:
        return
    disabled = [
        name
        for name, service in state.services.items()
        if not (service.enabled or service.masked or service.alias_of)
    ]
    if others := [name for name in disabled if host.is_others(name)]:
        yield Finding(
            "unit.not_enabled",
            host.name,
            f"{', '.join(others)} is not enabled, which is left so: unless something else starts"
            " it, it does not start with the host",
            ("systemctl show: UnitFileState=disabled",),
            severity=Severity.INFO,
        )
    if disabled := [name for name in disabled if not host.is_others(name)]:
        yield Finding(
            "unit.not_enabled",
            host.name,
            f"{', '.join(disabled)} would not start with the host",
            ("systemctl show: UnitFileState is not enabled",),
            remedy="enable it",
            fix=tuple(
                Change(
                    host.name,
                    MANAGER,
                    f"enable {name}, so that it starts with the host",
                    EnableService(name, True),
                    EnableService(name, False),
                )
                for name in disabled
            ),
            severity=Severity.WARNING,
        )


def _stale_services(host: FleetHost, state: HostState, snapshot: Snapshot) -> Iterator[Finding]:
    """A service of ours that nobody wants is stopped, and its unit goes."""
    for name, service in state.stale.items():
        path = host.unit_path(name)
        why = f"{name}: the inventory no longer has it"
        fix = []
        if service.enabled:
            fix.append(
                Change(
                    host.name,
                    STALE,
                    f"disable {why}",
                    EnableService(name, False),
                    EnableService(name, True),
                )
            )
        if service.pid is not None:
            running = as_lines(running_on(host.nodes_of(name), snapshot, state))
            stop, start = ControlService(name, "stop"), ControlService(name, "start")
            fix.append(Change(host.name, STALE, f"stop {why}", stop, start, running))
        if path in state.managed:
            fix += [
                _write(host, "unit", path, state.managed[path], None),
                *_read_again(host, "unit", [path]),
            ]
        yield Finding(
            "unit.stale",
            f"{name} on {host.name}",
            f"{name} has a unit of ours, and the inventory no longer has it",
            (f"{host.manager.told_by} says: {service.answer}",),
            remedy=f"stop it and remove its {_called(host)}" if fix else None,
            fix=tuple(fix),
            severity=Severity.WARNING,
        )


def _drop_ins(host: FleetHost, state: HostState) -> Iterator[Finding]:
    for name, service in state.all_services.items():
        for drop_in in service.drop_ins if not host.is_others(name) else ():
            yield Finding(
                "unit.drop_in",
                f"{name} on {host.name}",
                f"{drop_in} changes the unit; it is left as it is",
                tuple(map(_without_secret, service.drop_ins[drop_in].lines[:_SHOWN_EDITS])),
                severity=Severity.INFO,
            )


def _without_secret(line: str) -> str:
    """A line of somebody else's drop-in; of variables that may hold a secret only the names."""
    key, _, value = line.partition("=")
    if key.strip() != "Environment":
        return line
    variables = [variable_of(word) for word in words_of(value)]
    hidden = (
        f"{name}=…" if is_secret_name(name) or holds_secret(told) else f"{name}={told}"
        for name, _, told in variables
    )
    return f"{key}={' '.join(hidden)}"
