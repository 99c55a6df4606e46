"""Pipelines commands on one connection: sends ahead, and reads the replies later, in order."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import redis


class Stream:
    """Holds one connection of a client's pool for the length of the block.

    No command is sent twice. A block that ends with replies outstanding closes the connection.
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
        """Send a command; read its reply with `receive`."""
        self._outstanding += 1
        self._connection.send_command(*command)

    def send_quietly(self, commands: Iterable[bytes]) -> None:
        """Send packed commands without replies; one `receive` shows that all have run.

        **Source:** Redis `CLIENT REPLY`: ON is answered, OFF and what follows it is not.
        """
        self._outstanding += 1
        off = self.pack("CLIENT", "REPLY", "OFF")
        on = self.pack("CLIENT", "REPLY", "ON")
        self._connection.send_packed_command([b"".join([off, *commands, on])])

    def send_packed(self, commands: Iterable[bytes], count: int) -> None:
        """Send `count` packed commands; each has a reply to read."""
        self._outstanding += count
        self._connection.send_packed_command([b"".join(commands)])

    def pack(self, *command: Any) -> bytes:
        """Return a command's bytes as they are sent."""
        return b"".join(self._connection.pack_command(*command))

    def receive(self) -> Any:
        """Read the oldest reply that is outstanding; raises an error reply of Redis."""
        try:
            reply = self._connection.read_response()
        except redis.ResponseError:
            self._outstanding -= 1
            raise
        self._outstanding -= 1
        return reply
