"""What every test may ask for: a real Redis on a private port, and an empty db of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from lab.redis_server import RedisServer, redis_server_binary
from runbooks.broker.connection import connect


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real server for the whole session; without a binary the test is skipped here and fails in CI."""
    try:
        redis_server_binary()
    except FileNotFoundError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    server = RedisServer.start(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    """The broker URL of the db that `client` empties."""
    return redis_server.url(5)


@pytest.fixture
def client(url: str) -> Iterator["redis.Redis"]:
    """A client of an empty db."""
    connected = connect(url, timeout_s=10)
    connected.flushdb()
    yield connected
    connected.close()


@pytest.fixture
def archive_path(tmp_path: Path) -> Path:
    """Where a test's archive goes."""
    return tmp_path / "archive.jsonl"
