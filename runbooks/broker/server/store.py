"""Where one application's messages are: a connection to a Redis db, and its key names."""

from contextlib import AbstractContextManager

import redis
from msgspec import Struct

from runbooks.broker.server.connection import address, broker_errors
from runbooks.broker.server.keys import KeySpace


class Store(Struct, frozen=True):
    """Holds what every function needs that reads or moves messages.

    `Broker` creates a new one for each use, because the lock's holder, one of the `keys`, changes.
    """

    client: "redis.Redis"
    keys: KeySpace

    @property
    def address(self) -> str:
        """The server as `host:port`, or a socket's path."""
        return address(self.client)

    def errors(self) -> AbstractContextManager[None]:
        """Turn redis-py's exceptions in the block into this project's: see `broker_errors`."""
        return broker_errors(self.address)
