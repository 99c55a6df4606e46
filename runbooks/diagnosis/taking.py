"""The changes of a queue: what is taken out of it, and what an operator reads before agreeing."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from runbooks.broker.archive.search import archive_name
from runbooks.broker.messages.selection import for_queue
from runbooks.broker.server.keys import readable
from runbooks.core.effects import BROKER, Change, RestoreMessages, TakeMessages, TakeUnacked
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    MessageSummary,
    Notice,
    QueueState,
    Selection,
    Snapshot,
    silent_nodes,
)
from runbooks.core.needs import Needs
from runbooks.core.outside import as_lines
from runbooks.core.rules import text
from runbooks.core.wording import ago, counted, notice, span

_SAMPLES_SHOWN = 5


STEP = "queues"


def needs_of(fleet: Fleet) -> Needs:
    """What has to be observed: the nodes, which take a second to answer, only where a rule speaks
    of them.
    """
    needs = Needs.QUEUES
    if any(rule.unregistered for rule in fleet.rules):
        needs |= Needs.NODES
    if any(rule.unacked for rule in fleet.rules):
        needs |= Needs.NODES | Needs.SERVICES
    return needs


def require_one_time(fleet: Fleet, snapshot: Snapshot) -> None:
    """Raise RunbookError where messages would be taken for their time, and it is not clear what
    time it is.
    """
    assert snapshot.broker is not None
    by_time = any(rule.expired or rule.eta_overdue_s is not None for rule in fleet.rules)
    chosen = any(state.selected or state.unacked for state in snapshot.broker.queues.values())
    if by_time and chosen and snapshot.broker.clocks_differ:
        raise RunbookError(
            "the clocks of this machine and of the broker differ by"
            f" {span(snapshot.broker.clock_ahead_s)}, so what is overdue or expired is not known;"
            " nothing was taken",
            "set the wrong one (timedatectl tells whether a clock is synchronized), then run again",
        )


def notices(fleet: Fleet, snapshot: Snapshot) -> list[str]:
    """What the operator has to know of messages that the rules mean, where no change says it."""
    assert snapshot.broker is not None
    quiet = [
        state for state in snapshot.broker.queues.values() if not take(fleet, state, snapshot.at)
    ]
    told = [f"{state.name}: {notice(one)}" for state in quiet for one in state.notices]
    rules = [rule for rule in fleet.rules if rule.unregistered]
    if rules and not snapshot.broker.nodes:
        told += [
            f"{rule.reason}: no node answers, so which tasks are unregistered is not known"
            for rule in rules
        ]
    silent = sorted(set(fleet.all_nodes) - snapshot.broker.nodes.keys())
    if rules and snapshot.broker.nodes and silent:
        told.append(
            f"{', '.join(silent)} does not answer, and may know tasks that count as unregistered"
        )
    unsure = doubtful(fleet, snapshot)
    if unsure and any(rule.unacked for rule in fleet.rules):
        told.append(
            f"unacked messages are left alone: {', '.join(unsure)} may hold them and does not"
            " answer"
        )
    return told


def takes_malformed(fleet: Fleet, state: QueueState) -> bool:
    """Whether a rule means the queue's malformed items, and there are some."""
    return bool(state.malformed.count) and any(
        rule.malformed for rule in for_queue(fleet.rules, state.name)
    )


def take(fleet: Fleet, state: QueueState, now: float) -> Change | None:
    """Take out, or move on, what the rules mean; and bring home what a killed run has set aside."""
    selections = [*state.selected, *([state.malformed] if takes_malformed(fleet, state) else [])]
    if not selections and not state.aside:
        return None
    archive = archive_name(state.name)
    do = TakeMessages(state.name, archive, _rules(fleet, state.name))
    home = (
        f"bring {counted(state.aside, 'message')} home into {state.name} that a killed run has left"
        " aside"
    )
    of_all = f"of {counted(state.depth, 'message')}"
    what = _what(state.name, selections, of_all, of_all) if selections else home
    remains = _remains(state, selections) if selections else ()
    return _change(what, do, RestoreMessages(archive), selections, state.notices, now, remains)


def take_unacked(fleet: Fleet, state: QueueState, snapshot: Snapshot) -> Change | None:
    """The same of what was fetched and is held by no node; None while a node that may hold it is
    silent.
    """
    if not state.unacked or doubtful(fleet, snapshot):
        return None
    assert snapshot.broker is not None
    stopped = tuple(sorted(silent_nodes(fleet.all_nodes, snapshot.broker.nodes)))
    archive = archive_name(state.name, unacked=True)
    do = TakeUnacked(state.name, archive, _rules(fleet, state.name, unacked=True), stopped)
    which = "unacked message that no node holds", "unacked messages that no node holds"
    what = _what(state.name, state.unacked, *which)
    return _change(what, do, RestoreMessages(archive), state.unacked, (), snapshot.at)


def _rules(fleet: Fleet, queue: str, *, unacked: bool = False) -> tuple[str, ...]:
    return tuple(
        text(rule) for rule in for_queue(fleet.rules, queue) if rule.unacked or not unacked
    )


def doubtful(fleet: Fleet, snapshot: Snapshot) -> list[str]:
    """The nodes that may hold messages: they do not say which, and are not known to be stopped."""
    assert snapshot.broker is not None
    if snapshot.broker.unasked:
        return sorted(fleet.all_nodes)
    states = snapshot.reachable()
    stopped = {
        host.node(worker)
        for host in fleet.hosts
        for worker in host.settings.workers
        if host.name in states and worker.known_as in (services := states[host.name].services)
        if services[worker.known_as].pid is None and not services[worker.known_as].untold
    }
    return sorted(
        {
            *(silent_nodes(fleet.all_nodes, snapshot.broker.nodes) - stopped),
            *_perhaps_silent(fleet, snapshot),
        }
    )


def _perhaps_silent(fleet: Fleet, snapshot: Snapshot) -> Sequence[str]:
    """The patterns of nodes, of which nobody knows how many there are, while more than those that
    answer may be.
    """
    assert snapshot.broker is not None
    nodes, connections = snapshot.broker.nodes.values(), snapshot.broker.consumer_ages_s
    all_answer = connections is not None and len(connections) <= sum(node.twins for node in nodes)
    return () if all_answer and all(node.holds is not None for node in nodes) else fleet.app.nodes


def _what(queue: str, selections: Sequence[Selection], one: str, many: str) -> str:
    """One line: how many messages (`one` or `many` goes on after their number) go where."""
    by_place: dict[str, int] = {}
    for selection in selections:
        by_place[selection.to] = by_place.get(selection.to, 0) + selection.count
    which = counted(sum(by_place.values()), one, many)
    if list(by_place) == [""]:
        return f"take {which} out of {queue} into the archive"
    if len(by_place) == 1:
        return f"move {which} from {queue} into {readable(next(iter(by_place)))}"
    places = [
        f"{count:,} into {readable(to) if to else 'the archive'}" for to, count in by_place.items()
    ]
    return f"take {which} out of {queue}: {', '.join(places)}"


def _change(
    what: str,
    do: TakeMessages | TakeUnacked,
    undo: RestoreMessages,
    selections: Sequence[Selection],
    notices: Iterable[Notice],
    now: float,
    remains: Iterable[str] = (),
) -> Change:
    lines = [*(line for selection in selections for line in _describe(selection, now)), *remains]
    lines += [f"note: {notice(one)}" for one in notices]
    count = sum(selection.count for selection in selections)
    messages = tuple(row for selection in selections for row in _rows(selection))
    return Change(BROKER, STEP, what, do, undo, as_lines(lines), messages, count)


def _remains(state: QueueState, selections: Sequence[Selection]) -> Iterator[str]:
    """What stays in the queue, the task with the most messages first."""
    left = Counter({task: of.count for task, of in state.by_task.items()})
    for selection in selections:
        left.subtract(selection.by_task)
    yield f"{state.depth - sum(one.count for one in selections):,} of {state.depth:,} remain"
    yield from (f"    {count:,} {task}" for task, count in left.most_common() if count > 0)


def _rows(selection: Selection) -> Iterator[Mapping[str, Any]]:
    what = {"reason": selection.reason, "to": selection.to or "archive"}
    for sample in selection.samples:
        yield {**what, **{name: getattr(sample, name) for name in sample.__struct_fields__}}
    for raw in selection.raw_samples:
        yield {**what, "raw": raw}


def _describe(selection: Selection, now: float) -> list[str]:
    lines = [
        f"{selection.count:,} × {selection.reason}"
        + (f" → {readable(selection.to)}" if selection.to else "")
    ]
    lines += [f"    {count:,} {task}" for task, count in Counter(selection.by_task).most_common()]
    lines += [f"    e.g. {_sample(sample, now)}" for sample in selection.samples[:_SAMPLES_SHOWN]]
    lines += [f"    e.g. {raw}" for raw in selection.raw_samples[:_SAMPLES_SHOWN]]
    return lines


def _sample(sample: MessageSummary, now: float) -> str:
    times = [f"retries {sample.retries}"]
    if sample.eta_at is not None:
        times.append(f"ETA {ago(now - sample.eta_at)}")
    if sample.expires_at is not None:
        times.append(f"expires {ago(now - sample.expires_at)}")
    return f"{sample.id} {', '.join(times)}, args {sample.args}"
