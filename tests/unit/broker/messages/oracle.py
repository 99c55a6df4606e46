"""What the installed kombu and Celery do with a list item: the consumer of a real worker, up to its
pool.
"""

from typing import Any
from unittest.mock import MagicMock

import redis
from celery import Celery
from celery.worker.consumer.consumer import Consumer
from celery.worker.state import revoked
from celery.worker.strategy import default
from kombu.entity import Queue

QUEUE = "oracle"


class EveryTask(dict[Any, Any]):
    """Celery's table of strategies, in a worker that has registered every name."""

    def __init__(self, strategy: Any) -> None:
        super().__init__()
        self.strategy = strategy

    def __missing__(self, name: Any) -> Any:
        return self.strategy


class Oracle:
    """Pops raw items as a worker that knows every task does, and returns what it raised."""

    def __init__(self, url: str, client: "redis.Redis") -> None:
        self.client = client
        self.app = Celery("oracle", broker=url, backend="cache+memory://", set_as_current=False)
        worker = self.worker = Consumer.__new__(Consumer)
        worker.app, worker.hostname, worker.connection_errors = self.app, "oracle@here", ()
        worker.event_dispatcher, worker.disable_rate_limits, worker.restart_count = None, True, 0
        worker._maximum_prefetch_restored, worker.on_task_message, worker.task_buckets = (
            True,
            (),
            {},
        )
        worker.timer, worker.controller, worker.pool, worker.qos = (
            MagicMock(),
            MagicMock(),
            MagicMock(),
            MagicMock(),
        )
        worker.controller.state.revoked = revoked
        worker.timer.call_at.side_effect = lambda _eta, do, args, **_options: do(
            *args
        )  # the ETA comes at once
        worker.call_soon = worker.call_soon_ack = MagicMock()
        worker.on_task_request = lambda request: request.execute_using_pool(worker.pool)
        strategy = default(self.app.tasks["celery.accumulate"], self.app, worker)
        worker.strategies = EveryTask(strategy)

    def raises(self, raw: bytes) -> BaseException | None:
        """The exception with which the consumer leaves its loop on this item, or None."""
        self.client.delete(QUEUE, "unacked", "unacked_index")
        self.client.lpush(QUEUE, raw)
        with self.app.connection_for_read() as connection:
            channel = connection.channel()
            queue = Queue(QUEUE)  # type: ignore[no-untyped-call]
            consumer = self.app.amqp.TaskConsumer(
                channel, queues=[queue], on_decode_error=self.worker.on_decode_error
            )
            consumer.on_message = self.worker.create_task_handler()
            consumer.consume()
            try:
                connection.drain_events(timeout=2)
            except Exception as error:
                return error
            finally:
                channel.qos._delivered.clear()
        return None

    def runs(self, raw: bytes) -> bool:
        """True where the worker hands the item's task to its pool."""
        self.worker.pool.apply_async.reset_mock()
        return self.raises(raw) is None and bool(self.worker.pool.apply_async.called)
