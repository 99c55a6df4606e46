"""An application of which nothing runs, and no inventory: where it is loaded, and what `adopt`
writes of its broker.
"""

import sys
from collections.abc import Iterator

import pytest
import redis
from celery import Celery

from lab.redis_server import RedisServer
from tests.sandbox.conftest import World, make_world

PASSWORD = "br0ker-s3cret"
APP = """\
import os
from celery import Celery
app = Celery("alone", broker=os.environ["ALONE_URL"])
app.conf.task_default_queue = "q"
@app.task(name="alone.one")
def one(): pass
"""
PYTHON = ("--python", sys.executable)


@pytest.fixture(scope="module")
def alone(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A folder with the application, and one message for it in a broker that asks for a password."""
    world = make_world(tmp_path_factory.mktemp("alone"))
    (world.path / "inventory.yaml").unlink()
    (world.path / "alone.py").write_text(APP)
    with redis.Redis.from_url(redis_server.url(0)) as client:
        client.acl_setuser(
            "shop", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"],
            categories=["+@all"],
        )  # fmt: skip
        url = redis_server.url(13).replace("redis://", f"redis://shop:{PASSWORD}@")
        with Celery("producer", broker=url, set_as_current=False) as app:
            app.send_task("alone.one", queue="q")
        yield World(world.path, {"ALONE_URL": url})
        client.acl_deluser("shop")


def test_it_is_loaded_with_the_shells_variables_and_its_password_is_looked_up(alone: World) -> None:
    adopted = alone.inv("adopt", "-A", "alone", *PYTHON)
    assert adopted.code == 1, adopted.out + adopted.err
    assert "1 message waits in q and no node consumes it" in adopted.err
    assert "ERROR" not in adopted.out
    lookup = "lookup('env', 'ALONE_URL')"
    for line in (
        f'celery_broker_url: "{{{{ {lookup} or undef(',
        f"celery_directory: {alone.path}  # the folder of this command",
        f"celery_python: {sys.executable}  # --python",
        "# Not found: no worker runs: name those that should run",
    ):
        assert line in adopted.out, adopted.out
    assert "alone.one" not in adopted.out
    (alone.path / "adopted.yaml").write_text(adopted.out)
    looked = alone.inv("queues", "-i", "adopted.yaml")
    assert (looked.code, "alone.one" in looked.out) == (0, True), looked.out + looked.err

    secret = alone.path / "broker.secret"
    adopted = alone.inv("adopt", "-A", "alone", *PYTHON, "--secrets-file", str(secret))
    assert f"lookup('file', '{secret}')" in adopted.out
    assert (secret.stat().st_mode & 0o777, secret.read_text()) == (
        0o600,
        f"{alone.more['ALONE_URL']}\n",
    )


def test_one_that_does_not_load_needs_the_brokers_url(alone: World) -> None:
    (alone.path / "broken.py").write_text("raise RuntimeError('no settings here')\n")
    refused = alone.inv("diagnose", "-A", "broken", *PYTHON)
    assert refused.code == 5, refused.out + refused.err
    assert "broken does not say which broker it has: RuntimeError: no settings here" in refused.err
    assert "name it: --broker URL, or --broker env:NAME" in refused.err
    named = alone.inv("diagnose", "-A", "broken", *PYTHON, "--broker", "env:ALONE_URL")
    assert (named.code, "1 message waits in q" in named.out) == (1, True), named.out + named.err
    assert PASSWORD not in refused.err + named.out + named.err


def test_its_python_is_that_of_the_active_virtual_environment_unless_another_is_named(
    alone: World,
) -> None:
    venv = alone.path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin/python"
    python.write_text(f'#!/bin/sh\ntouch {venv}/used\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    active = World(alone.path, {**alone.more, "VIRTUAL_ENV": str(venv)})
    for words, used in ((PYTHON, False), ((), True)):
        looked = active.inv("queues", "-A", "alone", *words)
        assert (looked.code, (venv / "used").exists()) == (0, used), looked.out + looked.err
    nowhere = alone.inv("queues", "-A", "alone")
    assert (nowhere.code, "name it with --python, or activate" in nowhere.err) == (5, True)


def test_other_hosts_are_asked_over_ssh(alone: World) -> None:
    for verb in ("diagnose", "adopt"):
        away = alone.inv(verb, "nowhere.invalid", "web.invalid", "-A", "alone")
        assert (away.code, "nowhere.invalid" in away.err) == (4, True), away.out + away.err
