"""Remote control's mailbox as kombu has it, but giving up at the first lost connection. Import it lazily: slow."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu.connection import Connection
from kombu.messaging import Producer
from kombu.pidbox import Mailbox


class OneTryProducer(Producer):
    """Publishes once: kombu's mailbox asks for retries without a limit."""

    def publish(self, body: Any, **publishing: Any) -> Any:  # type: ignore[override]
        """Publish, whatever `retry` says."""
        return super().publish(body, **{**publishing, "retry": False})  # type: ignore[no-untyped-call]


class OneTryMailbox(Mailbox):
    """The mailbox of one caller: `multi_call` asks all nodes, `call` those named."""

    @contextmanager
    def producer_or_acquire(self, producer: Any = None, channel: Any = None) -> Iterator[Any]:
        """A producer on the mailbox's own channel."""
        yield producer or OneTryProducer(channel, auto_declare=False)  # type: ignore[no-untyped-call]


@contextmanager
def remote_control(url: str, transport_options: dict[str, Any]) -> Iterator[Any]:
    """A mailbox on a connection of its own."""
    with Connection(url, transport_options=transport_options) as connection:  # type: ignore[no-untyped-call]
        mailbox = OneTryMailbox("celery", type="fanout", accept=["json"], serializer="json")  # type: ignore[no-untyped-call]
        yield mailbox(connection)
