"""Names every Redis key that this tool reads or writes.

Celery's keys, each prefixed with the transport option `global_keyprefix`:

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

This tool's keys, each prefixed with `celery-runbooks:`:

    lock                  string  JSON that names who is changing this fleet; 60 s, renewed
    batches:<run id>      hash    batch number → ordinals of the messages it moved, until the
                                  archive has them; `through` → the last of these, for 30 days
    detached              set     queue keys that a run works on, or did when it was killed
    work:<queue key>      list    messages that such a run has not processed yet; deleted when empty
    late:<queue key>      list    messages that arrived long after such a run was killed; then
                                  deleted
    held:<queue key>      list    the work list within a transaction; never seen outside of one
    inserts:<queue key>   list    messages that a transaction adds; never seen outside of it
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
"""A key as this tool names it (str), or as Redis does (bytes, perhaps not UTF-8)."""

PIDBOX = "celery.pidbox"
REPLY_SUFFIX = ".reply.celery.pidbox"
REPLY_EXCHANGE = "reply.celery.pidbox"


class KeySpace(Struct, frozen=True):
    """Names the keys of one app's messages in one db."""

    prefix: str = ""
    sep: str = "\x06\x16"
    """The app's option `sep`."""
    steps: tuple[int, ...] = (0, 3, 6, 9)
    """The app's option `priority_steps`."""
    holder: str = ""
    """The fleet lock's value while it is ours: every script that writes compares it. "" if no lock
    is held; then none is compared.
    """
    unpolled: tuple[int, ...] = ()
    """Further priorities whose lists are read, although no worker polls them and no message is
    published to them.
    """

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "KeySpace":
        """Return the key names of an app with these `broker_transport_options`."""
        usual = cls()
        return cls(
            prefix=options.get("global_keyprefix", usual.prefix),
            sep=options.get("sep", usual.sep),
            steps=tuple(options.get("priority_steps", usual.steps)),
        )

    def reading(self, priorities: Iterable[int]) -> "KeySpace":
        """Return the same names, with the lists of these priorities added to each queue."""
        unpolled = set(priorities).difference(self.steps)
        return replace(self, unpolled=tuple(sorted(unpolled)))

    def lists(self, queue: str) -> dict[str, int]:
        """Return a queue's list keys with their priorities: in polling order, then `unpolled`."""
        first = f"{self.prefix}{queue}"
        lists: dict[str, int] = {}
        for step in (*self.steps, *self.unpolled):
            if step:
                lists[f"{first}{self.sep}{step}"] = step
            else:
                lists[first] = step
        return lists

    def queue(self, name: str) -> tuple[str, ...]:
        """Return the list keys of a queue, one per priority step, in the workers' polling order."""
        return tuple(self.lists(name))

    def list_of(self, queue: str, priority: int) -> str:
        """Return the list key that a message of this priority is published to."""
        return self.queue(queue)[bisect(self.steps, priority) - 1]

    @property
    def unacked(self) -> str:
        """The hash of unacknowledged messages: one per db and prefix, shared by all queues."""
        return f"{self.prefix}unacked"

    @property
    def unacked_index(self) -> str:
        """The sorted set with the time at which each unacked message was fetched."""
        return f"{self.prefix}unacked_index"

    def binding(self, exchange: str) -> str:
        """Return the key of the set of queues that an exchange routes to."""
        return f"{self.prefix}_kombu.binding.{exchange}"

    @property
    def binding_deadlines(self) -> str:
        """The sorted set with the time at which each expiring binding table may be swept."""
        return f"{self.prefix}_kombu.binding_deadlines"

    @property
    def lock(self) -> str:
        """The lock that keeps two operators from changing one fleet at once."""
        return f"{self.prefix}celery-runbooks:lock"

    def batches(self, run_id: str) -> str:
        """Return the key of the hash in which each batch of a run records what it moved.

        The record is written atomically with the move.
        """
        return f"{self.prefix}celery-runbooks:batches:{run_id}"

    @property
    def detached(self) -> str:
        """The set of queue keys that are being worked on, or were when a run was killed."""
        return f"{self.prefix}celery-runbooks:detached"

    def work(self, key: str) -> str:
        """Return the name that a queue's list has while a run works on it."""
        return f"{self.prefix}celery-runbooks:work:{key}"

    def journal(self, key: str) -> str:
        """Return the key of the hash with the progress of a run on a queue's list."""
        return f"{self.prefix}celery-runbooks:journal:{key}"

    def late(self, key: str) -> str:
        """Return the name that a queue's list gets if very much arrived since a run was killed."""
        return f"{self.prefix}celery-runbooks:late:{key}"

    def held(self, key: str) -> str:
        """Return the work list's name within a step's transaction.

        If that list is missing, the moves of the transaction do nothing.
        """
        return f"{self.prefix}celery-runbooks:held:{key}"

    def inserts(self, key: str) -> str:
        """Return the key of the list with the messages that a step's transaction adds."""
        return f"{self.prefix}celery-runbooks:inserts:{key}"

    def aside(self, key: str) -> tuple[str, str]:
        """Return the lists with messages that a run, perhaps a killed one, has set aside."""
        return self.work(key), self.late(key)


def readable(key: str | bytes) -> str:
    """Return a key in printable form: control characters, as in `sep`, are escaped."""
    if isinstance(key, bytes):
        key = key.decode(errors="backslashreplace")
    return re.sub(
        r"[\x00-\x1f\x7f]",
        lambda match: f"\\x{ord(match[0]):02x}",
        key,
    )
