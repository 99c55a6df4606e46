"""Decides which messages of a queue a rule selects, and why, without reading Redis."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from msgspec import Struct, field

from runbooks.broker.messages.body import likeness, links, read_body, unread
from runbooks.broker.messages.fast_parse import Headers, Outline, Read, outlines, read, redirected
from runbooks.broker.messages.parse import COMPRESSIONS, Malformed, Message, Unreadable
from runbooks.broker.server.keys import KeySpace
from runbooks.core.model import Form, Notice, Rule
from runbooks.core.rules import destination, fits, says_how_written, says_only_how_written

_IDS_LISTED = 100

_UNREAD = "skipped: cannot be read ({why})"
_UNKNOWN = "skipped: with a body {why}, so a chord may wait (--with-workflows selects these too)"
_NO_ARGS = "skipped: with a body {why}, so the arguments are unknown"
_STRANDED = "skipped: a chord, a chain or a callback waits (--with-workflows selects these too)"
_STRANDING = "selected although a chord, a chain or a callback waits, which will never complete"
_GROUPED = "selected, of groups whose results will never be ready; the groups"
_NO_MOVE = "skipped: cannot be moved, because the envelope is not as Celery writes it"


def _names() -> dict[str, tuple[str, ...]]:
    """All names of a type or compression, by each of them.

    **Source:** kombu 5.7.0 `serialization.py`, `compression.py`.
    """
    names: dict[str, tuple[str, ...]] = {}
    for alike in (
        *COMPRESSIONS,
        ("application/json", "json"),
        ("application/x-python-serialize", "pickle"),
        ("application/x-yaml", "yaml"),
        ("application/x-msgpack", "msgpack"),
    ):
        names.update(dict.fromkeys(alike, alike))
    return names


_NAMES = _names()


def for_queue(rules: Iterable[Rule], queue: str) -> tuple[Rule, ...]:
    """Return the rules for this queue, in their order."""
    return tuple(rule for rule in rules if fits(rule.queue, queue))


def keys_read(
    keyspace: KeySpace,
    rules: Iterable[Rule],
    queue: str,
) -> KeySpace:
    """Return the key names with the lists that the queue's rules name by their priority."""
    priorities: list[int] = []
    for rule in for_queue(rules, queue):
        if rule.priority is not None:
            priorities.append(rule.priority)
    return keyspace.reading(priorities)


class Ahead(Struct):
    """Holds the result of reading a whole queue ahead, for the rules that need it.

    Messages that arrive later are not in it, so they stay.
    """

    kept: dict[bytes, bytes] = field(default_factory=dict)
    """For each likeness of duplicates the checksum of the one that stays."""
    surplus: set[bytes] = field(default_factory=set)
    """Messages older than the newest that a rule keeps."""


class Facts(Struct, frozen=True):
    """Holds what a judgement depends on, besides the message."""

    now: float
    """In epoch seconds."""
    registered: frozenset[str] | None = None
    """The tasks that nodes register; None if no node answers."""
    ahead: Ahead = field(default_factory=Ahead)
    """What was read of the queue ahead, if a rule needs it."""


class Verdict(Struct, frozen=True):
    """Says why an item is taken out, and where it goes."""

    reason: str
    malformed: bool = False
    to: str = ""
    """The list that it is moved to; "" for the archive alone."""
    requeue_to: str = ""


class _RulesByTask(dict[str, tuple[Rule, ...]]):
    """Caches the rules for each task name: a queue has few names, but many messages."""

    def __init__(self, rules: Sequence[Rule], registered: frozenset[str] | None) -> None:
        super().__init__()
        self._rules = rules
        self._registered = registered

    def __missing__(self, task: str) -> tuple[Rule, ...]:
        fitting = tuple(rule for rule in self._rules if self._may_mean(rule, task))
        self[task] = fitting
        return fitting

    def _may_mean(self, rule: Rule, task: str) -> bool:
        if not fits(rule.task, task):
            return False
        if not rule.unregistered:
            return True
        return self._registered is not None and task not in self._registered


class Judge:
    """Judges raw items of one queue's lists; `notices` report exceptions and warnings."""

    def __init__(
        self,
        rules: Iterable[Rule],
        keyspace: KeySpace,
        queue: str,
        facts: Facts,
    ) -> None:
        rules = for_queue(rules, queue)
        self.malformed = next((rule for rule in rules if rule.malformed), None)
        self._all = tuple(rule for rule in rules if not rule.malformed)
        self._keyspace = keyspace
        self._queue = queue
        self._facts = facts
        self._targets: dict[Rule, tuple[str, int | None, str]] = {}
        self._ids = {rule: frozenset(rule.ids) for rule in rules if rule.ids}
        self._seen: set[bytes] = set()
        """The one of each kind of duplicates that stays."""
        self._newly_seen: list[bytes] = []
        self._newest: dict[Rule, set[bytes]] = {}
        """The newest messages of the list that is read ahead."""
        self._noted: dict[str, tuple[list[str], int]] = {}
        """By the text of a notice: ids, and how often."""
        self.by_task = _RulesByTask((), None)
        self._by_form: list[Rule] = []
        self._any_here = False

    def begin(self, key: str, *, fetched: bool = False) -> None:
        """Continue with another list of the queue, or with messages `fetched` from it.

        Messages that already wait at their destination stay.
        """
        step = self._keyspace.lists(self._queue)[key]
        here = [rule for rule in self._all if rule.priority in (None, step)]
        self._targets = {}
        rules: list[Rule] = []
        for rule in here:
            to = ""
            if rule.requeue_to:
                self._targets[rule] = _target(self._keyspace, rule, step)
                _, _, to = self._targets[rule]
            if fetched or to != key:
                rules.append(rule)
        self._any_here = bool(here)
        self.by_task = _RulesByTask(rules, self._facts.registered)
        self._by_form = [rule for rule in rules if says_only_how_written(rule)]
        self._newly_seen = []
        self._newest = {rule: set() for rule in here if rule.keep_newest}

    def rewind(self) -> None:
        """Start the list again, as if nothing of it had been judged."""
        self._seen.difference_update(self._newly_seen)
        self._newly_seen = []

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What an operator has to know about the messages judged so far."""
        noted = self._noted.items()
        return tuple(Notice(what, count, tuple(ids)) for what, (ids, count) in noted)

    def choose(
        self, items: Sequence[bytes], reads: Sequence[Read]
    ) -> Iterator[tuple[int, Verdict]]:
        """Yield the positions of a list's next items to take out, and why; `reads`: their kinds."""
        by_task = self.by_task
        for i, look in enumerate(reads):
            if isinstance(look, Headers) and not by_task[look.task]:
                continue  # most messages of most queues
            verdict = None
            if isinstance(look, (Headers, Message)):
                verdict = self.verdict(look, items[i])
            elif isinstance(look, Unreadable):
                verdict = self._of_unread(look)
            elif self.malformed:
                verdict = Verdict(f"malformed: {look.why}", malformed=True)
            if verdict:
                yield i, verdict

    def pick(self, items: Sequence[bytes]) -> Iterator[tuple[int, Verdict]]:
        """Choose among unread items; only items that a rule may select are read whole."""
        if self.malformed:
            return self.choose(items, read(items))
        doubtful = self._doubtful(items)
        few = [items[i] for i in doubtful]
        return ((doubtful[i], verdict) for i, verdict in self.choose(few, read(few)))

    def _doubtful(self, items: Sequence[bytes]) -> list[int]:
        """The positions of items that a rule may select."""
        meant = self._meant
        by_task = self.by_task
        doubtful: list[int] = []
        for i, found in enumerate(outlines(items)):
            if found is None:
                doubtful.append(i)
                continue
            for rule in by_task[found.task]:
                if meant(rule, found):
                    doubtful.append(i)
                    break
        return doubtful

    def _meant(self, rule: Rule, look: Outline | Headers | Message) -> bool:
        if not holds(rule, look, self._facts.now):
            return False
        return not rule.ids or look.id in self._ids[rule]

    def verdict(self, look: Headers | Message, raw: bytes) -> Verdict | None:
        """Return the verdict of the first rule whose conditions all hold; None: the message stays.

        A message without an ETA is never overdue, one without `expires` never expires.
        """
        left = ""
        for rule in self.by_task[look.task]:
            if self._meant(rule, look) and is_written(rule, look):
                found = self._look_inside(rule, raw, look.task, look.id)
                if isinstance(found, Verdict):
                    return found
                if not left:
                    left = found
        if left:
            self._note(left, look.id)
        return None

    def _of_unread(self, look: Unreadable) -> Verdict | None:
        """The verdict on a message whose task is unknown: only some rules can select it."""
        rule = next((rule for rule in self._by_form if is_written(rule, look)), None)
        if rule is None:
            if self._any_here:
                self._note(_UNREAD.format(why=look.why), "")
            return None
        if rule.requeue_to:
            self._note(_NO_MOVE, "")
            return None
        if rule.with_workflows:
            return Verdict(rule.reason)
        self._note(_UNKNOWN.format(why=unread(look.raw)), "")
        return None

    def _look_inside(
        self,
        rule: Rule,
        raw: bytes,
        task: str,
        id: str,
    ) -> Verdict | str:
        """The verdict once the body is read; or why the message stays; "" if it is not selected."""
        if rule.args:
            body = read_body(raw)
            if body is None:
                return _NO_ARGS.format(why=unread(raw))
            if not body.has(rule.args):
                return ""
        if rule.duplicate and not self._is_duplicate(rule, task, raw):
            return ""
        if rule.keep_newest and self._mark(rule, raw) not in self._facts.ahead.surplus:
            return ""
        if rule.requeue_to:
            return self._moved(rule, raw)
        return self._archived(rule, raw, id)

    def _moved(self, rule: Rule, raw: bytes) -> Verdict | str:
        queue, priority, key = self._targets[rule]
        if redirected(raw, queue, priority) is None:
            return _NO_MOVE
        return Verdict(rule.reason, to=key, requeue_to=rule.requeue_to)

    def _archived(self, rule: Rule, raw: bytes, id: str) -> Verdict | str:
        found = links(raw)
        if found is None:
            if not rule.with_workflows:
                return _UNKNOWN.format(why=unread(raw))
            return Verdict(rule.reason)
        waits, group = found
        if waits and not rule.with_workflows:
            return _STRANDED
        if waits:
            self._note(_STRANDING, id)
        elif group:
            self._note(_GROUPED, group)
        return Verdict(rule.reason)

    def _note(self, what: str, id: str) -> None:
        ids, count = self._noted.get(what, ([], 0))
        if id and len(ids) < _IDS_LISTED and id not in ids:
            ids.append(id)
        self._noted[what] = (ids, count + 1)

    def _is_duplicate(self, rule: Rule, task: str, raw: bytes) -> bool:
        alike = self._likeness(rule, task, raw)
        kept = self._facts.ahead.kept.get(alike)
        if kept is None:
            return False  # it arrived after the look ahead
        if kept != _checksum(raw) or alike in self._seen:
            return True
        self._seen.add(alike)
        self._newly_seen.append(alike)
        return False

    def _likeness(self, rule: Rule, task: str, raw: bytes) -> bytes:
        return likeness(task, raw) + b"%d" % self._all.index(rule)

    def _mark(self, rule: Rule, raw: bytes) -> bytes:
        return _checksum(raw) + b"%d" % self._all.index(rule)

    @property
    def looks_ahead(self) -> bool:
        """Whether a rule says which messages stay, so `look_ahead` needs all of them first."""
        return any(rule.duplicate or rule.keep_newest for rule in self._all)

    def look_ahead(
        self,
        items: Sequence[bytes],
        reads: Sequence[Read],
        ahead: Ahead,
    ) -> None:
        """Learn from a list's next items, the newest first, which stay; `reads` has their kinds."""
        for raw, look in zip(items, reads, strict=True):
            if not isinstance(look, (Headers, Message)):
                continue
            for rule in self.by_task[look.task]:
                if not rule.duplicate and not rule.keep_newest:
                    continue
                if means(rule, look, raw, self._facts.now):
                    self._look_ahead(rule, look.task, raw, ahead)

    def _look_ahead(
        self,
        rule: Rule,
        task: str,
        raw: bytes,
        ahead: Ahead,
    ) -> None:
        if rule.keep_newest:
            newest = self._newest[rule]
            mark = self._mark(rule, raw)
            if len(newest) < rule.keep_newest:
                newest.add(mark)
            elif mark not in newest:
                ahead.surplus.add(mark)
        elif rule.duplicate == "oldest":
            ahead.kept[self._likeness(rule, task, raw)] = _checksum(raw)
        else:
            ahead.kept.setdefault(self._likeness(rule, task, raw), _checksum(raw))


def means(rule: Rule, look: Headers | Message, raw: bytes, now: float) -> bool:
    """Return whether the conditions hold that depend on the message alone."""
    if not fits(rule.task, look.task) or not holds(rule, look, now):
        return False
    if rule.ids and look.id not in rule.ids:
        return False
    if not is_written(rule, look):
        return False
    if not rule.args:
        return True
    body = read_body(raw)
    return body is not None and body.has(rule.args)


def _target(
    keyspace: KeySpace,
    rule: Rule,
    step: int,
) -> tuple[str, int | None, str]:
    """Queue, priority and key to which a rule moves messages of the list of priority `step`."""
    queue, priority = destination(rule.requeue_to)
    if priority is not None:
        step = priority
    return queue, priority, keyspace.list_of(queue, step)


def _checksum(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=16).digest()


def is_written(rule: Rule, look: Read) -> bool:
    """Return whether the conditions on the message's form hold; none does for a malformed item."""
    if not says_how_written(rule):
        return True
    if isinstance(look, Malformed):
        return False
    form = Form()
    if not isinstance(look, Headers):
        form = look.form
    if not _named(rule.content_type, form.content_type):
        return False
    if not rule.compression:
        return True
    return form.compression != "" and _named(rule.compression, form.compression)


def _named(patterns: str, name: str) -> bool:
    return any(fits(patterns, one) for one in _NAMES.get(name, (name,)))


def holds(rule: Rule, look: Outline | Headers | Message, now: float) -> bool:
    """Return whether the conditions on times and retries hold."""
    if rule.retries_over is not None and (look.retries or 0) <= rule.retries_over:
        return False
    if rule.eta_overdue_s is not None:
        eta_at = look.eta_at
        if eta_at is None or now - eta_at < rule.eta_overdue_s:
            return False
    if rule.expired:
        expires_at = look.expires_at
        if expires_at is None or expires_at > now:
            return False
    return True
