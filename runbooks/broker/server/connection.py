"""Connects to the broker by Celery's own URL, and explains in plain words why it cannot."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import DefaultParser
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from runbooks.broker.server.protocol import other_protocol
from runbooks.core.broker_url import is_unchecked, safe_url
from runbooks.core.errors import (
    BrokerReadOnly,
    BrokerRefused,
    BrokerUnreachable,
    HostUnreachable,
    RunbookError,
    Trouble,
    UsageError,
)

Tunnel = Callable[[str, int], int]
"""A host and port that only another machine can reach → the local port that leads there."""

_READ_BYTES = 256 * 1024
"""Large, because whole queues are read."""
_SCHEMES = ("redis", "rediss", "redis+socket", "socket")
_SENTINEL = "sentinel://"
_SENTINEL_PORT = 26379
_NO_TOUCH_SINCE = (7, 2)
_SCRIPT_RIGHTS = "give this Redis user the rights that docs/queues.md lists (ACL SETUSER)"
_CLUSTER = (
    "Celery has no transport for Redis Cluster: name the standalone server that the workers use"
)

_REFUSALS = {
    "NOAUTH": (
        Trouble.WRONG_PASSWORD,
        "put the password into the broker URL: redis://:PASSWORD@host:port/db",
    ),
    "WRONGPASS": (Trouble.WRONG_PASSWORD, "check user and password in the broker URL"),
    "NOPERM": (
        Trouble.MISSING_RIGHT,
        (
            "give this Redis user the right (ACL SETUSER); docs/queues.md lists all rights that"
            " are needed"
        ),
    ),
    "The user executing the script": (Trouble.MISSING_RIGHT, _SCRIPT_RIGHTS),
    "ACL failure in script": (Trouble.MISSING_RIGHT, _SCRIPT_RIGHTS),
    "unknown command": (
        Trouble.MISSING_RIGHT,
        (
            "`rename-command` in the server's configuration disables it; docs/queues.md lists the"
            " commands that are needed"
        ),
    ),
    "READONLY": (
        Trouble.REPLICA,
        "it has become a replica: redis-cli INFO replication names its master; is that intended?",
    ),
    "WRONGTYPE": (
        Trouble.UNUSABLE,
        (
            "a queue's key is not a list: something else uses that name; check it with redis-cli"
            " TYPE"
        ),
    ),
    "OOM": (
        Trouble.FULL,
        "Redis is at its maxmemory and refuses writes: raise it for now with CONFIG SET maxmemory",
    ),
    "MISCONF": (
        Trouble.CANNOT_SAVE,
        "Redis cannot save to its disk and refuses writes: see its log, free the disk",
    ),
    "MOVED": (Trouble.UNUSABLE, _CLUSTER),
    "NOREPLICAS": (
        Trouble.FEW_REPLICAS,
        "Redis refuses writes because too few replicas answer: see min-replicas-to-write",
    ),
}
"""Start of a server's error reply → what it means, and what to do about it."""
_TAKEN_AWAY = {
    "NOPERM": redis.exceptions.NoPermissionError,
    "READONLY": redis.exceptions.ReadOnlyError,
    "OOM": redis.exceptions.OutOfMemoryError,
}
"""The words that redis-py removes from an error reply, and the exception it raises instead."""
_IN_PIPELINE = " of pipeline caused error: "
_NO_WRITES = (Trouble.FULL, Trouble.CANNOT_SAVE, Trouble.FEW_REPLICAS)


def address(client: "redis.Redis") -> str:
    """Return the address of a client's server: `host:port` or a socket's path, no password."""
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


def db_of(client: "redis.Redis") -> int:
    """Return the number of the db that a client uses."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


@contextmanager
def in_db(client: "redis.Redis", db: int) -> Iterator["redis.Redis"]:
    """Provide a client of another db of the same server, for the length of the block."""
    pool = client.connection_pool
    options = {**pool.connection_kwargs, "db": db}
    others = redis.ConnectionPool(connection_class=pool.connection_class, **options)
    other = redis.Redis(connection_pool=others)
    try:
        yield other
    finally:
        other.connection_pool.disconnect()


class _Parser(DefaultParser):  # type: ignore[valid-type, misc]  # one of two classes, by what is installed
    """Treats a command that the server does not know (rename-command) as a missing right."""

    @classmethod
    def parse_error(cls, response: str) -> Exception:
        if response.startswith("ERR unknown command"):
            name = re.split("['`]", response)[1]
            problem = f"unknown command '{name}', so no user has the right to run it"
            return redis.exceptions.NoPermissionError(problem)
        error: Exception = super().parse_error(response)
        return error


def connect(
    url: str,
    options: Mapping[str, Any] | None = None,
    *,
    timeout_s: float = 5.0,
) -> "redis.Redis":
    """Connect, and check at once that workers can use this broker.

    `options` are Celery's `broker_transport_options`: for a sentinel:// URL, `master_name` and
    `sentinel_kwargs`. redis-py's retries are off, so no command is sent twice. A failover ends the
    connection; the next `connect` finds the new master. From Redis 7.2 on, reads do not change a
    key's idle time (`OBJECT IDLETIME`, eviction), if the user may run CLIENT NO-TOUCH.

    Raises UsageError for a URL that is not a broker's, BrokerUnreachable if nothing answers, and
    BrokerRefused for a wrong password, a missing db, a Cluster or a replica.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel._connparams, SentinelChannel` (URL forms);
    Redis `INFO` (server, cluster, replication), `CLIENT NO-TOUCH`.
    """
    try:
        if url.startswith(_SENTINEL):
            url = _masters_url(url, options or {}, timeout_s)
        redis_py_url = _redis_py_url(url)
        client = _client(redis_py_url, timeout_s, "celery-runbooks")
        where = address(client)
        # A server that cannot save to its disk refuses PING too, but can still be read.
        with suppress(BrokerReadOnly), broker_errors(where):
            try:
                client.ping()
            except redis.exceptions.NoPermissionError:
                # Perhaps only CLIENT SETNAME is not allowed.
                client = _client(redis_py_url, timeout_s, None)
                client.ping()
            except (redis.ConnectionError, redis.TimeoutError, redis.InvalidResponse) as error:
                refused = other_protocol(client)
                if refused:
                    raise refused from error
                raise
    except (ValueError, TypeError) as error:
        raise _unusable(url) from error
    info = _info(client, where)
    _require_standalone_master(info, where)
    if _version(info) >= _NO_TOUCH_SINCE:
        with broker_errors(where):
            _touch_nothing(client)
    return client


def place(url: str, options: Mapping[str, Any]) -> str:
    """Return the name of a broker, which a failover does not change; nothing is sent to it.

    Raises UsageError for a URL that is not a broker's.
    """
    if not url.startswith(_SENTINEL):
        try:
            client = _client(_redis_py_url(url), 0, None)
        except (ValueError, TypeError) as error:
            raise _unusable(url) from error
        return f"{address(client)}/{db_of(client)}"
    parts = [urlsplit(part) for part in url.split(";")]
    sentinels = sorted(part.netloc.rpartition("@")[2] for part in parts)
    db = parts[0].path.strip("/") or 0
    return f"{options.get('master_name')} of {','.join(sentinels)}/{db}"


def _unusable(url: str) -> UsageError:
    return UsageError(
        f"{safe_url(url)} is not a broker URL that this tool can use",
        "see broker_url in Celery's settings",
    )


def through(url: str, tunnel: Tunnel) -> str:
    """Return the URL of the tunnel's local end.

    Raises UsageError for a URL that no tunnel can serve, BrokerUnreachable if the tunnel fails.
    """
    parts = urlsplit(url)
    if parts.scheme != "redis" or not parts.hostname:
        problem = f"{safe_url(url)} cannot be reached through a tunnel"
        advice = "only redis:// URLs can: with TLS, the certificate would be for another host"
        raise UsageError(problem, advice)
    try:
        port = tunnel(parts.hostname, parts.port or 6379)
    except HostUnreachable as error:
        problem = f"the tunnel to the broker failed: {error.problem}"
        raise BrokerUnreachable(problem, error.advice) from None
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{port}"))


def _masters_url(
    url: str,
    options: Mapping[str, Any],
    timeout_s: float,
) -> str:
    """The URL of the master that the Sentinels name; login, db and TLS come from the first part."""
    parts = [urlsplit(part) for part in url.split(";")]
    first = parts[0]
    name = options.get("master_name")
    if not name:
        advice = "set it as in Celery's broker_transport_options:"
        advice += " celery_broker_options: {master_name: NAME}"
        raise UsageError(f"{safe_url(url)} does not name its master", advice)
    usual = first.path.strip("/") or "0"
    if len({part.path.strip("/") or usual for part in parts}) > 1:
        advice = "workers use the first db, and another after a failure: end each with the same db"
        raise UsageError(f"{safe_url(url)} names several dbs", advice)
    sentinels = _sentinels(parts, options, timeout_s)
    try:
        host, port = sentinels.discover_master(name)  # type: ignore[no-untyped-call]
    except MasterNotFoundError as error:
        problem = f"no Sentinel of {safe_url(url)} names a master {name}: {error}"
        advice = "run redis-cli -p 26379 SENTINEL MASTERS;"
        advice += " check the master's name and the Sentinels' password"
        raise BrokerUnreachable(problem, advice) from error
    finally:
        for sentinel in sentinels.sentinels:
            sentinel.close()
    login, at, _ = first.netloc.rpartition("@")
    scheme = "rediss" if "ssl_" in first.query else "redis"
    if ":" in host:
        host = f"[{host}]"
    where = f"{login}{at}{host}:{port}"
    return urlunsplit((scheme, where, first.path, first.query, ""))


def _sentinels(
    parts: Sequence[SplitResult],
    options: Mapping[str, Any],
    timeout_s: float,
) -> Sentinel:
    timeouts = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }
    return Sentinel(
        [(part.hostname, part.port or _SENTINEL_PORT) for part in parts],
        min_other_sentinels=int(options.get("min_other_sentinels", 0)),
        sentinel_kwargs={**timeouts, **(options.get("sentinel_kwargs") or {})},
    )  # type: ignore[no-untyped-call]


def _client(
    redis_py_url: str,
    timeout_s: float,
    name: str | None,
) -> "redis.Redis":
    return redis.Redis.from_url(
        redis_py_url,
        socket_timeout=timeout_s,
        socket_read_size=_READ_BYTES,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        parser_class=_Parser,
        client_name=name,
        protocol=2,
    )


def _redis_py_url(url: str) -> str:
    """The URL in redis-py's form: socket path, db and names of certificate checks differ."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        problem = f"{safe_url(url)} is not a Redis URL"
        raise UsageError(problem, "this tool supports Celery on Redis: redis://host:port/db")
    query = dict(parse_qsl(parts.query))
    if is_unchecked(url):
        query["ssl_cert_reqs"] = "none"
    if "ssl_cert_reqs" in query:
        query["ssl_cert_reqs"] = query["ssl_cert_reqs"].lower().removeprefix("cert_")
    if parts.scheme.endswith("socket"):
        query["db"] = query.pop("virtual_host", "0").strip("/") or "0"
        return f"unix://{parts.netloc}{quote(unquote(parts.path))}?{urlencode(query)}"
    db = parts.path.strip("/") or "0"
    if not db.isdigit():
        raise UsageError(
            f"{safe_url(url)} does not end with a db number",
            "end the broker URL with the db: redis://host:port/0",
        )
    found = f"{parts.scheme}://{parts.netloc}/{db}"
    if query:
        found += f"?{urlencode(query)}"
    return found


def _info(client: "redis.Redis", where: str) -> dict[str, Any]:
    """The server's INFO; empty if this user may not read it."""
    try:
        with broker_errors(where):
            info: dict[str, Any] = client.info()
    except BrokerRefused:
        return {}
    return info


def _version(info: Mapping[str, Any]) -> tuple[int, ...]:
    version = str(info.get("redis_version", "0"))
    return tuple(map(int, version.split(".")[:2]))


def _touch_nothing(client: "redis.Redis") -> None:
    """Keep this client's reads from changing a key's idle time, if its user may do that."""

    def ask(connection: Any) -> None:
        connection.send_command("CLIENT", "NO-TOUCH", "ON")
        connection.read_response()

    def on_connect(connection: Any) -> None:
        connection.on_connect()
        ask(connection)

    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        ask(connection)
    except redis.exceptions.NoPermissionError:
        return
    finally:
        pool.release(connection)
    # For reconnects of this connection, and for new ones.
    connection.redis_connect_func = on_connect
    pool.connection_kwargs["redis_connect_func"] = on_connect


def _require_standalone_master(info: Mapping[str, Any], where: str) -> None:
    """Refuse a Cluster and a replica; if INFO is not allowed, trust the URL."""
    if info.get("cluster_enabled"):
        raise BrokerRefused(f"{where} is a Redis Cluster", _CLUSTER)
    if info.get("role") == "slave":
        master = f"{info.get('master_host')}:{info.get('master_port')}"
        advice = f"check who runs {master} and since when this server follows it"
        advice += " (redis-cli INFO replication, and the server's log): someone may have redirected"
        advice += " it; name the master in the broker URL only if your workers should write there"
        raise BrokerRefused(
            f"{where} is a replica: it follows {master}, {_link(info)}",
            advice,
            Trouble.REPLICA,
        )


def _link(info: Mapping[str, Any]) -> str:
    """How long a replica's link has been up or down. **Source:** Redis `INFO replication`."""
    if info.get("master_link_status") == "up":
        if "master_link_up_since_seconds" in info:  # Redis 8.4 and newer
            return f"the link has been up for {info['master_link_up_since_seconds']} s"
        quiet_s = info.get("master_last_io_seconds_ago")
        link = f"the link is up, with last traffic {quiet_s} s ago"
        return f"{link}; this server does not report since when"
    down_s = info.get("master_link_down_since_seconds", -1)
    if int(down_s) < 0:
        return "the link has never been up"
    return f"the link has been down for {down_s} s"


@contextmanager
def broker_errors(where: str) -> Iterator[None]:
    """Turn redis-py's exceptions into this project's; `where` is the server's `address`."""
    try:
        yield
    except redis.RedisError as error:
        raise _translated(error, where) from error


def _ping(where: str) -> str:
    """The command that shows whether a server answers.

    It has no password, because the process list would show it.
    """
    host, _, port = where.rpartition(":")
    if where.startswith("/"):
        return f"redis-cli -s {shlex.quote(where)} PING"
    return f"redis-cli -h {host} -p {port} PING"


def _translated(error: redis.RedisError, where: str) -> RunbookError:
    text = str(error)
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return BrokerUnreachable(
            f"{where} is still loading its data",
            f"wait until `{_ping(where)}` answers PONG",
            Trouble.LOADING,
        )
    if "max number of clients" in text:
        return BrokerUnreachable(
            f"{where} accepts no more clients: {text}",
            _more_clients(where),
            Trouble.MAX_CLIENTS,
        )
    word = _word_for(error, text)
    if word:
        trouble, advice = _REFUSALS[word]
        if trouble in _NO_WRITES:  # whichever command it was in redis-py's pipeline
            why = text.rpartition(_IN_PIPELINE)[2]
            return BrokerReadOnly(f"{where} refuses: {why}", advice, trouble)
        return BrokerRefused(f"{where} refuses: {text}", advice, trouble)
    if "not allowed in cluster mode" in text:
        return BrokerRefused(f"{where} is a Redis Cluster", _CLUSTER)
    if "DB index is out of range" in text or "Invalid Database" in text:
        return BrokerRefused(
            f"{where} has no such db: {text}", "check the number at the end of the broker URL"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        advice = (
            "name its CA in the broker URL:"
            " rediss://host:port/db?ssl_cert_reqs=required&ssl_ca_certs=/path/ca.pem"
        )
        problem = f"the certificate of {where} cannot be trusted: {text}"
        return BrokerRefused(problem, advice)
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        advice = (
            f"is it up? then `{_ping(where)}` answers PONG, or NOAUTH (redis-cli needs --tls for"
            " rediss://)"
        )
        return BrokerUnreachable(f"the broker at {where} does not answer: {text}", advice)
    return BrokerRefused(f"{where} refuses: {text}", "see the server's log")


def _word_for(error: redis.RedisError, text: str) -> str:
    """The word of a refusal, also if redis-py has removed it; "" for any other error."""
    for word in _REFUSALS:
        if word in text:
            return word
    if isinstance(error, redis.AuthenticationError):
        return "NOAUTH" if "required" in text.lower() else "WRONGPASS"
    for word, kind in _TAKEN_AWAY.items():
        if isinstance(error, kind):
            return word
    return ""


def _more_clients(where: str) -> str:
    """What helps if not even redis-cli can connect."""
    whose = ""
    if not where.startswith("/"):
        port = where.rpartition(":")[2]
        whose = f" (`ss -tn sport = :{port}` on its host shows whose they are)"
    advice = f"end clients that are not needed{whose}, then raise maxclients"
    return f"{advice} with CONFIG SET and in the server's configuration"
