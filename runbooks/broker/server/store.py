"""Where one application's messages are: a connection to a Redis db, and the names of the keys
there.
"""

from contextlib import AbstractContextManager

import redis
from msgspec import Struct

from runbooks.broker.server.connection import address, broker_errors
from runbooks.broker.server.keys import KeySpace


class Store(Struct, frozen=True):
    """What every function needs that reads or moves messages.

    It is made anew for each use (`Broker` does), because what the lock holds, which is among the
    `keys`, changes.
    """

    client: "redis.Redis"
    keys: KeySpace

    @property
    def address(self) -> str:
        """The server as `host:port`, or a socket's path."""
        return address(self.client)

    def errors(self) -> AbstractContextManager[None]:
        """Turn redis-py's exceptions within the block into this project's: see `broker_errors`."""
        return broker_errors(self.address)
