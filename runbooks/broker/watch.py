"""Two ways to watch a task: through the application's result backend, or by the events that its workers send."""

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import redis

from runbooks.broker.connection import address, broker_errors, connect, db_of, safe_url
from runbooks.broker.control import read_result, switch_events
from runbooks.core.errors import BrokerRefused, BrokerUnreachable
from runbooks.core.model import TaskState

PAUSE_S = 0.2
_EVENTS = {
    "task-received": "RECEIVED", "task-started": "STARTED", "task-retried": "RETRY", "task-succeeded": "SUCCESS",
    "task-failed": "FAILURE", "task-revoked": "REVOKED", "task-rejected": "REJECTED",
}  # fmt: skip


class Watch(Protocol):
    """Someone who knows how a task stands."""

    def look(self) -> TaskState:
        """The state now, after a pause of PAUSE_S. Raises BrokerUnreachable; the next look tries again."""
        ...


class ResultWatch:
    """Asks the result backend: every kind of it, and nothing that could be missed."""

    def __init__(self, app: Any, url: str, task_id: str) -> None:
        self._app, self._url, self._task_id = app, url, task_id

    def look(self) -> TaskState:
        from kombu.exceptions import ContentDisallowed, OperationalError

        time.sleep(PAUSE_S)
        try:
            return read_result(self._app.backend, self._task_id)
        except ContentDisallowed as error:
            raise BrokerRefused(
                f"the result of {self._task_id} cannot be read: {error}", "see the worker's log"
            ) from None
        except (OperationalError, redis.RedisError, OSError) as error:
            where = safe_url(self._url)
            raise BrokerUnreachable(f"the result backend {where} does not answer: {error}", "is it up?") from error


@contextmanager
def watch_results(backend_url: str, task_id: str) -> Iterator[ResultWatch]:
    """Watch a task through the result backend for as long as the block lasts."""
    import celery

    app = celery.Celery("celery-runbooks", backend=backend_url, set_as_current=False)
    try:
        yield ResultWatch(app, backend_url, task_id)
    finally:
        app.close()


class EventWatch:
    """Hears what the workers tell. What they tell while the broker is away is lost, and they tell nothing of progress.

    It subscribes with a plain client: a consumer of kombu's would leave keys in Redis, and could restore messages.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._get_publish_topic, _put_fanout`; celery 5.7.0
    `events/dispatcher.py` (`celeryev`, one event or a list of them in a message), `worker/state.py` and `request.py`
    (the events' fields).
    """

    def __init__(self, url: str, options: Mapping[str, Any], nodes: Sequence[str], task_id: str) -> None:
        self._url, self._options, self._nodes, self._task_id = url, options, nodes, task_id
        self._state = TaskState("PENDING")
        self._pubsub: Any = None
        self._client: redis.Redis | None = None
        self._switched: set[str] = set()

    def open(self) -> None:
        """Subscribe, then let the nodes send events; a worker forgets what it was told when it is restarted."""
        client = self._client = connect(
            self._url, self._options
        )  # kept: a client that is let go of ends its connections
        with broker_errors(address(client)):
            pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            pubsub.psubscribe(f"{self._options.get('global_keyprefix', '')}/{db_of(client)}.celeryev*")
        self._switched |= set(switch_events(self._url, self._nodes, self._options, on=True))
        self._pubsub = pubsub

    def close(self) -> None:
        """Put back what was switched on; where the broker is away, it stays so until the workers are restarted."""
        if self._client is not None:
            self._client.close()
        if self._switched:
            with suppress(BrokerUnreachable):
                switch_events(self._url, sorted(self._switched), self._options, on=False)

    def look(self) -> TaskState:
        if self._pubsub is None:
            time.sleep(PAUSE_S)
            self.open()
        try:
            assert self._client is not None
            with broker_errors(address(self._client)):
                until = time.monotonic() + PAUSE_S
                while (left_s := until - time.monotonic()) > 0:
                    if message := self._pubsub.get_message(timeout=left_s):
                        self._hear(message["data"])
        except BrokerUnreachable:
            self._pubsub = None
            raise
        return self._state

    def _hear(self, raw: bytes) -> None:
        for event in _events(raw):
            state = _EVENTS.get(event.get("type", ""))
            if event.get("uuid") != self._task_id or state is None:
                continue
            if state == "RECEIVED" and self._state.state == "RETRY":
                continue  # the message of the next attempt, which waits for its time
            result = event.get("result") or event.get("exception")
            if state == "STARTED":
                result = {"hostname": event.get("hostname")}  # as the result backend has it
            self._state = TaskState(state, result, event.get("traceback") or "")


def _events(raw: bytes) -> list[dict[str, Any]]:
    try:
        found = json.loads(base64.b64decode(json.loads(raw)["body"]))
    except (ValueError, TypeError, LookupError):
        return []  # another serializer's
    return found if isinstance(found, list) else [found]


@contextmanager
def watch_events(url: str, options: Mapping[str, Any], nodes: Sequence[str], task_id: str) -> Iterator[EventWatch]:
    """Watch a task by the events of these nodes; their settings are put back when the block ends."""
    watch = EventWatch(url, options, nodes, task_id)
    try:
        watch.open()
        yield watch
    finally:
        watch.close()
