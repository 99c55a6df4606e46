"""Faults of the application's code and environment: tasks that are not registered, and why."""

from collections.abc import Iterator

from runbooks.core.model import Finding, HostState, ImportProbe, Snapshot
from runbooks.core.settings import Fleet, FleetHost
from runbooks.core.wording import tasks
from runbooks.steps.environment import drift


def findings(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """A failing import with its traceback, whether the inventory's environment mends it, and the nodes it hit."""
    assert snapshot.broker is not None
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state and state.imports_now:
            yield from _imports(fleet, host, state, state.imports_now)
    expected = frozenset(fleet.app.expected_tasks)
    lacking = {name: expected - node.registered for name, node in snapshot.broker.nodes.items()}
    own = {host.node(worker) for host in fleet.hosts for worker in host.settings.workers}
    lacking = {name: missing for name, missing in lacking.items() if missing and name in own}
    if lacking:
        unknown = frozenset[str]().union(*lacking.values())
        yield Finding(
            "task.not_registered",
            ", ".join(sorted(lacking)),
            f"running workers do not know {tasks(unknown)}: such a message is discarded as soon as it is taken",
            tuple(f"inspect registered: {name} lacks {', '.join(sorted(lacking[name]))}" for name in sorted(lacking)),
            remedy="restart the workers once the import works",
        )


def _imports(fleet: Fleet, host: FleetHost, state: HostState, now: ImportProbe) -> Iterator[Finding]:
    missing = sorted(frozenset(fleet.app.expected_tasks) - now.registered)
    if not missing:
        return
    errors = {module: error for module, error in now.errors.items() if error}
    if not errors:
        yield Finding(
            "task.never_imported",
            host.name,
            f"{tasks(missing)}: the module imports, but the application never imports it, or has no such task",
            (f"loaded as a worker loads it, `{fleet.app.app}` registers {len(now.registered)} tasks, not these",),
            blocks=True,
        )
    wanted = state.imports_wanted
    mended = wanted is not None and not frozenset(missing) - wanted.registered
    for module, error in errors.items():
        own = [task for task in missing if task.rpartition(".")[0] == module] or missing
        yield Finding(
            "task.import_fails",
            host.name,
            f"{module or fleet.app.app} fails to import, so {tasks(own)} cannot be registered: "
            f"{error.splitlines()[-1]}",
            (*error.splitlines()[-8:], *_environment(host, state, mended)),
            remedy="set the inventory's values in the environment file, then restart" if mended else None,
            blocks=not mended,
        )


def _environment(host: FleetHost, state: HostState, mended: bool) -> Iterator[str]:
    values = drift(host, state)
    for name, value in values.items():
        now = "not set" if value is None else f"{value!r}"
        yield f"{host.settings.env_file}: {name} is {now}, the inventory says {host.settings.env[name]!r}"
    if mended:
        yield "tried on the host: with the inventory's values the import works and every expected task is registered"
    elif values:
        yield "tried on the host: with the inventory's values the import fails all the same"
    else:
        yield "the environment file agrees with the inventory, so the cause is in the code or its dependencies"
