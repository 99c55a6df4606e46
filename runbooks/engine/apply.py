"""Carry out a plan, and look again after each stage: a step has worked when its own plan is empty
then.
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
    """The changes of all steps in their order."""
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
    """Carry the plan out stage by stage; a host on which something fails takes no part in what
    comes later.

    Returns the hosts that a rolling step failed on after it had interrupted them, or did not come
    to any more, and those where one failed that puts back: they are better off as they were. And a
    look at what a `proof` needs of the whole fleet, if one was taken after all changes.
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
    """Neighbouring steps that may share one exec and one second look on each host; none that
    interrupts is among them.

    On each host their changes are made in order, and none after one that failed.
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
    """Count the step as right where it has nothing to change and nothing has gone wrong."""
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
    """The hosts on which something failed so far, or that went away."""
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
    """Count the changes of these hosts as skipped, and report them."""
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
    """Change the hosts in batches, each proved before the next; when more have failed than may,
    interrupt no other.

    Where nothing was interrupted yet, services that do not run are started all the same: they
    cannot become worse. The look after the last batch is a look at the whole fleet where a proof of
    that follows: one look, then, not two.
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
            why = (
                f"{', '.join(failed)} failed, and no more than {rolling.max_fail} may (--max-fail)"
            )
            _skip(run, changes, mine, why)
            spared |= mine
            batch = [host for host in batch if host not in mine]
        if len(hosts) > 1 and batch:
            run.session.reporter.message(
                f"{hosts.index(batch[0])} of {len(hosts)} hosts done; now {', '.join(batch)}"
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
    """Whether the step interrupts something on a host; a failed start leaves a service that did not
    run as it was.
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
    """Make the changes of all steps of a stage, then report each step by itself; the hosts to be
    put back.
    """
    alone = len(stage) == 1
    if alone and changes:
        # Before, because it may take its time and report its progress.
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
    """Make changes and look again: a change has worked when its step no longer asks for it.

    The look is returned if it was one for the `proof`, too.
    """
    results = perform(run, changes)
    done = []
    for change, outcome, _ in results:
        if outcome is Outcome.CHANGED:
            done.append(change)
    lacking, gone, after = _second_look(run, steps, done, proof)
    for host in gone:
        run.recap.at(host).unreachable = 1
    told: list[Result] = []
    missed = []
    for change, outcome, detail in results:
        outcome, why = _after_look(change, outcome, detail, lacking, gone)
        told.append((change, outcome, why))
        if outcome is Outcome.FAILED and change in done:
            missed.append((change, why))
    if missed:
        run.journal.unproved(missed)
    return told, after


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
        # Producers and workers go on meanwhile; what was there to be judged has been dealt with.
        return outcome, f"{detail}\nnew since, and still to do: {summaries}"
    if still:
        return Outcome.FAILED, f"made, but a second look says: {summaries}"
    return Outcome.FAILED, f"made, but a second look was not possible: {gone[change.host]}"


def _on_the_same(changes: Iterable[Change], change: Change) -> list[Change]:
    """Those of these changes that are about the same as `change` on the same host."""
    found = []
    for other in changes:
        if other.host == change.host and _same_target(other.do, change.do):
            found.append(other)
    return found


def _same_target(one: Effect, other: Effect) -> bool:
    """Whether two effects are about the same file, service or queue."""
    return type(one) is type(other) and target_of(one) == target_of(other)


def _second_look(
    run: Run, steps: Sequence[Step], done: Sequence[Change], proof: Needs
) -> tuple[Sequence[Change], Mapping[str, str], Snapshot | None]:
    """What the steps of these changes still lack on their hosts, waiting as long as their state may
    take to come about.

    Also those of the hosts that do not answer now, and why: what cannot be seen is not proven. The
    first look is at all that the `proof` needs, which may be dear (probes, queues); if no other is
    needed it is returned.
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
            # A look asks them, too; but one that is bound may be dead, and hosts cost more to ask.
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
    """What the steps still lack of these changes."""
    lacking = []
    for step in steps:
        for change in step.lacking(snapshot):
            if _on_the_same(done, change):
                lacking.append(change)
    return lacking


def _gone(snapshot: Snapshot, hosts: Collection[str]) -> dict[str, str]:
    """Those of these hosts that do not answer, each with why."""
    gone = {}
    for name, state in snapshot.hosts.items():
        if name in hosts and isinstance(state, Unreachable):
            gone[name] = state.why
    return gone
