"""Watches a task, by the result backend or by the workers' events, and runs one to its end."""

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
from runbooks.core.settings import Canary

PAUSE_S = 0.2
_EVENTS = {
    "task-received": "RECEIVED",
    "task-started": "STARTED",
    "task-retried": "RETRY",
    "task-succeeded": "SUCCESS",
    "task-failed": "FAILURE",
    "task-revoked": "REVOKED",
    "task-rejected": "REJECTED",
}


class Watch(Protocol):
    """Knows the state of a task."""

    def look(self) -> TaskState:
        """Return the state after a pause of PAUSE_S.

        Raises BrokerUnreachable; the next look tries again.
        """
        ...


class ResultWatch:
    """Asks the result backend, of any kind, so nothing can be missed.

    **Source:** celery 5.7.0 `backends/base.py: get_task_meta`.
    """

    def __init__(self, app: Any, url: str, task_id: str) -> None:
        self._app = app
        self._url = url
        self._task_id = task_id

    def look(self) -> TaskState:
        from kombu.exceptions import ContentDisallowed, OperationalError

        time.sleep(PAUSE_S)
        try:
            meta = self._app.backend.get_task_meta(self._task_id, cache=False)
        except ContentDisallowed as error:
            problem = f"the result of {self._task_id} cannot be read: {error}"
            raise BrokerRefused(problem, "see the worker's log") from None
        except (OperationalError, redis.RedisError, OSError) as error:
            problem = f"the result backend {safe_url(self._url)} does not answer: {error}"
            raise BrokerUnreachable(problem, "is it up?") from error
        result = meta.get("result")
        if isinstance(result, BaseException):
            result = f"{type(result).__name__}: {result}"
        return TaskState(meta["status"], result, meta.get("traceback") or "")


@contextmanager
def watch_results(backend_url: str, task_id: str) -> Iterator[ResultWatch]:
    """Watch a task by the result backend for the length of the block."""
    import celery

    with celery.Celery("celery-runbooks", backend=backend_url, set_as_current=False) as app:
        yield ResultWatch(app, backend_url, task_id)


def run_task(
    url: str,
    transport_options: Mapping[str, Any],
    canary: Canary,
    task_id: str,
    watch: Watch,
    on_progress: Callable[[TaskState], None] = lambda _: None,
) -> TaskState:
    """Send a task by name, once, and wait for its end; new states go to `on_progress`.

    Retries are not awaited. After the canary's timeout the last state is returned. A task that did
    not succeed is revoked. Raises BrokerUnreachable if it could not be sent or watched, and
    BrokerRefused if the result cannot be read.

    **Source:** celery 5.7.0 `app/base.py: send_task`.
    """
    import celery
    from kombu.exceptions import OperationalError

    connect(url, transport_options).close()
    with celery.Celery("celery-runbooks", broker=url, set_as_current=False) as app:
        app.conf.broker_transport_options = {
            "socket_timeout": 5.0,
            **transport_options,
            "max_retries": 1,
        }
        try:
            # retry=False: if it is unknown whether it was sent, it must not be sent again.
            app.send_task(
                canary.task,
                kwargs=dict(canary.kwargs),
                queue=canary.queue,
                priority=canary.priority,
                task_id=task_id,
                retry=False,
            )
            seen = _to_its_end(watch, canary.timeout, on_progress)
            if seen.state != "SUCCESS":
                # So neither a retry nor a late start follows.
                app.control.revoke(task_id)
            return seen
        except (OperationalError, redis.RedisError, OSError, BrokerUnreachable) as error:
            problem = f"{safe_url(url)} stopped answering: {error}"
            if isinstance(error, BrokerUnreachable):
                problem = error.problem
            advice = f"search the workers' logs for task {task_id} before you send it again"
            raise BrokerUnreachable(problem, advice) from error


def _to_its_end(
    watch: Watch,
    timeout_s: float,
    on_progress: Callable[[TaskState], None],
) -> TaskState:
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
    """Receives the workers' events, which show no progress and are lost while the broker is away.

    It subscribes with a plain client: a consumer of kombu's would leave keys in Redis, and could
    return unacked messages.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._get_publish_topic, _put_fanout`; celery
    5.7.0 `events/dispatcher.py` (`celeryev`, one event or a list of them in a message),
    `worker/state.py` and `request.py` (the events' fields).
    """

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any],
        nodes: Sequence[str],
        task_id: str,
    ) -> None:
        self._url = url
        self._options = options
        self._nodes = nodes
        self._task_id = task_id
        self._state = TaskState("PENDING")
        self._pubsub: Any = None
        self._client: redis.Redis | None = None
        self._switched: set[str] = set()

    def open(self) -> None:
        """Subscribe, then switch the nodes' events on; a restarted worker sends none."""
        client = connect(self._url, self._options)
        self._client = client  # kept, because the end of a client ends its connections
        prefix = self._options.get("global_keyprefix", "")
        with broker_errors(address(client)):
            pubsub = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
            pubsub.psubscribe(f"{prefix}/{db_of(client)}.celeryev*")
        self._switched.update(switch_events(self._url, self._nodes, self._options, on=True))
        self._pubsub = pubsub

    def close(self) -> None:
        """Switch events off again; if the broker is away, they stay on until workers restart."""
        if self._client is not None:
            self._client.close()
        if self._switched:
            with suppress(BrokerUnreachable):
                switch_events(
                    self._url,
                    sorted(self._switched),
                    self._options,
                    on=False,
                )

    def look(self) -> TaskState:
        if self._pubsub is None:
            time.sleep(PAUSE_S)
            self.open()
        try:
            assert self._client is not None
            with broker_errors(address(self._client)):
                self._listen(time.monotonic() + PAUSE_S)
        except BrokerUnreachable:
            self._pubsub = None
            raise
        return self._state

    def _listen(self, until: float) -> None:
        while True:
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            message = self._pubsub.get_message(timeout=left_s)
            if message:
                self._hear(message["data"])

    def _hear(self, raw: bytes) -> None:
        for event in _events(raw):
            state = _EVENTS.get(event.get("type", ""))
            if event.get("uuid") != self._task_id or state is None:
                continue
            if state == "RECEIVED" and self._state.state == "RETRY":
                continue  # the message of the next attempt, which waits for its ETA
            result = event.get("result") or event.get("exception")
            if state == "STARTED":
                result = {"hostname": event.get("hostname")}  # as the result backend has it
            self._state = TaskState(
                state,
                result,
                event.get("traceback") or "",
            )


def _events(raw: bytes) -> list[dict[str, Any]]:
    try:
        found = json.loads(base64.b64decode(json.loads(raw)["body"]))
    except (ValueError, TypeError, LookupError):
        return []  # of another serializer
    if isinstance(found, list):
        return found
    return [found]


@contextmanager
def watch_events(
    url: str,
    options: Mapping[str, Any],
    nodes: Sequence[str],
    task_id: str,
) -> Iterator[EventWatch]:
    """Watch a task by the events of these nodes; their settings are restored at the end."""
    watch = EventWatch(url, options, nodes, task_id)
    try:
        watch.open()
        yield watch
    finally:
        watch.close()
