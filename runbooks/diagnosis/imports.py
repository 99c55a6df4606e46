"""Expected tasks that nothing imports, and the lines that would."""

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
    """The expected tasks that the application does not register, though what they are in can be
    imported.
    """
    missing = sorted(frozenset(fleet.app.expected_tasks) - now.registered)
    return [
        task
        for task in missing
        if now.errors.get(_module(task), None if _module(task) else "") == ""
    ]


def faults(fleet: Fleet, host: FleetHost, state: HostState, now: ImportProbe) -> Iterator[Finding]:
    """A finding of all of them on a host, with the change that imports them there where one was
    tried.
    """
    if not (never := never_imported(fleet, now)):
        return
    insertion = state.insertion
    offered = insertion is not None and not insertion.why_not
    yield Finding(
        "task.never_imported",
        host.name,
        f"{tasks(never)}: the application never imports it, or has no such task",
        (
            (
                f"loaded as a worker loads it, `{fleet.app.app}` registers"
                f" {counted(len(now.registered), 'task')}, not these"
            ),
            *(
                f"imported by hand, {module} works"
                for module in sorted({_module(task) for task in never} - {""})
            ),
            *(_told(insertion) if insertion else ()),
        ),
        remedy=(
            f"import it there, and restart the workers: {Command('fix-imports', '--dry-run')}"
            if offered
            else None
        ),
        fix=(_insert(host, insertion, never),) if insertion and offered else (),
        blocks=(Block(host.name),),
    )


def two_names(fleet: Fleet, host: FleetHost, now: ImportProbe) -> Iterator[Finding]:
    """Tasks whose file is imported as two modules, by the application or where an expected name
    asks for the other.
    """
    concerned = now.registered | frozenset(fleet.app.expected_tasks)
    for short, long, path in now.twins:
        if {short, long} <= concerned:
            known = [name for name in (short, long) if name in now.registered]
            yield Finding(
                "task.two_names",
                host.name,
                f"{short} and {long} are one task: its file is imported under two names. A worker"
                " discards a message with the name that it does not know: import the file, expect"
                " the task and send it by one of them",
                (
                    f"both are made in {path}",
                    f"the application registers {' and '.join(known) or 'neither'}",
                ),
                severity=Severity.WARNING,
            )


def to_be_inserted(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """The findings of all hosts."""
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state and state.imports_now:
            yield from faults(fleet, host, state, state.imports_now)


def not_registered(fleet: Fleet, first: Snapshot, snapshot: Snapshot) -> Iterator[Finding]:
    """Of the hosts whose file was changed those where the application, loaded now, lacks expected
    tasks all the same.

    Each asks for the file that the `first` look wanted once more.
    """
    for host in fleet.hosts:
        before, state = first.reachable().get(host.name), snapshot.reachable().get(host.name)
        now, insertion = state.imports_now if state else None, before.insertion if before else None
        if (
            now
            and insertion
            and not (now.loaded and now.registered >= frozenset(fleet.app.expected_tasks))
        ):
            errors = [error.splitlines()[-1] for error in now.errors.values() if error]
            summary = "; ".join(
                filter(None, ("loaded, the application lacks tasks", now.failed, *errors))
            )
            again = WriteFile(
                insertion.path, insertion.after, insertion.before.mode, sha256(insertion.after)
            )
            yield Finding(
                "task.never_imported", host.name, summary, fix=(Change(host.name, STEP, summary, again),)
            )  # fmt: skip


def _told(insertion: Insertion) -> Iterator[str]:
    if insertion.why_not:
        yield f"no import is offered: {insertion.why_not}"
        return
    yield (
        f"tried on the host: with an import at {insertion.path}, line {insertion.line}, they are"
        " registered"
    )
    yield from (
        f"  {line}" for line in _diff(insertion).splitlines()[3:] if line[:1] == "+" and line != "+"
    )
    yield from _overwritten(insertion)


def _overwritten(insertion: Insertion) -> Iterator[str]:
    if insertion.checkout:
        yield (
            f"{insertion.checkout} is a git checkout, and the next deployment overwrites it: commit"
            " the lines, too"
        )


def _diff(insertion: Insertion) -> str:
    return diff(insertion.path, insertion.before.content, insertion.after)


def _insert(host: FleetHost, insertion: Insertion, never: Sequence[str]) -> Change:
    before, after = insertion.before, insertion.after
    return Change(
        host.name,
        STEP,
        f"import {tasks(never)} in {insertion.path}, line {insertion.line}",
        do=WriteFile(insertion.path, after, before.mode, sha256(before.content)),
        undo=WriteFile(
            insertion.path,
            before.content,
            before.mode,
            sha256(after),
            changed_at=before.changed_at or None,
        ),
        detail="\n".join((_diff(insertion), *_overwritten(insertion))),
    )


def _module(task: str) -> str:
    return task.rpartition(".")[0]
