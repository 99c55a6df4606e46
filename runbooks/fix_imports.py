"""`inv fix-imports`: add missing imports of expected tasks to the application's file."""

from collections.abc import Collection, Iterable

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode
from runbooks.core.model import Finding, Snapshot
from runbooks.core.needs import Needs
from runbooks.diagnosis.possible import not_restarted
from runbooks.diagnosis.steps import import_step
from runbooks.engine.chosen import Services, only
from runbooks.engine.context import Session
from runbooks.engine.main_loop import walk
from runbooks.engine.rolling import Rolling

_OTHERWISE = ("task.import_fails", "host.probe_failed", "task.never_imported")
"""Findings that block a host, unless this verb fixes them."""


def fix_imports(session: Session, rolling: Rolling, *, restart: bool = True) -> ExitCode:
    """Add the imports, verify them by loading the application again, and restart the workers.

    Each change was tried on its host first, and is undone if the application does not load. Workers
    load the application when they start, so the running workers of changed hosts are restarted, if
    `restart` is True and no finding blocks them. If an import of the application fails, nothing is
    written. The application is always loaded: its workers may have started from another file.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.EVERYTHING)
    hosts = [host.name for host in session.fleet.hosts if host.services]
    snapshot = session.with_imports(snapshot, hosts)
    found = [finding for finding in session.blocking(snapshot) if not _is_fixed_here(finding)]
    importing = import_step(session.fleet, snapshot)
    written = {change.host for change in importing.plan(snapshot)}
    running = _running_workers(session, snapshot, written)
    kept_back = [*found, *not_restarted(session.fleet, running)]
    services = _unblocked(running, kept_back) if restart else frozenset()
    since = {
        name: state.clock_at for name, state in snapshot.reachable().items() if name in written
    }
    steps = (importing, *only([session.workers(since)], services))
    blocking = [finding for finding in found if finding.code in _OTHERWISE]
    code = walk(session, steps, snapshot, rolling=rolling, blocking=blocking)
    if running > services and code == ExitCode.OK:
        names = ", ".join(f"{service} on {host}" for host, service in sorted(running - services))
        when = "afterwards" if session.options.dry_run else "now"
        session.reporter.message(
            f"Not restarted, so still without the new imports: {names}. To be run {when}:"
            f" {Command('restart-workers')}"
        )
    return code


def _is_fixed_here(finding: Finding) -> bool:
    return finding.code == "task.never_imported" and bool(finding.fix)


def _running_workers(session: Session, snapshot: Snapshot, hosts: Collection[str]) -> Services:
    states = snapshot.reachable()
    running = set()
    for host in session.fleet.hosts:
        if host.name not in hosts:
            continue
        for worker in host.settings.workers:
            service = states[host.name].services.get(worker.known_as)
            if service and service.pid is not None:
                running.add((host.name, worker.known_as))
    return frozenset(running)


def _unblocked(services: Services, found: Iterable[Finding]) -> Services:
    blocks = [block for finding in found for block in finding.blocks]
    return frozenset(one for one in services if not any(block.covers(*one) for block in blocks))
