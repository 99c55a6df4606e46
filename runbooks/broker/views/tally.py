"""Counts messages by task, and for each task by retries, ETA, arguments and origin."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from msgspec import Struct, field

from runbooks.broker.messages.fast_parse import Headers, read
from runbooks.broker.messages.grep import Grep
from runbooks.broker.messages.parse import Malformed, Message, Unreadable, args_text, origin_of
from runbooks.core.model import Form
from runbooks.core.views import Counted, TaskTally

_SHOWN = 10
_DIFFERENT = 5000
"""Different arguments or origins of a task that are counted at most, which bounds memory."""


class _Of(Struct):
    """Holds the counts of one task."""

    retries: Counter[int] = field(default_factory=Counter)
    eta_passed: int = 0
    eta_ahead: int = 0
    oldest_eta_at: float | None = None
    furthest_eta_at: float | None = None
    expired: int = 0
    args: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)


class Tally:
    """Counts items of one queue at `now` (epoch seconds); with `grep`, only those that match."""

    def __init__(self, now: float, grep: Grep | None) -> None:
        self._now = now
        self._grep = grep
        self.looked_at = 0
        self.matched = 0
        self.malformed = 0
        self.unreadable = 0
        self._tasks: defaultdict[str, _Of] = defaultdict(_Of)
        self._forms: Counter[Form] = Counter()
        self._usual = 0
        """Messages in Celery's default form, which `fast_parse` reads."""

    def add(self, items: Sequence[bytes]) -> None:
        """Count more items."""
        self.looked_at += len(items)
        if self._grep:
            items = [raw for raw in items if self._grep(raw)]
        self.matched += len(items)
        for raw, look in zip(items, read(items), strict=True):
            if isinstance(look, Malformed):
                self.malformed += 1
            elif isinstance(look, Unreadable):
                self.unreadable += 1
                self._forms[look.form] += 1
            else:
                self._add(raw, look)

    def _add(self, raw: bytes, look: Headers | Message) -> None:
        of = self._tasks[look.task]
        of.retries[look.retries or 0] += 1
        if isinstance(look, Headers):
            args = args_text(look.argsrepr, look.kwargsrepr)
            origin = look.origin
            self._usual += 1
        else:
            args = look.args
            origin = origin_of(raw)
            self._forms[look.form] += 1
        _count(of.args, args)
        _count(of.origins, origin or "")
        eta_at = look.eta_at
        expires_at = look.expires_at
        if eta_at is not None:
            self._add_eta(of, eta_at)
        if expires_at is not None and expires_at <= self._now:
            of.expired += 1

    def _add_eta(self, of: _Of, eta_at: float) -> None:
        if eta_at < self._now:
            of.eta_passed += 1
        else:
            of.eta_ahead += 1
        if of.oldest_eta_at is None or eta_at < of.oldest_eta_at:
            of.oldest_eta_at = eta_at
        if of.furthest_eta_at is None or eta_at > of.furthest_eta_at:
            of.furthest_eta_at = eta_at

    @property
    def tasks(self) -> tuple[TaskTally, ...]:
        """The tasks with their counts, the largest first."""
        tallies = [_tally(task, of) for task, of in self._tasks.items()]
        tallies.sort(key=lambda tally: (-tally.count, tally.task))
        return tuple(tallies)

    @property
    def origins(self) -> tuple[Counted, ...]:
        """Who sent the messages, the most frequent first."""
        together: Counter[str] = Counter()
        for of in self._tasks.values():
            together.update(of.origins)
        return _most(together)

    @property
    def forms(self) -> tuple[Counted, ...]:
        """How the messages are serialized, the most frequent first."""
        forms = self._forms + Counter({Form(): self._usual})
        return tuple(Counted(_named(form), count) for form, count in forms.most_common())

    @property
    def oldest_eta_at(self) -> float | None:
        """The oldest ETA of any message."""
        oldest: float | None = None
        for of in self._tasks.values():
            eta_at = of.oldest_eta_at
            if eta_at is not None and (oldest is None or eta_at < oldest):
                oldest = eta_at
        return oldest


def _count(counter: Counter[str], value: str) -> None:
    if value in counter or len(counter) < _DIFFERENT:
        counter[value] += 1


def _tally(task: str, of: _Of) -> TaskTally:
    count = of.retries.total()
    return TaskTally(
        task,
        count,
        dict(sorted(of.retries.items())),
        count - of.eta_passed - of.eta_ahead,
        of.eta_passed,
        of.eta_ahead,
        of.oldest_eta_at,
        of.furthest_eta_at,
        of.expired,
        _most(of.args),
        _most(of.origins),
    )


def _most(counter: Counter[str]) -> tuple[Counted, ...]:
    return tuple(Counted(value, count) for value, count in counter.most_common(_SHOWN) if value)


def _named(form: Form) -> str:
    compressed = ""
    if form.compression:
        compressed = f", {form.compression}"
    return f"{form.content_type}{compressed}, protocol {form.protocol}"
