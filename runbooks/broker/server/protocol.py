"""Finds out what a port speaks if not the expected protocol: TLS, plain Redis, or another one."""

import socket
import ssl
from contextlib import suppress

import redis

from runbooks.core.errors import BrokerRefused

_TIMEOUT_S = 2.0
_READ_BYTES = 60
_REDIS_REPLIES = (
    b"+PONG",
    b"-NOAUTH",
    b"-NOPERM",
    b"-DENIED",
    b"-LOADING",
    b"-ERR",
    b"-MASTERDOWN",
)


def other_protocol(client: "redis.Redis") -> BrokerRefused | None:
    """Return what is wrong with the URL's scheme or port.

    None if the port does not show it, and for a socket's path.

    **Source:** Redis protocol, "Inline commands": `PING` is answered with `+PONG`, or with `-` and
    a reason.
    """
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return None
    host = str(options.get("host", "localhost"))
    port = int(options.get("port", 6379))
    where = f"{host}:{port}"
    with_tls = issubclass(client.connection_pool.connection_class, redis.SSLConnection)
    answer = _answer_to_ping(host, port)
    if answer.startswith(_REDIS_REPLIES):
        if not with_tls:
            return None
        problem = f"{where} speaks Redis without TLS, and the URL asks for TLS"
        return BrokerRefused(problem, "write redis:// instead of rediss://")
    if not with_tls and _speaks_tls(host, port):
        advice = (
            "write rediss:// instead of redis://, with"
            " ?ssl_cert_reqs=required&ssl_ca_certs=PATH to check its certificate"
        )
        return BrokerRefused(f"{where} speaks TLS, and the URL does not ask for it", advice)
    if answer and not _is_tls_record(answer):
        said = answer.decode(errors="replace").split("\n")[0].strip()
        return BrokerRefused(
            f"{where} is not a Redis server: it answers {said!r}",
            "check host and port in the broker URL",
        )
    return None


def _answer_to_ping(host: str, port: int) -> bytes:
    """The first bytes of the answer; empty if there is none."""
    with suppress(OSError), socket.create_connection((host, port), _TIMEOUT_S) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(_READ_BYTES)
    return b""


def _is_tls_record(answer: bytes) -> bool:
    """Whether it is a TLS server's alert. **Source:** RFC 8446, 5.1: content type 21, then 3.x."""
    return answer.startswith(b"\x15\x03")


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    # Nothing is sent over it.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection((host, port), _TIMEOUT_S) as connection,
        context.wrap_socket(connection, server_hostname=host),
    ):
        return True
    return False
