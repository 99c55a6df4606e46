"""Results that another backend than Redis keeps, or none: read through the application, heard of,
or refused.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from lab.redis_server import RedisServer
from tests.brokers import until
from tests.sandbox.conftest import Done, World, make_world
from tests.sandbox.test_bad_input import refused

INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: tiny
      celery_broker_url: URL
      celery_result_backend: "BACKEND"
      celery_canary: {CANARY}
      celery_expected_tasks: [tiny.sync]
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/tiny.env"
      celery_env: {SIZE: "SIZED"}
      celery_service_manager: commands
      celery_commands:
        {start: "./ctl start {worker}", stop: "./ctl stop {worker}", status: "./ctl status {worker}"}
      celery_workers: [{name: w, queues: [q]}]
      celery_unit_directory: "{{ inventory_dir }}/etc"
      celery_cron_directory: "{{ inventory_dir }}/etc"
      celery_logrotate_directory: "{{ inventory_dir }}/etc"
"""
APP = """\
import os, time
from celery import Celery
import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
django.setup()
app = Celery("tiny", broker=os.environ["BROKER"])
app.conf.update(
    worker_pool="solo", broker_connection_retry_on_startup=True, task_default_queue="q",
    result_backend=os.environ["BACKEND"],
)

@app.task(bind=True)
def sync(self, status="ok", steps=0):
    for n in range(1, steps + 1):
        self.update_state(state="PROGRESS", meta={"current": n, "total": steps})
        time.sleep(0.5)
    return {"status": status, "token": "s3cret-value", "text": "synced 3 printers"}

@app.task(ignore_result=True)
def quiet(): return "done"

@app.task(ignore_result=True)
def big(): return {"items": list(range(5000))}

@app.task
def fail(): raise ValueError("no printer")
"""
BACKEND_LINE = APP.splitlines().index('    result_backend=os.environ["BACKEND"],') + 1
SETTINGS = """\
import os
INSTALLED_APPS = ["django_celery_results"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.path.join(os.path.dirname(__file__), "db")}}
USE_TZ = True
"""
CTL = """\
#!/bin/bash
case $1 in
start) set -a; . ./tiny.env
    setsid .venv/bin/python -m celery -A tiny worker -l INFO -n w@here -Q q </dev/null >>w.log 2>&1 &
    echo $! >w.pid ;;
stop) pid=$(cat w.pid) || exit 0; kill "$pid"; while kill -0 "$pid"; do sleep 0.05; done; rm w.pid ;;
status) pid=$(cat w.pid) && kill -0 "$pid" || exit 3; echo "$pid" ;;
esac 2>/dev/null
"""
CANARY = "task: tiny.sync, queue: q, timeout: 20s"


@dataclass(frozen=True, slots=True)
class Place:
    """A host with one worker, whose application keeps its results where a test says."""

    world: World
    url: str

    @property
    def path(self) -> Path:
        return self.world.path

    def ctl(self, action: str) -> None:
        subprocess.run([f"./ctl {action}"], cwd=self.path, shell=True, check=True)

    def keeps(self, backend: str, named: str | None = None, canary: str = CANARY) -> None:
        """Run the worker with this result backend; the inventory names another one, or the same."""
        self.ctl("stop")
        self.inventory(named if named is not None else backend, canary)
        (self.path / "w.log").write_text("")
        (self.path / "tiny.env").write_text(f"BROKER={self.url}\nBACKEND={backend}\nSIZE=1\n")
        self.ctl("start")
        until(lambda: " ready." in (self.path / "w.log").read_text())

    def inventory(self, backend: str, canary: str = CANARY, size: str = "1") -> None:
        text = INVENTORY.replace("URL", self.url).replace("CANARY", canary).replace("SIZED", size)
        lines = text.replace("BACKEND", backend).splitlines()
        unsaid = () if backend else ("celery_result_backend:",)
        kept = [line for line in lines if not line.strip().startswith(unsaid)]
        (self.path / "inventory.yaml").write_text("\n".join(kept) + "\n")

    def run_task(self, *arguments: str) -> Done:
        return self.world.inv("run-task", *arguments)

    def remediate(self, backend: str, canary: str = CANARY) -> Done:
        """Remediate a host whose environment file differs, so that there is something to prove."""
        self.inventory(backend, canary, size="2")
        done = self.world.inv("remediate", "--yes")
        (self.path / "tiny.env").write_text(
            (self.path / "tiny.env").read_text().replace("SIZE=2", "SIZE=1")
        )
        return done


@pytest.fixture(scope="module")
def place(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    world = make_world(tmp_path_factory.mktemp("place"))
    place = Place(world, redis_server.url(6))
    files = {"tiny.py": APP, "site_settings.py": SETTINGS, "ctl": CTL, "tiny.env": ""}
    for name, text in files.items():
        (world.path / name).write_text(dedent(text))
    (world.path / "ctl").chmod(0o755)
    for folder in ("etc", "results"):
        (world.path / folder).mkdir()
    migrate = (
        "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'site_settings'; django.setup();"
        " from django.core.management import call_command; call_command('migrate', verbosity=0)"
    )
    subprocess.run([".venv/bin/python", "-c", migrate], cwd=world.path, check=True)
    yield place
    place.ctl("stop")


@pytest.fixture(params=[pytest.param("file", marks=pytest.mark.thorough), "sqlite", "django-db"])
def backend(request: pytest.FixtureRequest, place: Place) -> str:
    urls = {
        "file": f"file://{place.path}/results",
        "sqlite": f"db+sqlite:///{place.path}/results.sqlite",
    }
    return urls.get(request.param, "django-db")


# --- read through the application


def test_a_result_that_the_application_keeps_elsewhere_is_read_through_it(
    place: Place, backend: str
) -> None:
    place.keeps(backend)
    done = place.run_task("tiny.sync", "--kwargs", '{"steps": 4}')
    assert done.code == 0, done.out + done.err
    assert (
        f"Results are read through the application on here: it keeps them in {backend} ("
        in done.out
    )
    assert f"{place.path}/tiny.py, line {BACKEND_LINE})" in done.out
    assert "PROGRESS" in done.out
    assert "    status: ok\n" in done.out
    failed = place.run_task("tiny.fail", "--json").json["task"]
    assert (failed["state"], failed["result"]) == ("FAILURE", "ValueError: no printer")
    if backend != "django-db":  # django-celery-results 2.6.0 keeps none
        assert 'raise ValueError("no printer")' in failed["traceback"]
    status = place.run_task("--status", failed["id"], "--json")
    assert (status.code, status.json["task"]["state"]) == (2, "FAILURE")


def test_a_remediation_ends_with_a_canary_that_is_read_through_the_application(
    place: Place, backend: str
) -> None:
    place.keeps(backend)
    done = place.remediate(backend)
    assert done.code == 0, done.out + done.err
    assert "SUCCESS: {'status': 'ok'" in done.out
    assert place.world.inv("runs", "--json").json["runs"][-1]["state"] == "ok"


def test_another_redis_than_the_applications_is_named_and_the_applications_is_read(
    place: Place,
) -> None:
    place.keeps(place.url.replace("/6", "/7"), named=place.url.replace("/6", "/9"))
    done = place.run_task("tiny.sync")
    assert done.code == 0, done.out + done.err
    assert (
        "Results are read through the application on here: it keeps them in redis://127.0.0.1:"
        in done.out
    )
    assert "/7, and celery_result_backend names redis://127.0.0.1:" in done.out
    failed = place.run_task("tiny.fail", "--json").json["task"]["id"]
    for named, known in (("/9", False), ("/7", True)):
        place.inventory(place.url.replace("/6", named))
        assert ("FAILURE" in place.run_task("--status", failed, "--json").out) is known
        assert ("results: they have no name" in place.world.inv("tasks").out) is known
        retried = place.world.inv("retry", "--dry-run")
        assert ("failure skipped" in retried.out + retried.err) is known, retried.out
    assert place.remediate(place.url.replace("/6", "/9")).code == 0


# --- heard


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        ("rpc://", "gives a result only to the process that sent the task"),
        ("cache+memory://", "keeps results in the memory of the process that creates them"),
    ],
)
def test_a_result_that_no_one_else_can_read_is_heard_of_and_that_is_said(
    place: Place, kept: str, why: str
) -> None:
    place.keeps(kept)
    done = place.run_task("tiny.sync")
    assert done.code == 0, done.out + done.err
    assert why in done.out
    assert "following its workers' events" in done.out
    listed = place.world.inv("tasks").out
    assert "unknown: failures: the inventory names no Redis as celery_result_backend" in listed
    assert place.remediate(kept).code == 0


def test_a_task_that_ignores_its_result_proves_by_its_nodes_word_that_it_ran(place: Place) -> None:
    place.keeps(place.url)
    done = place.run_task("tiny.quiet", "--result", '"done"')
    assert done.code == 0, done.out + done.err
    assert "The task keeps no result: following its workers' events" in done.out
    proved = place.remediate(place.url, "task: tiny.quiet, queue: q, timeout: 20s, result: done")
    assert proved.code == 0, proved.out + proved.err
    assert "SUCCESS: 'done'" in proved.out
    cut = place.run_task("tiny.big", "--result", '{"items": []}')
    assert (cut.code, "cannot compare its result with the expected one" in cut.out) == (1, True)


# --- what is expected


def test_a_task_that_returns_something_else_than_was_expected_has_failed(place: Place) -> None:
    place.keeps(place.url)
    assert (
        place.run_task(
            "tiny.sync", "--result", '{"status": "ok", "text": "synced \\\\d+ printers"}'
        ).code
        == 0
    )
    args = (
        "tiny.sync",
        "--kwargs",
        '{"status": "error"}',
        "--result",
        '{"status": "ok", "token": "other", "n": 1}',
    )
    done = place.run_task(*args)
    assert done.code == 2
    assert (
        "its result is not as expected: status: expected 'ok', got 'error'; token: expected"
        " '********', got '********'; n: expected 1, but it is missing" in done.out
    )
    assert "s3cret-value" not in done.out + done.err + place.world.inv("show", "last").out
    assert "status: expected 'ok', got 'error'" in place.world.inv("show", "last").out
    canary = (
        "task: tiny.sync, queue: q, timeout: 20s, kwargs: {status: error}, result: {status: ok}"
    )
    proved = place.remediate(place.url, canary)
    assert proved.code == 2
    assert "status: expected 'ok', got 'error'" in proved.out


def test_what_is_expected_is_json_and_its_texts_are_patterns(place: Place) -> None:
    place.inventory(place.url)
    refused(
        place.run_task("tiny.sync", "--result", "ok"),
        5,
        "--result 'ok': not JSON",
        '{"status": "ok"}',
    )
    refused(
        place.run_task("tiny.sync", "--result", '{"status": "("}'),
        5,
        "--result: ",
        "not a regular expression",
    )
    refused(place.run_task("tiny.sync", "--result", "1", "--async"), 5, "--async", "--result")
    place.inventory(place.url, 'task: tiny.sync, queue: q, result: "("')
    refused(
        place.run_task("tiny.sync"),
        5,
        "inventory.yaml:9: celery_canary.result: not a regular expression",
    )


# --- refused


def test_a_backend_that_cannot_be_loaded_is_refused_with_its_file_and_line_before_anything_is_sent(
    place: Place,
) -> None:
    place.keeps(place.url)
    env = place.path / "tiny.env"
    env.write_text(
        env.read_text().replace(f"BACKEND={place.url}", "BACKEND=mystery://u:pa55word@x")
    )
    place.inventory("mystery://u:pa55word@x")
    for arguments in ((), ("--async",), ("--dry-run",)):
        done = place.run_task("tiny.sync", *arguments)
        refused(
            done,
            2,
            "nothing was sent: the application on here cannot load its result backend",
        )
        assert f"{place.path}/tiny.py, line {BACKEND_LINE})" in done.err
        assert "pa55word" not in done.err + done.out
    refused(place.run_task("--status", "no-such-id"), 2, "cannot load its result backend")
    assert " received" not in (place.path / "w.log").read_text()


def test_a_backend_that_cannot_be_read_is_refused_before_anything_is_sent_and_the_remediation_ends(
    place: Place,
) -> None:
    place.keeps("django-db")
    (place.path / "db").rename(place.path / "db.away")
    try:
        done = place.run_task("tiny.sync")
        refused(
            done,
            2,
            "nothing was sent: the application on here cannot read its results",
            "no such table",
        )
        proved = place.remediate("django-db")
        assert proved.code == 2, proved.out + proved.err
        assert "not sent: the application on here cannot read its results" in proved.out
        assert "RECAP" in proved.out
        assert place.world.inv("runs", "--json").json["runs"][-1]["state"] == "failed"
        assert " received" not in (place.path / "w.log").read_text()
    finally:
        (place.path / "db").unlink()
        (place.path / "db.away").rename(place.path / "db")
