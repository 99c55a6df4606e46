"""What the logs of workers and beats say since their start, if it is evidence."""

from collections.abc import Iterator, Mapping
from enum import Enum

from msgspec import Struct


class Event(Enum):
    """What a line of a log reports."""

    FAILED = "a task failed"
    KILLED = "a process of the pool was killed"
    NO_RESULT = "the end of a task could not be handled"
    UNREGISTERED = "a message was discarded because its task is not registered"
    UNREADABLE = "a message was discarded because it could not be read"
    REFUSED = "a server refused the user or password"
    NO_ANSWER = "an answer to remote control failed"
    NO_CONNECTION = "the broker could not be reached"
    CONNECTED = "the broker was reached"
    WAITS_FOR_LOCK = "beat waits for its lock"
    HAS_LOCK = "beat has its lock"
    UNRECOVERABLE = "the worker ends because of an error"
    ENDS = "the worker was asked to end and finishes its running tasks"


class Logged(Struct, frozen=True):
    """The lines of a log that report one event about one subject."""

    event: Event
    """The event."""
    subject: str
    """The task; "": the lines name nothing."""
    count: int
    """How many lines."""
    first: str
    """The first line."""
    first_at: float
    """When that was written."""
    last_at: float
    """When the last line was written."""


class ServiceLog(Struct, frozen=True):
    """What was read from the log of a service that runs; no line is older than its start."""

    since_at: float
    """From when the counts hold: the time of the oldest line that was read, else the start."""
    events: tuple[Logged, ...] = ()
    """The events."""
    succeeded: Mapping[str, int] = {}
    """How often each task succeeded; empty if nothing failed, or the log level omits it."""
    received: Mapping[tuple[str, str], int] = {}
    """How often the message of each unfinished task (name, id) arrived; empty as `succeeded`."""

    def of(self, event: Event) -> Iterator[Logged]:
        """The lines that report this event, by subject."""
        return (one for one in self.events if one.event is event)

    def last(self, *events: Event) -> Logged | None:
        """The latest of these events; None if the log has none of them."""
        found = [one for one in self.events if one.event in events]
        return max(found, key=lambda one: one.last_at, default=None)
