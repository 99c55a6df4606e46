"""The changes of a queue: which messages are taken, and what an operator reads before agreeing."""

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
    """Return what has to be observed; asking nodes takes a second, so only if a rule needs them."""
    needs = Needs.QUEUES
    if any(rule.unregistered for rule in fleet.rules):
        needs |= Needs.NODES
    if any(rule.unacked for rule in fleet.rules):
        needs |= Needs.NODES | Needs.SERVICES
    return needs


def require_one_time(fleet: Fleet, snapshot: Snapshot) -> None:
    """Raise RunbookError if messages are selected by their time and the clocks disagree."""
    assert snapshot.broker is not None
    by_time = any(rule.expired or rule.eta_overdue_s is not None for rule in fleet.rules)
    chosen = any(state.selected or state.unacked for state in snapshot.broker.queues.values())
    if by_time and chosen and snapshot.broker.clocks_differ:
        raise RunbookError(
            "the clocks of this machine and of the broker differ by"
            f" {span(snapshot.broker.clock_ahead_s)}, so it is not known which messages are overdue"
            " or expired; nothing was archived",
            "correct the wrong clock (timedatectl shows whether a clock is synchronised), then run"
            " again",
        )


def notices(fleet: Fleet, snapshot: Snapshot) -> list[str]:
    """Return notes about messages that the rules select, as far as no change contains them."""
    broker = snapshot.broker
    assert broker is not None
    unchanged = [state for state in broker.queues.values() if not take(fleet, state, snapshot.at)]
    notes = [f"{state.name}: {notice(one)}" for state in unchanged for one in state.notices]
    rules = [rule for rule in fleet.rules if rule.unregistered]
    if rules and not broker.nodes:
        for rule in rules:
            notes.append(
                f"{rule.reason}: no node answers, so it is not known which tasks are unregistered"
            )
    silent = sorted(set(fleet.all_nodes) - broker.nodes.keys())
    if rules and broker.nodes and silent:
        notes.append(
            f"{', '.join(silent)} does not answer, and may know tasks that count as unregistered"
        )
    unsure = doubtful(fleet, snapshot)
    if unsure and any(rule.unacked for rule in fleet.rules):
        notes.append(
            f"unacked messages are not changed: {', '.join(unsure)} may hold them and does not"
            " answer"
        )
    return notes


def takes_malformed(fleet: Fleet, state: QueueState) -> bool:
    """Whether the queue has malformed items and a rule selects them."""
    if not state.malformed.count:
        return False
    return any(rule.malformed for rule in for_queue(fleet.rules, state.name))


def take(fleet: Fleet, state: QueueState, now: float) -> Change | None:
    """Return the change that takes the selected messages and returns those that were set aside."""
    selections = [*state.selected]
    if takes_malformed(fleet, state):
        selections.append(state.malformed)
    if not selections and not state.aside:
        return None
    archive = archive_name(state.name)
    do = TakeMessages(state.name, archive, _rules(fleet, state.name))
    if selections:
        of_all = f"of {counted(state.depth, 'message')}"
        what = _what(state.name, selections, of_all, of_all)
        remains = tuple(_remains(state, selections))
    else:
        aside = counted(state.aside, "message")
        what = f"return {aside} to {state.name} that an interrupted run set aside"
        remains = ()
    lines = [*_described(selections, now), *remains]
    lines += [f"note: {notice(one)}" for one in state.notices]
    return _change(what, do, RestoreMessages(archive), selections, lines)


def take_unacked(fleet: Fleet, state: QueueState, snapshot: Snapshot) -> Change | None:
    """Return the change that takes selected messages that were fetched and that no node holds.

    None if there are none, or while a node that may hold them is silent.
    """
    if not state.unacked or doubtful(fleet, snapshot):
        return None
    assert snapshot.broker is not None
    stopped = tuple(sorted(silent_nodes(fleet.all_nodes, snapshot.broker.nodes)))
    archive = archive_name(state.name, unacked=True)
    do = TakeUnacked(state.name, archive, _rules(fleet, state.name, unacked=True), stopped)
    one = "unacked message that no node holds"
    many = "unacked messages that no node holds"
    what = _what(state.name, state.unacked, one, many)
    lines = list(_described(state.unacked, snapshot.at))
    return _change(what, do, RestoreMessages(archive), state.unacked, lines)


def _rules(fleet: Fleet, queue: str, *, unacked: bool = False) -> tuple[str, ...]:
    return tuple(
        text(rule) for rule in for_queue(fleet.rules, queue) if rule.unacked or not unacked
    )


def doubtful(fleet: Fleet, snapshot: Snapshot) -> list[str]:
    """Return the nodes that may hold messages: they do not answer, and are not known to be down."""
    assert snapshot.broker is not None
    if snapshot.broker.unasked:
        return sorted(fleet.all_nodes)
    silent = silent_nodes(fleet.all_nodes, snapshot.broker.nodes) - _stopped(fleet, snapshot)
    return sorted({*silent, *_perhaps_silent(fleet, snapshot)})


def _stopped(fleet: Fleet, snapshot: Snapshot) -> set[str]:
    """The nodes whose services are known not to run."""
    states = snapshot.reachable()
    stopped = set()
    for host in fleet.hosts:
        services = states[host.name].services if host.name in states else {}
        for worker in host.settings.workers:
            service = services.get(worker.known_as)
            if service and service.pid is None and not service.why_unknown:
                stopped.add(host.node(worker))
    return stopped


def _perhaps_silent(fleet: Fleet, snapshot: Snapshot) -> Sequence[str]:
    """The patterns of nodes, whose number is not known, if more may exist than answer."""
    assert snapshot.broker is not None
    nodes = snapshot.broker.nodes.values()
    connections = snapshot.broker.consumer_ages_s
    all_answer = connections is not None and len(connections) <= sum(node.twins for node in nodes)
    if all_answer and all(node.holds is not None for node in nodes):
        return ()
    return fleet.app.nodes


def _what(queue: str, selections: Sequence[Selection], one: str, many: str) -> str:
    """Describe in one line how many messages go where; `one` or `many` follows their number."""
    by_place: dict[str, int] = {}
    for selection in selections:
        by_place[selection.to] = by_place.get(selection.to, 0) + selection.count
    which = counted(sum(by_place.values()), one, many)
    if list(by_place) == [""]:
        return f"archive {which} from {queue}"
    if len(by_place) == 1:
        return f"move {which} from {queue} into {readable(next(iter(by_place)))}"
    places = [
        f"{count:,} into {readable(to) if to else 'the archive'}" for to, count in by_place.items()
    ]
    return f"take {which} from {queue}: {', '.join(places)}"


def _change(
    what: str,
    do: TakeMessages | TakeUnacked,
    undo: RestoreMessages,
    selections: Sequence[Selection],
    lines: list[str],
) -> Change:
    count = sum(selection.count for selection in selections)
    messages = tuple(row for selection in selections for row in _rows(selection))
    return Change(BROKER, STEP, what, do, undo, as_lines(lines), messages, count)


def _remains(state: QueueState, selections: Sequence[Selection]) -> Iterator[str]:
    """Describe the messages that stay in the queue, the task with the most messages first."""
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


def _described(selections: Iterable[Selection], now: float) -> Iterator[str]:
    for selection in selections:
        into = f" → {readable(selection.to)}" if selection.to else ""
        yield f"{selection.count:,} × {selection.reason}{into}"
        for task, count in Counter(selection.by_task).most_common():
            yield f"    {count:,} {task}"
        for sample in selection.samples[:_SAMPLES_SHOWN]:
            yield f"    e.g. {_sample(sample, now)}"
        for raw in selection.raw_samples[:_SAMPLES_SHOWN]:
            yield f"    e.g. {raw}"


def _sample(sample: MessageSummary, now: float) -> str:
    times = [f"retries {sample.retries}"]
    if sample.eta_at is not None:
        times.append(f"ETA {ago(now - sample.eta_at)}")
    if sample.expires_at is not None:
        times.append(f"expires {ago(now - sample.expires_at)}")
    return f"{sample.id} {', '.join(times)}, args {sample.args}"
