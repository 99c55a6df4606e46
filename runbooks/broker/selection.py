"""Decides which messages of a queue are to be taken out, and why: pure."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from runbooks.broker.glance import glance
from runbooks.broker.message import Malformed, Message, epoch, parse
from runbooks.core.model import Rule


def for_queue(rules: Iterable[Rule], queue: str) -> tuple[Rule, ...]:
    """The rules that speak of this queue, in their order."""
    return tuple(rule for rule in rules if rule.queue == queue)


def choose(message: Message, rules: Sequence[Rule], now: float) -> Rule | None:
    """The first rule whose every condition holds for the message at `now` (epoch seconds); None: it stays.

    A message without an ETA is never overdue, one without `expires` never expired.
    """
    for rule in rules:
        if fnmatchcase(message.task, rule.task) and holds(
            rule, message.retries, message.eta_at, message.expires_at, now
        ):
            return rule
    return None


def holds(rule: Rule, retries: int, eta_at: float | None, expires_at: float | None, now: float) -> bool:
    """True where all conditions of a rule but the task's name hold."""
    if rule.eta_overdue_s is not None and (eta_at is None or now - eta_at < rule.eta_overdue_s):
        return False
    if rule.retries_over is not None and retries <= rule.retries_over:
        return False
    return not (rule.expired and (expires_at is None or expires_at > now))


class RulesByTask(dict[str, tuple[Rule, ...]]):
    """The rules whose pattern fits a task's name, remembered: a queue holds few names and many messages."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__()
        self._rules = rules

    def __missing__(self, task: str) -> tuple[Rule, ...]:
        fitting = tuple(rule for rule in self._rules if fnmatchcase(task, rule.task))
        self[task] = fitting
        return fitting


class Judge:
    """Judges raw items of one queue at a given time."""

    def __init__(self, rules: Sequence[Rule], now: float) -> None:
        self._rules = rules
        self._now = now
        self._by_task = RulesByTask(rules)

    def verdict(self, raw: bytes) -> tuple[str, bool] | None:
        """Why an item is to be taken out, and whether it is malformed; None: it stays."""
        headers = glance(raw)
        if headers is None:
            return self._judge_closely(raw)
        rules = self._by_task[headers.task]
        if rules:
            eta_at, expires_at = epoch(headers.eta), epoch(headers.expires)
            for rule in rules:
                if holds(rule, headers.retries or 0, eta_at, expires_at, self._now):
                    return rule.reason, False
        return None

    def _judge_closely(self, raw: bytes) -> tuple[str, bool] | None:
        message = parse(raw)
        if isinstance(message, Malformed):
            return f"malformed: {message.why}", True
        rule = choose(message, self._rules, self._now) if isinstance(message, Message) else None
        return (rule.reason, False) if rule else None
