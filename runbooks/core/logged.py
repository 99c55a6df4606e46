"""What the logs of workers and beats say since their start, as far as it is evidence."""

from collections.abc import Iterator, Mapping
from enum import Enum

from msgspec import Struct


class Event(Enum):
    """What a line of a log is about."""

    FAILED = "a task failed"
    KILLED = "a process of the pool was killed"
    NO_RESULT = "the end of a task could not be handled"
    UNREGISTERED = "a message was discarded, for its task is not registered"
    UNREADABLE = "a message was discarded, for it could not be read"
    REFUSED = "a server refused the user or password"
    NO_ANSWER = "an answer to remote control failed"
    NO_CONNECTION = "the broker could not be reached"
    CONNECTED = "the broker was reached"
    WAITS_FOR_LOCK = "beat waits for its lock"
    HAS_LOCK = "beat has its lock"
    UNRECOVERABLE = "the worker ends for an error"
    ENDS = "the worker was told to end, and finishes what it runs"


class Logged(Struct, frozen=True):
    """Lines of one event about one `subject` (the task; "": nothing is named): how many, the first,
    and their times.
    """

    event: Event
    subject: str
    count: int
    first: str
    first_at: float
    last_at: float


class ServiceLog(Struct, frozen=True):
    """What was read of the log of a service that runs, no line older than its start.

    Counts hold from `since_at` on: the time of the oldest line that was read, or the start where
    there is none. `succeeded` has how often a task did, and `received` how often the message of a
    task (name, id) came that has not ended; both are empty unless something failed, and where the
    log level leaves them out.
    """

    since_at: float
    events: tuple[Logged, ...] = ()
    succeeded: Mapping[str, int] = {}
    received: Mapping[tuple[str, str], int] = {}

    def of(self, event: Event) -> Iterator[Logged]:
        return (one for one in self.events if one.event is event)

    def last(self, *events: Event) -> Logged | None:
        """The latest of these events."""
        return max(
            (one for one in self.events if one.event in events),
            key=lambda one: one.last_at,
            default=None,
        )
