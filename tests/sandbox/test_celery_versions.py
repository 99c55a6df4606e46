"""Applications on older Pythons and Celerys, installed for real: diagnosed, restarted, and one task
run to its end.
"""

import glob
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.redis_server import RedisServer
from tests.brokers import until
from tests.sandbox.conftest import World, make_world

pytestmark = pytest.mark.thorough

HOST = socket.gethostname()
INSTALLED = [  # a Python, and what is installed into an environment of it
    ("3.6", "celery==4.4.7", "redis==3.5.3"),
    ("3.7", "celery[redis]==5.1.2", "importlib-metadata<5"),
    ("3.8", "celery[redis]==5.3.6"),
    ("3.9", "celery[redis]==5.2.7"),
    ("3.10", "celery[redis]==5.4.0", "kombu<5.5"),
    ("3.12", "celery[redis]==5.5.3"),
    ("3.12", "celery[redis]", "eventlet"),
    ("3.13", "celery[redis]==5.6.3"),
    ("3.13", "celery[redis]"),
    ("3.14", "celery[redis]"),
]
INVENTORY = """\
all:
  hosts:
    HOST:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: tiny
      celery_broker_url: URL
      celery_result_backend: URL
      celery_expected_tasks: [tiny.one]
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/old/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/tiny.env"
      celery_service_manager: commands
      celery_commands: {start: "./ctl start", stop: "./ctl stop", status: "./ctl status"}
      celery_workers: [{name: one, queues: [a]}]
"""
APP = """\
import os
from celery import Celery
app = Celery("tiny", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue="a")
@app.task(name="tiny.one")
def one(number): return number + 1
"""
CTL = f"""\
#!/bin/sh
case $1 in
start) set -a; . ./tiny.env; old/bin/python -m celery -A tiny worker -n one@{HOST} -Q a -c 1 -P POOL -l INFO \
    </dev/null >>one.log 2>&1 & echo $! >one.pid ;;
stop) kill "$(cat one.pid)" ;;
status) kill -0 "$(cat one.pid)" || exit 3; cat one.pid ;;
esac 2>/dev/null
"""


@pytest.fixture
def place(
    redis_server: RedisServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[World]:
    version, *packages = request.param
    found = glob.glob(f"{Path.home()}/.pyenv/versions/{version}.*/bin/python")
    if not found:
        pytest.skip(f"no Python {version} on this machine")
    world = make_world(tmp_path)
    subprocess.run([found[0], "-m", "venv", str(tmp_path / "old")], check=True)
    pip = [str(tmp_path / "old/bin/pip"), "--quiet", "install"]
    if version == "3.6":  # its own installs what asks for a newer Python
        subprocess.run([*pip, "--upgrade", "pip<22"], check=True, capture_output=True)
    subprocess.run([*pip, *packages], check=True, capture_output=True)
    url = redis_server.url(9)
    (tmp_path / "tiny.py").write_text(APP)
    (tmp_path / "ctl").write_text(
        CTL.replace("POOL", "eventlet" if "eventlet" in packages else "prefork")
    )
    (tmp_path / "ctl").chmod(0o755)
    (tmp_path / "tiny.env").write_text(f"BROKER={url}\n")
    (tmp_path / "one.log").touch()
    (tmp_path / "inventory.yaml").write_text(INVENTORY.replace("HOST", HOST).replace("URL", url))
    try:
        subprocess.run(["./ctl", "start"], cwd=tmp_path, check=True)
        until(lambda: " ready." in (tmp_path / "one.log").read_text())
        yield world
    finally:
        subprocess.run(["./ctl", "stop"], cwd=tmp_path, check=False)


@pytest.mark.parametrize("place", INSTALLED, ids=" ".join, indirect=True)
def test_an_application_on_an_older_python_and_celery_is_judged_restarted_and_asked(
    place: World,
) -> None:
    well = place.inv("diagnose", "--json")
    faults = [one for one in well.json["findings"] if one["severity"] != "info"]
    assert (well.code, faults) == (0, []), well.out
    before = (place.path / "one.pid").read_text()
    done = place.inv("restart-workers", "--yes")
    assert done.code == 0, done.out + done.err
    assert (place.path / "one.pid").read_text() != before
    ran = place.inv("run-task", "tiny.one", "--args", "[41]")
    assert (ran.code, "42" in ran.out) == (0, True), ran.out + ran.err
    os.kill(int((place.path / "one.pid").read_text()), 15)
    until(lambda: "worker.not_running" in place.inv("diagnose", "--json").out)
