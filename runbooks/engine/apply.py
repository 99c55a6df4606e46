"""Apply a plan, and look again after each stage.

A step has succeeded if it plans nothing after the second look.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from runbooks.core.effects import BROKER, Change, Effect, target_of
from runbooks.core.model import Snapshot, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.reporter import Outcome
from runbooks.diagnosis.step import Step
from runbooks.effects.dispatch import handler_of
from runbooks.engine.drain import all_gave_up, await_nodes
from runbooks.engine.perform import Result, perform, tell
from runbooks.engine.rolling import Rolling
from runbooks.engine.run import Run
from runbooks.engine.seen import Seen

PAUSE_S = 0.25


def make_plan(steps: Sequence[Step], snapshot: Snapshot) -> tuple[Change, ...]:
    """Return the changes of all steps, in the order of the steps."""
    plan: list[Change] = []
    for step in steps:
        plan += step.plan(snapshot)
    return tuple(plan)


def apply(
    run: Run,
    steps: Sequence[Step],
    plan: Sequence[Change],
    rolling: Rolling,
    proof: Needs,
) -> tuple[frozenset[str], Snapshot | None]:
    """Apply the plan stage by stage; skip the later changes of a host on which one failed.

    Returns the hosts to roll back, and a look at everything that `proof` needs of the whole fleet
    (None if no such look was taken after the last change). A host is rolled back if a rolling step
    failed after interrupting it, or did not reach it, or if a step with `puts_back` failed on it.
    """
    worse: frozenset[str] = frozenset()
    after: Snapshot | None = None
    for stage in _stages(steps):
        names = [step.name for step in stage]
        changes = []
        for change in plan:
            if change.step in names:
                changes.append(change)
        rolls = stage[0].rolling and bool(changes)
        if rolls:
            run.session.reporter.step(names[0])
        todo = _without_failed(run, changes)
        if rolls:
            _count_right(run, stage[0], changes)
            failed, after = _roll(run, stage[0], todo, rolling, proof)
            worse |= failed
        else:
            if todo:
                after = None
            worse |= _run_stage(run, stage, todo)
    return worse, after


def _stages(steps: Sequence[Step]) -> list[list[Step]]:
    """Group neighbouring steps that share one exec and one second look on each host.

    A step that interrupts services is always alone. The changes of a host run in order, and stop
    at the first one that fails.
    """
    stages: list[list[Step]] = []
    for step in steps:
        if stages and _may_share(step) and _may_share(stages[-1][0]):
            stages[-1].append(step)
        else:
            stages.append([step])
    return stages


def _may_share(step: Step) -> bool:
    return not step.rolling and Needs.QUEUES not in step.needs


def _count_right(run: Run, step: Step, changes: Sequence[Change]) -> None:
    """Count the step as ok on hosts where it has nothing to change and nothing has failed."""
    if Needs.QUEUES in step.needs:
        hosts = {BROKER}
    else:
        hosts = {host.name for host in run.session.fleet.hosts}
    for change in changes:
        if change.step == step.name:
            hosts.discard(change.host)
    for host in hosts:
        tally = run.recap.at(host)
        if not tally.bad:
            tally.ok += 1


def _failed_hosts(run: Run) -> list[str]:
    """Return the hosts on which something failed so far, or that stopped answering."""
    found = []
    for name, tally in run.recap.tallies.items():
        if tally.failed or tally.unreachable:
            found.append(name)
    return found


def _without_failed(run: Run, changes: Sequence[Change]) -> list[Change]:
    failed = set(_failed_hosts(run))
    _skip(run, changes, failed, "an earlier step failed on this host")
    return [change for change in changes if change.host not in failed]


def _skip(run: Run, changes: Iterable[Change], hosts: Collection[str], why: str) -> None:
    """Count and report the changes of these hosts as skipped."""
    for change in changes:
        if change.host in hosts:
            run.recap.at(change.host).skipped += 1
            run.session.reporter.change(change, Outcome.SKIPPED, why)


def _roll(
    run: Run,
    step: Step,
    changes: Sequence[Change],
    rolling: Rolling,
    proof: Needs,
) -> tuple[frozenset[str], Snapshot | None]:
    """Change the hosts in batches; verify each batch before the next.

    If more than `max_fail` hosts have failed, the step interrupts no further host. As long as
    nothing was interrupted, it still starts services that do not run: they cannot become worse. If
    a verification of the whole fleet follows, the look after the last batch covers it too.
    """
    hosts = list(dict.fromkeys(change.host for change in changes))
    worse: set[str] = set()
    spared: set[str] = set()
    after: Snapshot | None = None
    for batch in rolling.batches(hosts):
        failed = _failed_hosts(run)
        if len(failed) > rolling.max_fail and not set(hosts).isdisjoint(failed):
            mine = set()
            for host in batch:
                if worse or _interrupts(changes, host):
                    mine.add(host)
            why = f"{', '.join(failed)} failed, and --max-fail allows {rolling.max_fail}"
            _skip(run, changes, mine, why)
            spared |= mine
            batch = [host for host in batch if host not in mine]
        if len(hosts) > 1 and batch:
            run.session.reporter.message(
                f"{hosts.index(batch[0])} of {len(hosts)} hosts done; next: {', '.join(batch)}"
            )
        todo = []
        for change in changes:
            if change.host in batch:
                todo.append(change)
        look = Needs(0)
        if list(batch[-1:]) == hosts[-1:]:
            look = proof
        results, after = _proved(run, [step], todo, look)
        tell(run, results)
        for host in batch:
            if run.recap.at(host).failed and _interrupts(todo, host):
                worse.add(host)
    return frozenset(worse | spared), after


def _interrupts(changes: Sequence[Change], host: str) -> bool:
    """Whether the step interrupts something on a host.

    A failed start does not: the service did not run before either.
    """
    for change in changes:
        if change.host == host and handler_of(change.do).stops:
            return True
    return False


def _run_stage(
    run: Run,
    stage: Sequence[Step],
    changes: Sequence[Change],
) -> frozenset[str]:
    """Make the changes of a stage, report each step, and return the hosts to roll back."""
    alone = len(stage) == 1
    if alone and changes:
        # Reported first: the step may take long and report its progress.
        run.session.reporter.step(stage[0].name)
    results: list[Result] = []
    if changes:
        results, _ = _proved(run, stage, changes, Needs(0))
    for step in stage:
        mine = []
        for result in results:
            if result[0].step == step.name:
                mine.append(result)
        _count_right(run, step, [change for change, _, _ in mine])
        if mine and not alone:
            run.session.reporter.step(step.name)
        tell(run, mine)

    puts_back = set()
    for step in stage:
        if step.puts_back:
            puts_back.add(step.name)
    put_back = set()
    for change, outcome, _ in results:
        if outcome is Outcome.FAILED and change.step in puts_back:
            put_back.add(change.host)
    return frozenset(put_back)


def _proved(
    run: Run,
    steps: Sequence[Step],
    changes: Sequence[Change],
    proof: Needs,
) -> tuple[list[Result], Snapshot | None]:
    """Make changes and look again: a change has succeeded if its step no longer plans it.

    Returns the results, and the look if it covers everything that `proof` needs.
    """
    results = perform(run, changes)
    done = []
    for change, outcome, _ in results:
        if outcome is Outcome.CHANGED:
            done.append(change)
    lacking, gone, after = _second_look(run, steps, done, proof)
    for host in gone:
        run.recap.at(host).unreachable = 1
    judged: list[Result] = []
    missed = []
    for change, outcome, detail in results:
        outcome, why = _after_look(change, outcome, detail, lacking, gone)
        judged.append((change, outcome, why))
        if outcome is Outcome.FAILED and change in done:
            missed.append((change, why))
    if missed:
        run.journal.unproved(missed)
    return judged, after


def _after_look(
    change: Change,
    outcome: Outcome,
    detail: str,
    lacking: Sequence[Change],
    gone: Mapping[str, str],
) -> tuple[Outcome, str]:
    still = _on_the_same(lacking, change)
    if outcome is not Outcome.CHANGED or not (still or change.host in gone):
        return outcome, detail
    summaries = "; ".join(other.summary for other in still)
    if still and sum(other.count for other in still) < change.count:
        # Producers and workers went on meanwhile; everything that was planned has been done.
        return outcome, f"{detail}\nnew since then, still to do: {summaries}"
    if still:
        return Outcome.FAILED, f"done, but a second look still finds: {summaries}"
    return Outcome.FAILED, f"done, but not verified: {gone[change.host]}"


def _on_the_same(changes: Iterable[Change], change: Change) -> list[Change]:
    """Return those of these changes that have the same host and target as `change`."""
    found = []
    for other in changes:
        if other.host == change.host and _same_target(other.do, change.do):
            found.append(other)
    return found


def _same_target(one: Effect, other: Effect) -> bool:
    """Whether two effects have the same file, service or queue as their target."""
    return type(one) is type(other) and target_of(one) == target_of(other)


def _second_look(
    run: Run, steps: Sequence[Step], done: Sequence[Change], proof: Needs
) -> tuple[Sequence[Change], Mapping[str, str], Snapshot | None]:
    """Look until the changes show, or until their steps' patience has run out.

    Returns the changes that are still missing, the hosts that do not answer (each with the
    reason), and the look if it covers everything that `proof` needs. Only the first look covers
    that: probes and queues may be expensive to read.
    """
    session = run.session
    hosts = {change.host for change in done}
    names = {change.step for change in done}
    asked = []
    for step in steps:
        if step.name in names:
            asked.append(step)
    needs = Needs(0)
    patience_s = 0.0
    for step in asked:
        needs |= step.needs
        patience_s = max(patience_s, step.patience_s)
    deadline = time.monotonic() + patience_s
    looked = False
    while done:
        if Needs.NODES in needs:
            # A look asks them too, but asking hosts costs more; and a bound node may be dead.
            await_nodes(session, done, deadline, answering=looked)
        whole = None
        if proof and not looked:
            whole = session.observe(needs | proof)
        snapshot = whole or session.observe(needs, hosts)
        looked = True
        lacking = _lacking(asked, snapshot, done)
        gone = _gone(snapshot, hosts)
        settled = not gone and all_gave_up(lacking, snapshot.hosts)
        if settled or time.monotonic() >= deadline:
            session.reporter.waiting("")
            session.remember(snapshot)
            if Needs.QUEUES in needs:
                run.journal.saw(Seen.of(snapshot))
            return lacking, gone, whole
        awaited = "for " + ", ".join(gone)
        if lacking:
            awaited = lacking[0].summary
        session.reporter.waiting(f"waiting: {awaited}")
        time.sleep(PAUSE_S)
    return (), {}, None


def _lacking(steps: Iterable[Step], snapshot: Snapshot, done: Sequence[Change]) -> list[Change]:
    """Return those of these changes that the steps still plan."""
    lacking = []
    for step in steps:
        for change in step.lacking(snapshot):
            if _on_the_same(done, change):
                lacking.append(change)
    return lacking


def _gone(snapshot: Snapshot, hosts: Collection[str]) -> dict[str, str]:
    """Return those of these hosts that do not answer, each with the reason."""
    gone = {}
    for name, state in snapshot.hosts.items():
        if name in hosts and isinstance(state, Unreachable):
            gone[name] = state.why
    return gone
