"""Make changes, each written down before and after: on hosts all of one host in one exec, in the broker one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from runbooks.core.effects import (
    BROKER,
    Change,
    ControlService,
    Effect,
    EndProcesses,
    RecallMessages,
    RestoreMessages,
    RestoreSelected,
    SetEnvironment,
    TakeMessages,
    TakeUnacked,
)
from runbooks.core.errors import HostUnreachable, LockHeld, RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import Unreachable
from runbooks.core.reporter import Outcome
from runbooks.core.wording import span
from runbooks.engine.context import Session
from runbooks.engine.drain import changed_service, drained
from runbooks.engine.journal import Journal
from runbooks.engine.observe import on_hosts, secrets_in
from runbooks.engine.run import Run
from runbooks.hosts import facts
from runbooks.hosts.effects import as_write, fragments
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import Transport

MARGIN_S = 60.0

Result = tuple[Change, Outcome, str]
"""What became of a change, and what there is to say about it."""


def perform(run: Run, changes: Sequence[Change]) -> list[Result]:
    """Make changes: on hosts all of one host in one exec, in the broker one after the other.

    Raises LockHeld where the lock is lost, when what was done before, and what was not, is told and written down.
    """
    results: list[Result] = []
    try:
        run.lock.held()
        for change in (change for change in changes if change.host == BROKER):
            run.lock.held()
            results.append((change, *_in_broker(run, change)))
        _perform_on_hosts(run, changes, results)
        run.lock.held()
    except RunbookError:
        tell(run, results)
        raise
    return results


def tell(run: Run, results: Sequence[Result]) -> None:
    """Count what became of changes, and tell it."""
    for change, outcome, detail in results:
        tally = run.recap.at(change.host)
        tally.changed += outcome is Outcome.CHANGED
        tally.failed += outcome is Outcome.FAILED
        tally.skipped += outcome is Outcome.SKIPPED
        run.session.reporter.change(change, outcome, detail)


def _perform_on_hosts(run: Run, changes: Sequence[Change], results: list[Result]) -> None:
    session, journal = run.session, run.journal
    hosts = [host for host in session.fleet.hosts if any(change.host == host.name for change in changes)]
    intended = journal.intend_all([change for host in hosts for change in changes if change.host == host.name])
    try:
        run.lock.held()
    except LockHeld as error:
        results += _not_made(journal, intended, error.problem)
        raise
    with drained(run, hosts, changes) as (ended, left):
        alone = [(n, change) for n, change in intended if changed_service(change) in left]
        journal.finished_all([(n, Outcome.SKIPPED, left[changed_service(change)]) for n, change in alone])
        for _, change in alone:
            run.recap.at(change.host).blocked += 1
            results.append((change, Outcome.SKIPPED, left[changed_service(change)]))
        todo = [(n, change) for n, change in intended if changed_service(change) not in left]
        mine = {host.name: [(n, change) for n, change in todo if change.host == host.name] for host in hosts}
        hosts = [host for host in hosts if mine[host.name]]
        session.reporter.waiting(_awaited(hosts, todo))
        answers = on_hosts(session.transports, hosts, lambda host, way: _on_host(run, host, way, mine[host.name]))
        session.reporter.waiting("")
        for name, answer in answers.items():
            if isinstance(answer, Unreachable):
                run.recap.at(name).unreachable = 1
                results += [(change, Outcome.FAILED, answer.why) for _, change in mine[name]]
            else:
                results += answer
        ended |= {changed_service(change) for change, outcome, _ in results if outcome is Outcome.CHANGED}


def _awaited(hosts: Sequence[FleetHost], todo: Sequence[tuple[int, Change]]) -> str:
    """What these changes have to wait for, "" where nothing is ended."""
    ended = [f"{change.do.service} on {change.host}" for _, change in todo if _ends(change.do)]
    limit = span(max((host.settings.stop_timeout for host in hosts), default=0.0))
    return f"waiting up to {limit} for {', '.join(ended[:3])}{', …' * (len(ended) > 3)} to end" if ended else ""


def _ends(effect: Effect) -> TypeGuard[ControlService | EndProcesses]:
    return isinstance(effect, EndProcesses) or (isinstance(effect, ControlService) and effect.action != "start")


def _on_host(run: Run, host: FleetHost, transport: Transport, intended: Sequence[tuple[int, Change]]) -> list[Result]:
    try:
        up_s, effects = _as_of_now(transport, intended)
        budget_s = MARGIN_S + (host.settings.stop_timeout + host.settings.start_timeout) * len(effects)
        fragment_of = fragments(host, effects)
        answers = run_fragments(
            transport, fragment_of, timeout_s=budget_s, stop_at_failure=True, begins_by_s=up_s + run.lock.held()
        )
    except HostUnreachable:
        raise
    except LockHeld as error:  # another run may be at work here by now
        return _not_made(run.journal, intended, error.problem)
    except RunbookError as error:  # the plan is stale here, or a file cannot be read: this host's failure alone
        answers = {str(intended[0][0]): Answer(error.exit_code, b"", error.problem)}
    else:
        answers = {n: _told(host, transport, answer) if answer.code else answer for n, answer in answers.items()}
    results = [(change, *_judge(answers.get(str(n)))) for n, change in intended]
    run.journal.finished_all(
        [(n, outcome, detail) for (n, _), (_, outcome, detail) in zip(intended, results, strict=True)]
    )
    return results


def _not_made(journal: Journal, intended: Sequence[tuple[int, Change]], why: str) -> list[Result]:
    journal.finished_all([(n, Outcome.SKIPPED, why) for n, _ in intended])
    return [(change, Outcome.SKIPPED, why) for _, change in intended]


def _as_of_now(transport: Transport, intended: Sequence[tuple[int, Change]]) -> tuple[float, dict[str, Effect]]:
    """For how many seconds the host is up, and the effects, those that depend on what a file holds as the writes they
    come to now; these stay unwritten in the journal.
    """
    effects = {str(n): change.do for n, change in intended}
    files = {n: [effect.path] for n, effect in effects.items() if isinstance(effect, SetEnvironment)}
    questions = {"uptime": facts.ask_uptime()} | {n: facts.ask_files(paths) for n, paths in files.items()}
    answers = run_fragments(transport, questions, timeout_s=MARGIN_S, private=list(files))
    read = {n: facts.parse_files(paths, answers[n])[paths[0]] for n, paths in files.items()}
    concrete = {n: as_write(effect, read[n]) for n, effect in effects.items() if isinstance(effect, SetEnvironment)}
    return facts.parse_uptime(answers["uptime"]), effects | concrete


def _told(host: FleetHost, transport: Transport, answer: Answer) -> Answer:
    """What may be shown of a command that failed: a start script may tell all that is in the environment file."""
    path = host.settings.env_file
    try:
        found = run_fragments(transport, {"file": facts.ask_files([path])}, timeout_s=MARGIN_S, private=["file"])[
            "file"
        ]
        secrets = secrets_in(facts.parse_files([path], found)[path])
    except RunbookError:
        return Answer(answer.code, b"", f"what it said is not shown, for {path} cannot be read now")
    return Answer(answer.code, b"", facts.redact(answer.err + answer.out.decode(errors="replace"), secrets))


def _judge(answer: Answer | None) -> tuple[Outcome, str]:
    if answer is None:
        return Outcome.SKIPPED, "not tried: an earlier change on this host failed"
    if answer.code == 0:
        return Outcome.CHANGED, ""
    said = "\n".join(answer.err.strip().splitlines()[-10:])
    return Outcome.FAILED, f"exit code {answer.code}: {said or 'it said nothing'}"


def _in_broker(run: Run, change: Change) -> tuple[Outcome, str]:
    journal = run.journal
    n = journal.intend(change)
    try:
        detail = _carry_out(run.session, journal.directory, change.do)
    except RunbookError as error:
        journal.finished(n, Outcome.FAILED, error.problem)
        raise
    journal.finished(n, Outcome.CHANGED, detail)
    return Outcome.CHANGED, detail


def _carry_out(session: Session, directory: Path, effect: Effect) -> str:
    match effect:
        case TakeMessages(archive=archive):
            return session.broker.take(effect, directory / archive)
        case TakeUnacked(archive=archive):
            return session.broker.take_unacked(session.fleet, effect, directory / archive)
        case RestoreMessages(archive=archive, malformed=malformed):
            return session.broker.restore(Path(archive), malformed=malformed)
        case RestoreSelected():
            return session.broker.restore_selected(effect)
        case RecallMessages(archive=archive, token=token):
            return session.broker.recall(Path(archive), token)
    raise TypeError(f"{type(effect).__name__} is not an effect in the broker")
