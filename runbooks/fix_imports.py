"""`inv fix-imports`: import expected tasks that nothing imports, in the file that makes the
application.
"""

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
"""What keeps a host from being mended so, where it comes without the change."""


def fix_imports(session: Session, rolling: Rolling, *, restart: bool = True) -> ExitCode:
    """Each change was tried on its host first, and is proved by loading the application again; else
    it is put back.

    The running workers of these hosts are restarted after that, for they load the application when
    they start; not without `restart`, and not where a finding forbids it. Where an import fails
    nothing is written: that has to be mended first. The application is loaded whatever its workers
    know, for these may have been started on another file.
    """
    session.require_consent_possible()
    snapshot = session.observe(Needs.EVERYTHING)
    snapshot = session.with_imports(
        snapshot, [host.name for host in session.fleet.hosts if host.services]
    )
    found = [finding for finding in session.blocking(snapshot) if not _is_mended_here(finding)]
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
            f"Workers load the application when they start; {names} is not restarted here; {when}: "
            f"{Command('restart-workers')}"
        )
    return code


def _is_mended_here(finding: Finding) -> bool:
    return finding.code == "task.never_imported" and bool(finding.fix)


def _running_workers(session: Session, snapshot: Snapshot, hosts: Collection[str]) -> Services:
    states = snapshot.reachable()
    return frozenset(
        (host.name, worker.known_as)
        for host in session.fleet.hosts
        if host.name in hosts
        for worker in host.settings.workers
        if (service := states[host.name].services.get(worker.known_as)) and service.pid is not None
    )


def _unblocked(services: Services, found: Iterable[Finding]) -> Services:
    blocks = [block for finding in found for block in finding.blocks]
    return frozenset(one for one in services if not any(block.covers(*one) for block in blocks))
