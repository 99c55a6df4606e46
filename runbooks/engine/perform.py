"""Make changes: all of a host in one exec, those in the broker one by one.

Each change is recorded before and after.
"""

from collections.abc import Mapping, Sequence

from runbooks.core.effects import BROKER, Change, Effect
from runbooks.core.errors import HostUnreachable, LockHeld, RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, Unreachable
from runbooks.core.redaction import redact
from runbooks.core.reporter import Outcome
from runbooks.core.wording import first_few, span
from runbooks.effects.dispatch import fragments, in_broker, on_host
from runbooks.engine.drain import Service, changed, drained
from runbooks.engine.host_look import keep_secrets_of
from runbooks.engine.journal import Journal
from runbooks.engine.observe import on_hosts
from runbooks.engine.run import Run
from runbooks.hosts import facts
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import Transport

MARGIN_S = 60.0

Numbered = Sequence[tuple[int, Change]]
"""Changes, each with its number in the journal."""

Result = tuple[Change, Outcome, str]
"""A change, its outcome, and details for the operator."""


def perform(run: Run, changes: Sequence[Change]) -> list[Result]:
    """Make changes, and return the result of each.

    Raises LockHeld if the lock is lost, after the results so far were reported and recorded.
    """
    results: list[Result] = []
    try:
        run.lock.held()
        for change in changes:
            if change.host == BROKER:
                run.lock.held()
                results.append((change, *_in_broker(run, change)))
        _perform_on_hosts(run, changes, results)
        run.lock.held()
    except RunbookError:
        tell(run, results)
        raise
    return results


def tell(run: Run, results: Sequence[Result]) -> None:
    """Count and report the results of changes."""
    for change, outcome, detail in results:
        tally = run.recap.at(change.host)
        if outcome is Outcome.CHANGED:
            tally.changed += 1
        elif outcome is Outcome.FAILED:
            tally.failed += 1
        elif outcome is Outcome.SKIPPED:
            tally.skipped += 1
        run.session.reporter.change(change, outcome, detail)


def _perform_on_hosts(run: Run, changes: Sequence[Change], results: list[Result]) -> None:
    changed_hosts = {change.host for change in changes}
    hosts = []
    for host in run.session.fleet.hosts:
        if host.name in changed_hosts:
            hosts.append(host)
    ordered: list[Change] = []
    for host in hosts:
        ordered += [change for change in changes if change.host == host.name]
    intended = run.journal.intend_all(ordered)
    try:
        run.lock.held()
    except LockHeld as error:
        results += _not_made(run.journal, intended, error.problem)
        raise
    with drained(run, hosts, changes) as (ended, left):
        results += _left_alone(run, intended, left)
        todo = []
        for n, change in intended:
            if not _why_left(change, left):
                todo.append((n, change))
        results += _made(run, hosts, todo)
        for change, outcome, _ in results:
            if outcome is Outcome.CHANGED:
                ended.update(changed(change))


def _left_alone(run: Run, intended: Numbered, left: Mapping[Service, str]) -> list[Result]:
    """Record the changes that are skipped because their services are in `left`."""
    outcomes = []
    results: list[Result] = []
    for n, change in intended:
        why = _why_left(change, left)
        if why:
            outcomes.append((n, Outcome.SKIPPED, why))
            results.append((change, Outcome.SKIPPED, why))
    run.journal.finished_all(outcomes)
    for change, _, _ in results:
        run.recap.at(change.host).blocked += 1
    return results


def _made(run: Run, hosts: Sequence[FleetHost], todo: Numbered) -> list[Result]:
    """Make changes on all of these hosts in parallel."""
    session = run.session
    mine: dict[str, list[tuple[int, Change]]] = {}
    for n, change in todo:
        mine.setdefault(change.host, []).append((n, change))
    hosts = [host for host in hosts if host.name in mine]
    session.reporter.waiting(_awaited(hosts, todo))
    answers = on_hosts(
        session.transports, hosts, lambda host, way: _on_host(run, host, way, mine[host.name])
    )
    session.reporter.waiting("")
    results: list[Result] = []
    for name, answer in answers.items():
        if isinstance(answer, Unreachable):
            run.recap.at(name).unreachable = 1
            results += [(change, Outcome.FAILED, answer.why) for _, change in mine[name]]
        else:
            results += answer
    return results


def _why_left(change: Change, left: Mapping[Service, str]) -> str:
    """Say why a change is skipped: one of its services is in `left`; "" if none is."""
    services = changed(change)
    reasons = []
    for service in services:
        if service not in left:
            continue
        reason = left[service]
        if len(services) > 1:
            _, name = service
            reason = f"{name}: {reason}"
        reasons.append(reason)
    return "; ".join(reasons)


def _awaited(hosts: Sequence[FleetHost], todo: Numbered) -> str:
    """Say which processes these changes wait for; "" for none."""
    ended = []
    for _, change in todo:
        if on_host(change.do).waits:
            ended += [f"{name} on {change.host}" for name in change.services]
    if not ended:
        return ""
    limit = span(max((host.settings.stop_timeout for host in hosts), default=0.0))
    return f"waiting up to {limit} for {first_few(ended)} to stop"


def _on_host(run: Run, host: FleetHost, transport: Transport, intended: Numbered) -> list[Result]:
    effects = {str(n): change.do for n, change in intended}
    try:
        answers = _answers(run, host, transport, effects)
    except HostUnreachable:
        raise
    except LockHeld as error:  # another run may be at work here by now
        return _not_made(run.journal, intended, error.problem)
    except RunbookError as error:
        # The plan is stale, or a file cannot be read: a failure of this host alone.
        first = next(iter(effects))
        answers = {first: Answer(error.exit_code, b"", error.problem)}
    else:
        answers = _shown(host, transport, answers)
    results: list[Result] = []
    outcomes = []
    for n, change in intended:
        outcome, detail = _judge(answers.get(str(n)))
        results.append((change, outcome, detail))
        outcomes.append((n, outcome, detail))
    run.journal.finished_all(outcomes)
    return results


def _answers(
    run: Run, host: FleetHost, transport: Transport, effects: Mapping[str, Effect]
) -> Mapping[str, Answer]:
    """Perform effects until one fails; return the host's answer to each."""
    settings = host.settings
    up_s, read = _read_first(transport, effects)
    services = sum(len(on_host(effect).services) for effect in effects.values())
    budget_s = MARGIN_S + (settings.stop_timeout + settings.start_timeout) * services
    fragment_of = fragments(host, effects, read)
    return run_fragments(
        transport,
        fragment_of,
        timeout_s=budget_s,
        stop_at_failure=True,
        begins_by_s=up_s + run.lock.held(),
    )


def _shown(
    host: FleetHost, transport: Transport, answers: Mapping[str, Answer]
) -> dict[str, Answer]:
    """Return the answers with secrets hidden in those of failed commands."""
    shown = dict(answers)
    for n, answer in answers.items():
        if answer.code:
            shown[n] = _redacted(host, transport, answer)
    return shown


def _not_made(journal: Journal, intended: Numbered, why: str) -> list[Result]:
    journal.finished_all([(n, Outcome.SKIPPED, why) for n, _ in intended])
    return [(change, Outcome.SKIPPED, why) for _, change in intended]


def _read_first(
    transport: Transport, effects: Mapping[str, Effect]
) -> tuple[float, dict[str, FileState]]:
    """Return the host's uptime in seconds, and the files that effects need, by effect."""
    questions = {"uptime": facts.ask_uptime()}
    paths: dict[str, str] = {}
    for n, effect in effects.items():
        path = on_host(effect).reads
        if path:
            paths[n] = path
            questions[n] = facts.ask_files([path])
    answers = run_fragments(transport, questions, timeout_s=MARGIN_S, private=list(paths))
    read = {}
    for n, path in paths.items():
        files = facts.parse_files([path], answers[n])
        read[n] = files[path]
    return facts.parse_uptime(answers["uptime"]), read


def _redacted(host: FleetHost, transport: Transport, answer: Answer) -> Answer:
    """Return the answer of a failed command without secrets.

    A start script may print the whole environment file.
    """
    path = host.settings.env_file
    questions = {"file": facts.ask_files([path])}
    try:
        answers = run_fragments(transport, questions, timeout_s=MARGIN_S, private=["file"])
        keep_secrets_of(facts.parse_files([path], answers["file"])[path])
    except RunbookError:
        reason = f"its output is not shown, because {path} cannot be read now"
        return Answer(answer.code, b"", reason)
    said = answer.err + answer.out.decode(errors="replace")
    return Answer(answer.code, b"", redact(said))


def _judge(answer: Answer | None) -> tuple[Outcome, str]:
    if answer is None:
        return Outcome.SKIPPED, "an earlier change on this host failed"
    if answer.code == 0:
        return Outcome.CHANGED, ""
    said = "\n".join(answer.err.strip().splitlines()[-10:])
    return Outcome.FAILED, f"exit code {answer.code}: {said or 'no output'}"


def _in_broker(run: Run, change: Change) -> tuple[Outcome, str]:
    journal = run.journal
    n = journal.intend(change)
    try:
        session = run.session
        handler = in_broker(change.do)
        detail = handler.make(session.broker, session.fleet, journal.directory)
    except RunbookError as error:
        journal.finished(n, Outcome.FAILED, error.problem)
        raise
    journal.finished(n, Outcome.CHANGED, detail)
    return Outcome.CHANGED, detail
