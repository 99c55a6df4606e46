"""Make changes, each written down before and after: on hosts all of one host in one exec, in the
broker one by one.
"""

from collections.abc import Mapping, Sequence

from runbooks.core.effects import BROKER, Change, Effect
from runbooks.core.errors import HostUnreachable, LockHeld, RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, Unreachable
from runbooks.core.redaction import redact
from runbooks.core.reporter import Outcome
from runbooks.core.wording import span
from runbooks.effects.dispatch import fragments, in_broker, on_host
from runbooks.engine.drain import Service, changed, drained
from runbooks.engine.journal import Journal
from runbooks.engine.observe import keep_secrets_of, on_hosts
from runbooks.engine.run import Run
from runbooks.hosts import facts
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import Transport

MARGIN_S = 60.0

Result = tuple[Change, Outcome, str]
"""What became of a change, and what there is to say about it."""


def perform(run: Run, changes: Sequence[Change]) -> list[Result]:
    """Make changes: on hosts all of one host in one exec, in the broker one after the other.

    Raises LockHeld where the lock is lost, when what was done before, and what was not, is told and
    written down.
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
    hosts = [
        host for host in session.fleet.hosts if any(change.host == host.name for change in changes)
    ]
    intended = journal.intend_all(
        [change for host in hosts for change in changes if change.host == host.name]
    )
    try:
        run.lock.held()
    except LockHeld as error:
        results += _not_made(journal, intended, error.problem)
        raise
    with drained(run, hosts, changes) as (ended, left):
        alone = [(n, change, why) for n, change in intended if (why := _why_left(change, left))]
        journal.finished_all([(n, Outcome.SKIPPED, why) for n, _, why in alone])
        for _, change, why in alone:
            run.recap.at(change.host).blocked += 1
            results.append((change, Outcome.SKIPPED, why))
        todo = [(n, change) for n, change in intended if not _why_left(change, left)]
        mine = {
            host.name: [(n, change) for n, change in todo if change.host == host.name]
            for host in hosts
        }
        hosts = [host for host in hosts if mine[host.name]]
        session.reporter.waiting(_awaited(hosts, todo))
        answers = on_hosts(
            session.transports, hosts, lambda host, way: _on_host(run, host, way, mine[host.name])
        )
        session.reporter.waiting("")
        for name, answer in answers.items():
            if isinstance(answer, Unreachable):
                run.recap.at(name).unreachable = 1
                results += [(change, Outcome.FAILED, answer.why) for _, change in mine[name]]
            else:
                results += answer
        for change, outcome, _ in results:
            ended.update(changed(change) if outcome is Outcome.CHANGED else ())


def _why_left(change: Change, left: Mapping[Service, str]) -> str:
    """Why a change is not made: one of its services is `left` alone, and all change together; ""
    where none is.
    """
    its = [service for service in changed(change) if service in left]
    return "; ".join(
        left[one] if len(changed(change)) == 1 else f"{one[1]}: {left[one]}" for one in its
    )


def _awaited(hosts: Sequence[FleetHost], todo: Sequence[tuple[int, Change]]) -> str:
    """What these changes have to wait for, "" where nothing is ended."""
    ended = [
        f"{name} on {change.host}"
        for _, change in todo
        if on_host(change.do).waits
        for name in change.services
    ]
    limit = span(max((host.settings.stop_timeout for host in hosts), default=0.0))
    return (
        f"waiting up to {limit} for {', '.join(ended[:3])}{', …' * (len(ended) > 3)} to end"
        if ended
        else ""
    )


def _on_host(
    run: Run, host: FleetHost, transport: Transport, intended: Sequence[tuple[int, Change]]
) -> list[Result]:
    try:
        effects = {str(n): change.do for n, change in intended}
        up_s, read = _read_first(transport, effects)
        services = sum(len(on_host(effect).services) for effect in effects.values())
        budget_s = MARGIN_S + (host.settings.stop_timeout + host.settings.start_timeout) * services
        fragment_of = fragments(host, effects, read)
        answers = run_fragments(
            transport,
            fragment_of,
            timeout_s=budget_s,
            stop_at_failure=True,
            begins_by_s=up_s + run.lock.held(),
        )
    except HostUnreachable:
        raise
    except LockHeld as error:  # another run may be at work here by now
        return _not_made(run.journal, intended, error.problem)
    except (
        RunbookError
    ) as error:  # the plan is stale here, or a file cannot be read: this host's failure alone
        answers = {str(intended[0][0]): Answer(error.exit_code, b"", error.problem)}
    else:
        answers = {
            n: _told(host, transport, answer) if answer.code else answer
            for n, answer in answers.items()
        }
    results = [(change, *_judge(answers.get(str(n)))) for n, change in intended]
    run.journal.finished_all(
        [
            (n, outcome, detail)
            for (n, _), (_, outcome, detail) in zip(intended, results, strict=True)
        ]
    )
    return results


def _not_made(journal: Journal, intended: Sequence[tuple[int, Change]], why: str) -> list[Result]:
    journal.finished_all([(n, Outcome.SKIPPED, why) for n, _ in intended])
    return [(change, Outcome.SKIPPED, why) for _, change in intended]


def _read_first(
    transport: Transport, effects: Mapping[str, Effect]
) -> tuple[float, dict[str, FileState]]:
    """For how many seconds the host is up, and the files that effects have to know, by the effect's
    name.
    """
    files = {n: [path] for n, effect in effects.items() if (path := on_host(effect).reads)}
    questions = {"uptime": facts.ask_uptime()} | {
        n: facts.ask_files(paths) for n, paths in files.items()
    }
    answers = run_fragments(transport, questions, timeout_s=MARGIN_S, private=list(files))
    read = {n: facts.parse_files(paths, answers[n])[paths[0]] for n, paths in files.items()}
    return facts.parse_uptime(answers["uptime"]), read


def _told(host: FleetHost, transport: Transport, answer: Answer) -> Answer:
    """What may be shown of a command that failed: a start script may tell all that is in the
    environment file.
    """
    path = host.settings.env_file
    try:
        found = run_fragments(
            transport, {"file": facts.ask_files([path])}, timeout_s=MARGIN_S, private=["file"]
        )["file"]
        keep_secrets_of(facts.parse_files([path], found)[path])
    except RunbookError:
        return Answer(answer.code, b"", f"what it said is not shown, for {path} cannot be read now")
    return Answer(answer.code, b"", redact(answer.err + answer.out.decode(errors="replace")))


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
        detail = in_broker(change.do).make(run.session.broker, run.session.fleet, journal.directory)
    except RunbookError as error:
        journal.finished(n, Outcome.FAILED, error.problem)
        raise
    journal.finished(n, Outcome.CHANGED, detail)
    return Outcome.CHANGED, detail
