"""Decides which messages of a queue are to be taken out, and why: pure."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from runbooks.broker.message import Message
from runbooks.core.model import Rule


def for_queue(rules: Iterable[Rule], queue: str) -> tuple[Rule, ...]:
    """The rules that speak of this queue, in their order."""
    return tuple(rule for rule in rules if rule.queue == queue)


def choose(message: Message, rules: Sequence[Rule], now: float) -> Rule | None:
    """The first rule whose every condition holds for the message at `now` (epoch seconds); None: it stays.

    A message without an ETA is never overdue, one without `expires` never expired.
    """
    for rule in rules:
        if _holds(rule, message, now):
            return rule
    return None


def _holds(rule: Rule, message: Message, now: float) -> bool:
    if not fnmatchcase(message.task, rule.task):
        return False
    if rule.eta_overdue_s is not None and (message.eta_at is None or now - message.eta_at < rule.eta_overdue_s):
        return False
    if rule.retries_over is not None and message.retries <= rule.retries_over:
        return False
    return not (rule.expired and (message.expires_at is None or message.expires_at > now))
