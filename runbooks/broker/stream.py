"""Sends commands ahead on one connection and reads their replies later, in the same order."""

from types import TracebackType
from typing import Any

import redis


class Stream:
    """One connection of a client's pool, for as long as the block lasts.

    Nothing is ever sent twice. A block that ends with replies outstanding closes the connection.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._pool = client.connection_pool
        self._connection = self._pool.get_connection()
        self._outstanding = 0

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._outstanding:
            self._connection.disconnect()  # type: ignore[no-untyped-call]
        self._pool.release(self._connection)

    def send(self, *command: Any) -> None:
        """Send a command; its reply is to be read by `receive`."""
        self._outstanding += 1
        self._connection.send_command(*command)  # type: ignore[no-untyped-call]

    def receive(self) -> Any:
        """The reply to the oldest command whose reply has not been read; raises what Redis answered as an error."""
        try:
            reply = self._connection.read_response()
        except redis.ResponseError:
            self._outstanding -= 1
            raise
        self._outstanding -= 1
        return reply
