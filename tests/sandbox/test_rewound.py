"""Redis went back to an older state; the command line, from the look at the archives to the message
that is put back.

With an RDB, with the AOF of `everysec` after a loss of power, and where a replica that lagged took
the address over.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.redis_server import RedisServer
from tests.brokers import servers
from tests.sandbox.conftest import World, make_world
from tests.sandbox.test_brokers import INVENTORY
from tests.unit.broker.conftest import listed
from tests.unit.broker.queues.test_reconcile import COUNT, Everysec, Failover, Rdb, client_of, send

LOST = "Redis has no record of this run's last step"


class TakenOver(Failover):
    """The replica that lagged answers at the master's address."""

    def go_back(self) -> RedisServer:
        lagging = super().go_back()
        with client_of(lagging) as client:
            client.save()
        lagging.stop()
        return RedisServer.start(lagging.directory, port=self.server.port)


@contextmanager
def place(
    kind: Callable[..., Rdb | Failover], folder: Path
) -> Iterator[tuple[World, Rdb | Failover]]:
    """A world without any worker whose broker can go back; messages wait in `low`."""
    (folder / "world").mkdir()
    with servers(folder) as start:
        old, world = kind(start), make_world(folder / "world")
        send(old.server, "stale", queue="low")
        for file, text in (
            ("broker.url", old.server.url()),
            ("options.json", "{}"),
            ("inventory.yaml", INVENTORY),
        ):
            (world.path / file).write_text(text)
        yield world, old


def low(server: RedisServer) -> list[bytes]:
    with client_of(server) as client:
        return listed(client, "low")


@pytest.mark.parametrize("kind", [Rdb, TakenOver])
def test_an_undo_after_redis_went_back_says_so_and_doubles_nothing(
    kind: Callable[..., Rdb | Failover], tmp_path: Path
) -> None:
    with place(kind, tmp_path) as (world, old):
        before = low(old.server)
        old.remember()
        taken = world.inv("clean-queues", "--task", "stale", "--yes")
        assert taken.code == 0, taken.out + taken.err
        assert low(old.server) == []
        server = old.go_back()
        try:
            assert low(server) == before
            (row,) = world.inv("archive.list", "--json").json["archives"]
            assert (row["in it"], row["Redis now"].split(":")[0]) == (
                COUNT,
                "no record of its last step",
            )
            shown = world.inv("archive.show", "last")
            assert (shown.code, shown.out.count("taken, but in Redis")) == (0, 50), shown.out
            assert f"already in Redis, not changed: {COUNT}" in shown.out + shown.err

            dry = world.inv("undo", "last", "--dry-run")
            assert (
                dry.code,
                LOST in dry.out,
                f"already in Redis, not changed: {COUNT}" in dry.out,
            ) == (
                0,
                True,
                True,
            ), dry.out
            undone = world.inv("undo", "last", "--yes")
            assert (undone.code, "Nothing left to undo" in undone.out) == (0, True), undone.out
            assert low(server) == before, "nothing is doubled"

            with client_of(server) as client:
                client.rpop("low", 20)  # as workers do
            nothing = world.inv("archive.restore", "last", "--yes")
            assert (nothing.code, "left in the archive: 20" in nothing.out + nothing.err) == (
                0,
                True,
            ), nothing.out
            assert len(low(server)) == COUNT - 20, "they may have run"
            asked = world.terminal(
                "archive.restore", "last", "--even-restored", answers=[("[y/N]", "n")]
            )
            assert asked.code == 99, asked.out
            words = " ".join(asked.out.split())
            assert (
                words.index(LOST) < words.index("restore 20 messages to low") < words.index("[y/N]")
            ), words
            assert len(low(server)) == COUNT - 20
        finally:
            server.stop(signal.SIGKILL)


@pytest.mark.parametrize("kind", [Rdb, Everysec])
def test_what_redis_lost_of_a_restore_is_said_and_put_back_once_where_that_is_asked_for(
    kind: Callable[..., Rdb | Failover], tmp_path: Path
) -> None:
    with place(kind, tmp_path) as (world, old):
        before = low(old.server)
        run = world.inv("clean-queues", "--task", "stale", "--yes", "--json").json["run"]
        old.remember()
        back = world.inv("archive.restore", run, "--yes", "--json").json["run"]
        assert low(old.server) == before
        server = old.go_back()
        try:
            assert low(server) == []
            shown = world.inv("archive.show", run)
            assert (shown.code, shown.out.count("restored, but not in Redis")) == (
                0,
                50,
            ), shown.out
            nothing = world.inv("archive.restore", run, "--yes")
            assert (nothing.code, "Nothing to restore" in nothing.out) == (0, True), nothing.out
            said = nothing.out + nothing.err
            assert (
                f"restored or moved before, but not in Redis, so consumed or lost: {COUNT}" in said
            )
            assert f"`inv archive.restore {run} --even-restored` restores them" in said
            undone = world.inv("undo", back, "--yes")
            assert (undone.code, low(server)) == (0, []), undone.out

            again = ("archive.restore", run, "--even-restored")
            asked = world.terminal(*again, answers=[("[y/N]", "y")])
            assert asked.code == 0, asked.out
            words = " ".join(asked.out.split())
            assert (
                words.index(LOST)
                < words.index(f"restore {COUNT} messages to low")
                < words.index("[y/N]")
            ), words
            assert low(server) == before
            once = world.inv(*again, "--yes")
            assert (once.code, "Nothing to restore" in once.out, low(server)) == (
                0,
                True,
                before,
            ), once.out
        finally:
            server.stop(signal.SIGKILL)
