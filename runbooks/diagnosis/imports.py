"""Find expected tasks that nothing imports, and offer the lines that would."""

from collections.abc import Iterator, Sequence

from runbooks.core.command import Command
from runbooks.core.effects import Change, WriteFile, sha256
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import (
    Block,
    Finding,
    HostState,
    ImportProbe,
    Insertion,
    Severity,
    Snapshot,
)
from runbooks.core.wording import counted, tasks
from runbooks.diagnosis.wanted_files import diff

STEP = "imports"


def never_imported(fleet: Fleet, now: ImportProbe) -> list[str]:
    """Return the expected tasks that are not registered although their module can be imported."""
    missing = sorted(frozenset(fleet.app.expected_tasks) - now.registered)
    never = []
    for task in missing:
        module = _module(task)
        if now.errors.get(module, None if module else "") == "":
            never.append(task)
    return never


def faults(fleet: Fleet, host: FleetHost, state: HostState, now: ImportProbe) -> Iterator[Finding]:
    """Yield one finding for all of them on a host, with the change that imports them, if tried."""
    never = never_imported(fleet, now)
    if not never:
        return
    insertion = state.insertion
    registered = counted(len(now.registered), "task")
    modules = sorted({_module(task) for task in never} - {""})
    evidence = [
        f"loaded as a worker loads it, `{fleet.app.app}` registers {registered}, but not these"
    ]
    evidence += [f"importing {module} directly works" for module in modules]
    remedy = None
    fix: tuple[Change, ...] = ()
    if insertion:
        evidence += _described(insertion)
    if insertion and not insertion.why_not:
        preview = Command("fix-imports", "--dry-run")
        remedy = f"import it there, and restart the workers: {preview}"
        fix = (_insert(host, insertion, never),)
    yield Finding(
        "task.never_imported",
        host.name,
        f"{tasks(never)}: the application never imports it, or has no such task",
        tuple(evidence),
        remedy=remedy,
        fix=fix,
        blocks=(Block(host.name),),
    )


def two_names(fleet: Fleet, host: FleetHost, now: ImportProbe) -> Iterator[Finding]:
    """Yield the tasks whose file is imported under two names, or expected under the other one."""
    concerned = now.registered | frozenset(fleet.app.expected_tasks)
    for short, long, path in now.twins:
        if {short, long} <= concerned:
            known = [name for name in (short, long) if name in now.registered]
            yield Finding(
                "task.two_names",
                host.name,
                f"{short} and {long} are one task: its file is imported under two names. A worker"
                " discards messages with the name that it does not know: import the file, expect"
                " the task and send it by one of them",
                (
                    f"both are defined in {path}",
                    f"the application registers {' and '.join(known) or 'neither'}",
                ),
                severity=Severity.WARNING,
            )


def to_be_inserted(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the findings of all hosts."""
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state and state.imports_now:
            yield from faults(fleet, host, state, state.imports_now)


def not_registered(fleet: Fleet, first: Snapshot, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the hosts whose file was changed and whose application still lacks expected tasks.

    The fix of each writes the file of the `first` look once more.
    """
    expected = frozenset(fleet.app.expected_tasks)
    for host in fleet.hosts:
        before = first.reachable().get(host.name)
        state = snapshot.reachable().get(host.name)
        if not before or not state or not before.insertion or not state.imports_now:
            continue
        insertion = before.insertion
        now = state.imports_now
        if now.loaded and now.registered >= expected:
            continue
        errors = [error.splitlines()[-1] for error in now.errors.values() if error]
        reasons = ["loaded, the application lacks tasks", now.failed, *errors]
        summary = "; ".join(filter(None, reasons))
        done = sha256(insertion.after)
        again = WriteFile(insertion.path, insertion.after, insertion.before.mode, done)
        change = Change(host.name, STEP, summary, again)
        yield Finding("task.never_imported", host.name, summary, fix=(change,))


def _described(insertion: Insertion) -> Iterator[str]:
    if insertion.why_not:
        yield f"no import is offered: {insertion.why_not}"
        return
    yield (
        f"tried on the host: with an import at {insertion.path}, line {insertion.line}, they are"
        " registered"
    )
    for line in _diff(insertion).splitlines()[3:]:
        if line.startswith("+") and line != "+":
            yield f"  {line}"
    yield from _overwritten(insertion)


def _overwritten(insertion: Insertion) -> Iterator[str]:
    if insertion.checkout:
        yield (
            f"{insertion.checkout} is a git checkout, and the next deployment overwrites the lines:"
            " commit them, too"
        )


def _diff(insertion: Insertion) -> str:
    return diff(insertion.path, insertion.before.content, insertion.after)


def _insert(host: FleetHost, insertion: Insertion, never: Sequence[str]) -> Change:
    path = insertion.path
    before = insertion.before
    after = insertion.after
    changed_at = before.changed_at or None
    return Change(
        host.name,
        STEP,
        f"import {tasks(never)} in {path}, line {insertion.line}",
        do=WriteFile(path, after, before.mode, sha256(before.content)),
        undo=WriteFile(path, before.content, before.mode, sha256(after), changed_at=changed_at),
        detail="\n".join((_diff(insertion), *_overwritten(insertion))),
    )


def _module(task: str) -> str:
    return task.rpartition(".")[0]
