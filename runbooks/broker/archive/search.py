"""Finds messages in archives, by the selection language."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from msgspec.structs import asdict

from runbooks.broker.archive.reader import Archived, Ledger
from runbooks.broker.messages.parse import Message, parse
from runbooks.broker.messages.selection import is_written, means
from runbooks.core.model import Rule
from runbooks.core.rules import parse as parse_rule
from runbooks.core.rules import says_only_how_written, says_only_where

_SUFFIX = ".messages.jsonl"
_UNACKED = "+unacked"
"""`quote` leaves no plus sign in a name."""


def archive_name(queue: str, *, unacked: bool = False) -> str:
    """Return the name of a queue's archive in a run's folder: each queue has its own."""
    name = quote(queue, safe="")
    if unacked:
        name += _UNACKED
    return name + _SUFFIX


def archives_in(directory: Path) -> list[Path]:
    """Return the archives in a run's folder."""
    return sorted(directory.glob(f"*{_SUFFIX}"))


def queue_of(archive: Path) -> str:
    """Return the queue whose messages an archive holds."""
    return unquote(archive.name.removesuffix(_SUFFIX).removesuffix(_UNACKED))


def chosen(ledger: Ledger, rule: str, now: float) -> Iterator[Archived]:
    """Return the messages of an archive that a rule selects; "" for all."""
    messages = ledger.messages.values()
    if not rule:
        return iter(messages)
    wanted = parse_rule(rule)
    return (message for message in messages if _means(wanted, message, now))


def _means(rule: Rule, message: Archived, now: float) -> bool:
    if rule.malformed or (rule.unacked and message.fetched_at is None):
        return rule.malformed and message.malformed
    item = message.item
    parsed = parse(item)
    if isinstance(parsed, Message):
        return means(rule, parsed, item, now)
    if says_only_where(rule):
        return True
    return says_only_how_written(rule) and is_written(rule, parsed)


def row(message: Archived, ledger: Ledger, queue: str) -> Mapping[str, Any]:
    """Return a message as a report shows it."""
    parsed = parse(message.item)
    what = {
        "id": None,
        "task": None,
        "retries": None,
        "eta_at": None,
        "expires_at": None,
        "args": repr(message.raw[:60]),
    }
    if isinstance(parsed, Message):
        what = asdict(parsed.summary())
    return {
        "n": message.n,
        "queue": queue,
        "state": ledger.fates[message.n].value,
        **what,
        "reason": message.reason,
        "key": message.key,
        "position": message.position,
        "unacked": message.fetched_at is not None,
        "moved_to": message.to or None,
        "sha256": message.sha256,
    }
