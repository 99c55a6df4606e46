"""Sends commands ahead on one connection and reads their replies later, in the same order."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import redis


class Stream:
    """One connection of a client's pool, for as long as the block lasts.

    Nothing is ever sent twice. A block that ends with replies outstanding closes the connection.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._pool = client.connection_pool
        self._connection: Any = self._pool.get_connection()
        self._outstanding = 0

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._outstanding:
            self._connection.disconnect()
        self._pool.release(self._connection)

    def send(self, *command: Any) -> None:
        """Send a command; its reply is to be read by `receive`."""
        self._outstanding += 1
        self._connection.send_command(*command)

    def send_quietly(self, commands: Iterable[bytes]) -> None:
        """Send packed commands whose replies Redis keeps to itself; one `receive` shows that all
        were carried out.

        **Source:** Redis `CLIENT REPLY`: ON is answered, OFF and what follows it is not.
        """
        self._outstanding += 1
        off = self.pack("CLIENT", "REPLY", "OFF")
        on = self.pack("CLIENT", "REPLY", "ON")
        self._connection.send_packed_command([b"".join([off, *commands, on])])

    def send_packed(self, commands: Iterable[bytes], count: int) -> None:
        """Send packed commands, `count` of them, each of whose replies is to be read."""
        self._outstanding += count
        self._connection.send_packed_command([b"".join(commands)])

    def pack(self, *command: Any) -> bytes:
        """A command as it is sent."""
        return b"".join(self._connection.pack_command(*command))

    def receive(self) -> Any:
        """The reply to the oldest command whose reply has not been read; raises what Redis answered
        as an error.
        """
        try:
            reply = self._connection.read_response()
        except redis.ResponseError:
            self._outstanding -= 1
            raise
        self._outstanding -= 1
        return reply
