"""A worker that would not come back is not interrupted, and none is started that gets no messages."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.brokers import until
from tests.sandbox.conftest import World

PASSWORD = "sh0p-s3cret"


@contextmanager
def broker_url(world: World, login: str, *channels: str) -> Iterator[None]:
    """The environment file names the broker with another login: of a user with these rights to
    channels.
    """
    kept = world.env_file.read_text()
    url = (world.root / "broker.url").read_text()
    assert url in kept
    with world.broker() as client:
        client.execute_command(
            "ACL", "SETUSER", "shop", "reset", "on", f">{PASSWORD}", "~*", "+@all", *channels
        )
        try:
            world.env_file.write_text(
                kept.replace(url, f"redis://{login}@{urlsplit(url).netloc}{urlsplit(url).path}")
            )
            yield
        finally:
            world.env_file.write_text(kept)
            client.execute_command("ACL", "DELUSER", "shop")


def pids(world: World) -> dict[str, int]:
    return {
        path.stem: int(path.read_text().split()[0])
        for path in (world.root / "app/run").glob("*.pid")
    }


def test_workers_whose_password_no_longer_works_are_not_restarted(healthy: World) -> None:
    before = pids(healthy)
    with broker_url(healthy, "shop:0ld-s3cret", "&*"):
        seen = healthy.inv("diagnose", "--json").json["findings"]
        assert [one["code"] for one in seen if one["severity"] == "error"] == [
            "worker.would_be_locked_out"
        ]
        done = healthy.inv("restart-workers", "--yes")
    said = done.out + done.err
    assert done.code == 2, said
    assert "a worker started on sandbox now would get no messages from redis://" in said
    assert "the broker refuses its user or password" in said
    assert "s3cret" not in said
    assert pids(healthy) == before
    with healthy.broker() as client:
        assert sum(one["cmd"] == "brpop" for one in client.client_list()) == 3


def test_a_worker_whose_redis_user_may_not_use_channels_is_neither_started_nor_restarted(
    healthy: World,
) -> None:
    stopped = pids(healthy)["worker_daemon"]
    os.kill(stopped, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{stopped}").exists())
    before = pids(healthy)
    with broker_url(healthy, f"shop:{PASSWORD}", "resetchannels"):
        done = healthy.inv("remediate", "--yes", "--json")
        (finding,) = (
            one for one in done.json["findings"] if one["code"] == "worker.would_be_locked_out"
        )
    assert done.code == 2, done.out + done.err
    assert "PSUBSCRIBE /3.celery.pidbox: " in finding["evidence"][0]
    assert "its Redis user lacks rights that a worker needs" in finding["summary"]
    assert pids(healthy) == before
    assert not Path(f"/proc/{stopped}").exists()
    assert healthy.inv("remediate", "--yes").code == 0
