"""Two ways to watch a task, through the result backend and by the events of workers; and to run one to its end."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import redis

from runbooks.broker.nodes.control import switch_events
from runbooks.broker.server.connection import address, broker_errors, connect, db_of
from runbooks.core.broker_url import safe_url
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
    """Asks the result backend: every kind of it, and nothing that could be missed.

    **Source:** celery 5.7.0 `backends/base.py: get_task_meta`.
    """

    def __init__(self, app: Any, url: str, task_id: str) -> None:
        self._app, self._url, self._task_id = app, url, task_id

    def look(self) -> TaskState:
        from kombu.exceptions import ContentDisallowed, OperationalError

        time.sleep(PAUSE_S)
        try:
            meta = self._app.backend.get_task_meta(self._task_id, cache=False)
        except ContentDisallowed as error:
            raise BrokerRefused(
                f"the result of {self._task_id} cannot be read: {error}", "see the worker's log"
            ) from None
        except (OperationalError, redis.RedisError, OSError) as error:
            where = safe_url(self._url)
            raise BrokerUnreachable(f"the result backend {where} does not answer: {error}", "is it up?") from error
        result = meta.get("result")
        text = f"{type(result).__name__}: {result}" if isinstance(result, BaseException) else result
        return TaskState(meta["status"], text, meta.get("traceback") or "")


@contextmanager
def watch_results(backend_url: str, task_id: str) -> Iterator[ResultWatch]:
    """Watch a task through the result backend for as long as the block lasts."""
    import celery

    with celery.Celery("celery-runbooks", backend=backend_url, set_as_current=False) as app:
        yield ResultWatch(app, backend_url, task_id)


def run_task(
    url: str,
    transport_options: Mapping[str, Any] | None = None,
    *,
    watch: Watch,
    name: str,
    queue: str,
    task_id: str,
    timeout_s: float,
    kwargs: Mapping[str, Any] | None = None,
    priority: int | None = None,
    on_progress: Callable[[TaskState], None] = lambda _: None,
) -> TaskState:
    """Send a task by name, once, and wait for its end; each new state or progress goes to `on_progress`.

    One that wants to be tried again is not waited for. After `timeout_s` the last state seen is returned. A task that
    did not succeed is revoked. Raises BrokerUnreachable where it could not be sent or is lost sight of, and
    BrokerRefused where the result cannot be read.

    **Source:** celery 5.7.0 `app/base.py: send_task`.
    """
    import celery
    from kombu.exceptions import OperationalError

    connect(url, transport_options).close()
    with celery.Celery("celery-runbooks", broker=url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"socket_timeout": 5.0, **(transport_options or {}), "max_retries": 1}
        try:
            # retry=False: a send of unknown fate must not be sent again.
            app.send_task(name, kwargs=dict(kwargs or {}), queue=queue, priority=priority, task_id=task_id, retry=False)
            seen = _to_its_end(watch, timeout_s, on_progress)
            if seen.state != "SUCCESS":
                app.control.revoke(task_id)  # no retry, and no late start, of a task that nobody waits for any more
            return seen
        except (OperationalError, redis.RedisError, OSError, BrokerUnreachable) as error:
            told = (
                error.problem if isinstance(error, BrokerUnreachable) else f"{safe_url(url)} stopped answering: {error}"
            )
            raise BrokerUnreachable(
                told, f"look for task {task_id} in the workers' logs before sending it again"
            ) from error


def _to_its_end(watch: Watch, timeout_s: float, on_progress: Callable[[TaskState], None]) -> TaskState:
    deadline = time.monotonic() + timeout_s
    shown = TaskState("PENDING")
    while True:
        seen = watch.look()
        if seen.ended or seen.state == "RETRY" or time.monotonic() >= deadline:
            return seen
        if seen != shown:
            shown = seen
            on_progress(seen)


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
