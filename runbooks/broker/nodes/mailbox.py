"""kombu's mailbox for remote control, without retries. Import it lazily, because it is slow."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kombu.connection import Connection
from kombu.messaging import Producer
from kombu.pidbox import Mailbox
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid


class OneTryProducer(Producer):
    """Publishes once; kombu's mailbox would retry without a limit."""

    def publish(self, body: Any, **publishing: Any) -> Any:  # type: ignore[override]
        """Publish, and ignore `retry`."""
        return super().publish(body, **{**publishing, "retry": False})  # type: ignore[no-untyped-call]


class OneTryMailbox(Mailbox):
    """The mailbox of one caller, which asks nodes by name or all of them.

    **Source:** kombu 5.7.0 `pidbox.py: Mailbox`, `transport/redis.py: Channel._put_fanout`; Redis
    PUBLISH.
    """

    heard = 0
    """How many nodes heard the last question to all."""

    @contextmanager
    def producer_or_acquire(self, producer: Any = None, channel: Any = None) -> Iterator[Any]:
        """Provide a producer on the mailbox's channel."""
        yield producer or OneTryProducer(channel, auto_declare=False)  # type: ignore[no-untyped-call]

    def ask(
        self,
        nodes: Sequence[str],
        command: str,
        replies: int,
        timeout_s: float,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Return `replies` replies of these nodes, whose names need not be unique, or fewer."""
        asked = arguments or {}
        answers = self._broadcast(
            command,
            asked,
            nodes,
            reply=True,
            timeout=timeout_s,
            limit=replies,
        )  # type: ignore[no-untyped-call]
        return _sound(answers or ())

    def ask_all(
        self,
        command: str,
        timeout_s: float,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the replies of all nodes that hear it, which Redis counts, or fewer."""
        channel: Any = self.connection.default_channel  # type: ignore[union-attr]
        ticket = uuid()

        def publish(
            exchange: str,
            message: Any,
            routing_key: str,
            **_: Any,
        ) -> None:
            topic = channel._get_publish_topic(exchange, routing_key)
            with channel.conn_or_acquire() as client:
                self.heard = client.publish(topic, dumps(message))  # type: ignore[no-untyped-call]

        channel._put_fanout = publish  # as kombu's, but it keeps the answer
        try:
            self._publish(
                command,
                arguments or {},
                None,
                ticket,
                channel,
                timeout_s,
            )  # type: ignore[no-untyped-call]
        finally:
            del channel._put_fanout
        if not self.heard:
            return []
        answers = self._collect(
            ticket,
            self.heard,
            timeout_s,
            channel=channel,
        )  # type: ignore[no-untyped-call]
        return _sound(answers)


def _sound(replies: Iterable[Any]) -> list[dict[str, Any]]:
    """Replies that name their nodes; anyone who may publish to the broker can send anything."""
    return [reply for reply in replies if isinstance(reply, dict)]


@contextmanager
def remote_control(url: str, transport_options: dict[str, Any]) -> Iterator[Any]:
    """Provide a mailbox on a separate connection."""
    with Connection(url, transport_options=transport_options) as connection:  # type: ignore[no-untyped-call]
        mailbox = OneTryMailbox(
            "celery",
            type="fanout",
            accept=["json"],
            serializer="json",
        )  # type: ignore[no-untyped-call]
        yield mailbox(connection)
