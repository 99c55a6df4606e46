"""Desired queues: nothing waits in them that a rule of the inventory selects, or that would kill a worker."""

from collections.abc import Sequence
from urllib.parse import quote

from runbooks.core.effects import BROKER, Change, RestoreMessages, TakeMessages
from runbooks.core.model import MessageSummary, QueueState, Selection, Snapshot
from runbooks.core.wording import ago
from runbooks.steps.step import Needs


class QueuesClean:
    """No message is left to be taken out, or aside by a killed run; all others stay where they are, in order."""

    name = "queues"
    needs = Needs.QUEUES
    rolling = False
    patience_s = 0.0

    def plan(self, snapshot: Snapshot, earlier: Sequence[Change] = ()) -> tuple[Change, ...]:  # noqa: ARG002
        assert snapshot.broker is not None
        states = snapshot.broker.queues.values()
        return tuple(
            _change(state, snapshot.at) for state in states if state.selected or state.malformed.count or state.aside
        )


def _change(state: QueueState, now: float) -> Change:
    selections = [*state.selected, *([state.malformed] if state.malformed.count else [])]
    count = sum(selection.count for selection in selections)
    archive = f"{quote(state.name, safe='')}.messages.jsonl"  # a name of its own for each queue, in the run's folder
    return Change(
        BROKER,
        QueuesClean.name,
        f"take {count:,} of {state.depth:,} messages out of {state.name} into the archive"
        if count
        else f"bring {state.aside:,} messages home into {state.name} that a killed run has left aside",
        do=TakeMessages(state.name, archive),
        undo=RestoreMessages(archive),
        detail="\n".join(line for selection in selections for line in _describe(selection, now)),
    )


def _describe(selection: Selection, now: float) -> list[str]:
    lines = [f"{selection.count:,} × {selection.reason}"]
    lines += [f"    {count:,} {task}" for task, count in selection.by_task.items()]
    lines += [f"    e.g. {_sample(sample, now)}" for sample in selection.samples]
    lines += [f"    e.g. {raw}" for raw in selection.raw_samples]
    return lines


def _sample(sample: MessageSummary, now: float) -> str:
    times = [f"retries {sample.retries}"]
    if sample.eta_at is not None:
        times.append(f"ETA {ago(now - sample.eta_at)}")
    if sample.expires_at is not None:
        times.append(f"expires {ago(now - sample.expires_at)}")
    return f"{sample.id} {', '.join(times)}, args {sample.args}"
