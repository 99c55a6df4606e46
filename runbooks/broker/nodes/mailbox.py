"""Remote control's mailbox as kombu has it, but giving up at the first lost connection. Import it
lazily: slow.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kombu.connection import Connection
from kombu.messaging import Producer
from kombu.pidbox import Mailbox
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid


class OneTryProducer(Producer):
    """Publishes once: kombu's mailbox asks for retries without a limit."""

    def publish(self, body: Any, **publishing: Any) -> Any:  # type: ignore[override]
        """Publish, whatever `retry` says."""
        return super().publish(body, **{**publishing, "retry": False})  # type: ignore[no-untyped-call]


class OneTryMailbox(Mailbox):
    """The mailbox of one caller: `call` asks nodes by name.

    **Source:** kombu 5.7.0 `pidbox.py: Mailbox`, `transport/redis.py: Channel._put_fanout`; Redis
    PUBLISH.
    """

    heard = 0
    """How many heard what all were asked last."""

    @contextmanager
    def producer_or_acquire(self, producer: Any = None, channel: Any = None) -> Iterator[Any]:
        """A producer on the mailbox's own channel."""
        yield producer or OneTryProducer(channel, auto_declare=False)  # type: ignore[no-untyped-call]

    def ask(
        self,
        nodes: Sequence[str],
        command: str,
        replies: int,
        timeout_s: float,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """So many replies of these nodes, of which several may have one name; fewer after the
        timeout.
        """
        asked = arguments or {}
        told = self._broadcast(
            command,
            asked,
            nodes,
            reply=True,
            timeout=timeout_s,
            limit=replies,
        )  # type: ignore[no-untyped-call]
        return _sound(told or ())

    def ask_all(
        self,
        command: str,
        timeout_s: float,
        arguments: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """The replies of all nodes that hear it; Redis says how many these are. Fewer after the
        timeout.
        """
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

        channel._put_fanout = publish  # kombu's own, but for the answer
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
        told = self._collect(
            ticket,
            self.heard,
            timeout_s,
            channel=channel,
        )  # type: ignore[no-untyped-call]
        return _sound(told)


def _sound(replies: Iterable[Any]) -> list[dict[str, Any]]:
    """Replies that name their nodes: whoever may publish to the broker can send anything."""
    return [reply for reply in replies if isinstance(reply, dict)]


@contextmanager
def remote_control(url: str, transport_options: dict[str, Any]) -> Iterator[Any]:
    """A mailbox on a connection of its own."""
    with Connection(url, transport_options=transport_options) as connection:  # type: ignore[no-untyped-call]
        mailbox = OneTryMailbox(
            "celery",
            type="fanout",
            accept=["json"],
            serializer="json",
        )  # type: ignore[no-untyped-call]
        yield mailbox(connection)
