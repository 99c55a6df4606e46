"""Names every Redis key that this tool reads or writes: the one catalogue.

Celery's own, each with the transport option `global_keyprefix` in front:

    <queue>                        list    messages of priority step 0; left is newest, right runs
                                           next
    <queue>\\x06\\x16<step>          list    messages of the other priority steps (`sep`,
                                           `priority_steps`)
    unacked                        hash    delivery tag → json([message, exchange, routing key])
    unacked_index                  zset    delivery tag → epoch seconds of the fetch
    unacked_mutex                  string  lock of the worker that restores overdue messages
    _kombu.binding.<exchange>      set     "routing key SEP pattern SEP queue"
    _kombu.binding_permanent.<exchange>
                                   set     the same members, for queues without expiry
                                           (kombu >= 5.7)
    _kombu.binding_deadlines       zset    exchange → epoch milliseconds of its sweep (kombu >= 5.7)
    <oid>.reply.celery.pidbox      list    replies to one caller of remote control

This tool's own, each with `celery-runbooks:` in front:

    lock                  string  JSON naming who is changing this fleet; 60 s, renewed
    batches:<run id>      hash    batch number → ordinals of the messages it moved, until the
                                  archive has them; `through` → the last of these, for 30 days
    detached              set     queue keys that a run works on, or did when it was killed
    work:<queue key>      list    what such a run has not dealt with yet; deleted when it is empty
    late:<queue key>      list    what arrived long after such a run was killed; then deleted
    held:<queue key>      list    the work list within a transaction; never seen outside of one
    inserts:<queue key>   list    what a transaction puts in; never seen outside of it
    journal:<queue key>   hash    how far such a run is: see `list_pass.py`; then deleted

**Source:** kombu 5.7.0 `transport/redis.py`: `Channel._q_for_pri`, `keyprefix_*`, `unacked_*`;
`pidbox.py: Mailbox`.
"""

import re
from bisect import bisect
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

Key = str | bytes
"""A key as this tool names it, or as Redis does: a name from outside need not be UTF-8."""

PIDBOX = "celery.pidbox"
REPLY_SUFFIX = ".reply.celery.pidbox"
REPLY_EXCHANGE = "reply.celery.pidbox"


class KeySpace(Struct, frozen=True):
    """The key names of one app's messages in one db."""

    prefix: str = ""
    sep: str = "\x06\x16"
    """The app's option `sep`."""
    steps: tuple[int, ...] = (0, 3, 6, 9)
    """The app's option `priority_steps`."""
    holder: str = ""
    """What the fleet's lock holds while it is ours: every script that writes compares it. ""
    where no lock is held, and none is looked at.
    """
    unpolled: tuple[int, ...] = ()
    """More priorities whose lists are read, though no worker polls them and no message is published
    to them.
    """

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "KeySpace":
        """The key names that an app with these `broker_transport_options` uses."""
        usual = cls()
        return cls(
            prefix=options.get("global_keyprefix", usual.prefix),
            sep=options.get("sep", usual.sep),
            steps=tuple(options.get("priority_steps", usual.steps)),
        )

    def reading(self, priorities: Iterable[int]) -> "KeySpace":
        """The same names, with the lists of these priorities among those of each queue."""
        unpolled = set(priorities).difference(self.steps)
        return replace(self, unpolled=tuple(sorted(unpolled)))

    def lists(self, queue: str) -> dict[str, int]:
        """The list keys of a queue with their priorities, as workers ask for them, then those that
        are `unpolled`.
        """
        first = f"{self.prefix}{queue}"
        lists: dict[str, int] = {}
        for step in (*self.steps, *self.unpolled):
            if step:
                lists[f"{first}{self.sep}{step}"] = step
            else:
                lists[first] = step
        return lists

    def queue(self, name: str) -> tuple[str, ...]:
        """The list keys of a queue, one per priority step, in the order in which workers ask for
        them.
        """
        return tuple(self.lists(name))

    def list_of(self, queue: str, priority: int) -> str:
        """The list key that a message of this priority is published to."""
        return self.queue(queue)[bisect(self.steps, priority) - 1]

    @property
    def unacked(self) -> str:
        """The hash of messages fetched and not yet acknowledged: one per db and prefix, shared by
        all queues.
        """
        return f"{self.prefix}unacked"

    @property
    def unacked_index(self) -> str:
        """The sorted set that says when each unacked message was fetched."""
        return f"{self.prefix}unacked_index"

    def binding(self, exchange: str) -> str:
        """The set of queues that an exchange routes to."""
        return f"{self.prefix}_kombu.binding.{exchange}"

    @property
    def binding_deadlines(self) -> str:
        """The sorted set that says when each expiring binding table may be swept."""
        return f"{self.prefix}_kombu.binding_deadlines"

    @property
    def lock(self) -> str:
        """The lock that keeps two operators from changing one fleet at once."""
        return f"{self.prefix}celery-runbooks:lock"

    def batches(self, run_id: str) -> str:
        """The hash in which each batch of a run records, atomically with its effect, what it
        moved.
        """
        return f"{self.prefix}celery-runbooks:batches:{run_id}"

    @property
    def detached(self) -> str:
        """The set of queue keys that are being worked on, or were when a run was killed."""
        return f"{self.prefix}celery-runbooks:detached"

    def work(self, key: str) -> str:
        """The list to which a queue's list is renamed while it is worked on."""
        return f"{self.prefix}celery-runbooks:work:{key}"

    def journal(self, key: str) -> str:
        """The hash that says how far the work on a queue's list is."""
        return f"{self.prefix}celery-runbooks:journal:{key}"

    def late(self, key: str) -> str:
        """The list to which a queue's list is renamed where a killed run is ended and very much has
        arrived since.
        """
        return f"{self.prefix}celery-runbooks:late:{key}"

    def held(self, key: str) -> str:
        """The work list's name within the transaction of a step: without it the transaction's moves
        do nothing.
        """
        return f"{self.prefix}celery-runbooks:held:{key}"

    def inserts(self, key: str) -> str:
        """The list from which the transaction of a step puts messages in."""
        return f"{self.prefix}celery-runbooks:inserts:{key}"

    def aside(self, key: str) -> tuple[str, str]:
        """The lists in which messages of a queue's list can wait while a run works on it, or since
        it was killed.
        """
        return self.work(key), self.late(key)


def readable(key: str | bytes) -> str:
    """A key as it can be printed: the separator before a priority and all other control characters
    are escaped.
    """
    if isinstance(key, bytes):
        key = key.decode(errors="backslashreplace")
    return re.sub(
        r"[\x00-\x1f\x7f]",
        lambda match: f"\\x{ord(match[0]):02x}",
        key,
    )
