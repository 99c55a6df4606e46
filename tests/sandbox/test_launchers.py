"""Workers that are started in unusual ways, and others beside them: who is the service, and who
only has its name.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.redis_server import RedisServer
from lab.world import celery_command
from runbooks.broker.nodes.control import observe_nodes
from tests.brokers import until
from tests.sandbox.conftest import Done, World, make_world

HOST = socket.gethostname()
INVENTORY = """\
all:
  hosts:
    HOST:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: tiny
      celery_broker_url: URL
      celery_expected_tasks: [tiny.one]
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/tiny.env"
      celery_env: {SIZE: "2"}
      celery_service_manager: commands
      celery_commands:
        {start: "./ctl start {worker}", stop: "./ctl stop {worker}", status: "./ctl status {worker}"}
      celery_workers:
        - {name: celery, queues: [a]}
        - {name: shell, queues: [b]}
        - {name: manage, queues: [c]}
        - {name: module, queues: [d]}
      celery_unit_directory: "{{ inventory_dir }}/etc"
      celery_cron_directory: "{{ inventory_dir }}/etc"
      celery_logrotate_directory: "{{ inventory_dir }}/etc"
"""
APP = """\
import os
from celery import Celery
app = Celery("tiny", broker=os.environ.get("ELSEWHERE") or os.environ["BROKER"])
app.conf.update(worker_pool="solo", broker_connection_retry_on_startup=True, task_default_queue="a")
@app.task(name="tiny.one")
def one(): pass
"""
CTL = """\
#!/bin/bash
# ctl ACTION NAME: each worker has a session of its own
case $1 in
start) set -a; . ./tiny.env; setsid "./launch-$2" </dev/null >>"$2.log" 2>&1 & echo $! >"$2.pid" ;;
stop) pid=$(cat "$2.pid") || exit 0; kill -- "-$pid"; while kill -0 -- "-$pid"; do sleep 0.05; done; rm "$2.pid" ;;
status) pid=$(cat "$2.pid") && kill -0 "$pid" || exit 3; echo "$pid" ;;
esac 2>/dev/null
"""
LAUNCHED = (
    f"from tiny import app; app.worker_main(['worker', '-n', '%s@{HOST}', '-Q', '%s', '-l',"
    " 'INFO'])\n"
)
WORKER = "PYTHON -m celery -A tiny worker -l INFO"
FILES = {
    "tiny.py": APP,
    "ctl": CTL,
    "manage.py": LAUNCHED % ("manage", "c"),
    "serve.py": LAUNCHED % ("module", "d"),
    "launch-celery": f"#!/bin/sh\nexec {WORKER} -Q a\n",  # without -n: it is celery@HOST
    "launch-shell": f"#!/bin/sh\n{WORKER} -Q b -n shell@{HOST}\necho ended\n",
    "launch-manage": "#!/bin/sh\nexec PYTHON manage.py celery worker\n",
    "launch-module": "#!/bin/sh\nexec PYTHON -m serve\n",
}
NAMES = ("celery", "shell", "manage", "module")


@dataclass(frozen=True, slots=True)
class Place:
    """A host whose workers are each launched in another way."""

    world: World
    url: str

    @property
    def path(self) -> Path:
        return self.world.path

    def ctl(self, action: str, name: str, **environment: str) -> None:
        subprocess.run(
            [f"./ctl {action} {name}"],
            cwd=self.path,
            shell=True,
            check=True,
            env=os.environ | environment,
        )

    def pid(self, name: str) -> int:
        return int((self.path / f"{name}.pid").read_text())

    def await_ready(self, *logs: str) -> None:
        until(lambda: all(" ready." in (self.path / f"{name}.log").read_text() for name in logs))

    def inv(self, *arguments: str) -> Done:
        return self.world.inv(*arguments)

    def findings(self) -> dict[str, dict[str, object]]:
        return {
            f"{one['code']} {one['subject']}": one
            for one in self.inv("diagnose", "--json").json["findings"]
        }

    @contextmanager
    def beside(
        self, name: str, *arguments: str, cwd: Path | None = None, url: str = ""
    ) -> Iterator[int]:
        """Celery started manually, beside the services; ends with the block. Its pid."""
        log, command = (
            self.path / f"{name}.log",
            celery_command("-A tiny", *arguments),
        )
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=cwd or self.path, env=os.environ | {"BROKER": url or self.url}, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file,
            )  # fmt: skip
        try:
            until(
                lambda: any(
                    word in log.read_text() for word in (" ready.", "Starting...", "Cannot connect")
                )
            )
            yield process.pid
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def place(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path, url = tmp_path_factory.mktemp("launched"), redis_server.url(9)
    world = make_world(path)
    for name, text in FILES.items():
        (path / name).write_text(text.replace("PYTHON", sys.executable))
        (path / name).chmod(0o755)
    (path / "inventory.yaml").write_text(INVENTORY.replace("HOST", HOST).replace("URL", url))
    (path / "tiny.env").write_text(f"BROKER={url}\nSIZE=1\n")
    (path / "etc").mkdir()
    made = Place(world, url)
    try:
        for name in NAMES:
            made.ctl("start", name)
        made.await_ready(*NAMES)
        installed = made.inv("remediate", "--yes")  # files, and SIZE, for which each is restarted
        assert installed.code == 0, installed.out + installed.err
        yield made
    finally:
        for name in NAMES:
            made.ctl("stop", name)


def test_workers_are_known_however_they_are_launched_and_one_that_is_not_is_left_running(
    place: Place,
) -> None:
    assert place.findings() == {}
    before = {name: place.pid(name) for name in NAMES}
    done = place.inv("restart-workers", "--yes")
    assert done.code == 0, done.out + done.err
    assert all(place.pid(name) != before[name] for name in NAMES)
    os.kill(
        place.pid("module"), signal.SIGSTOP
    )  # its command says nothing: only its answer showed what it is
    try:
        planned = place.inv("restart-workers", "--dry-run")
    finally:
        os.kill(place.pid("module"), signal.SIGCONT)
    assert planned.code == 2, planned.out + planned.err
    assert (
        f"module on {HOST} is not changed: the status command of module names pid"
        in planned.out + planned.err
    )
    assert "restart module" not in planned.out


def test_an_answer_of_another_process_proves_nothing_of_the_service(
    place: Place, tmp_path: Path
) -> None:
    """It runs from another directory, as another installation does, so it shows by its answer
    alone.
    """
    (tmp_path / "tiny.py").write_text(APP)
    place.ctl("stop", "manage")
    with place.beside(
        "foreign", "worker", "-l", "INFO", "-n", f"manage@{HOST}", "-Q", "c", cwd=tmp_path
    ) as pid:
        assert f"service.runs_elsewhere manage on {HOST}" in place.findings()
        place.ctl("start", "manage", ELSEWHERE=place.url.replace("/9", "/10"))
        before = place.pid("manage")
        done = place.inv("restart-workers", "--yes")
        assert done.code == 2, done.out + done.err
        expected = (
            f"manage runs, but pid {pid} answers in its name, and is not one of its processes"
        )
        assert f"manage on {HOST} is not changed: {expected}" in done.out + done.err
        assert place.pid("manage") == before
    place.ctl("stop", "manage")
    place.ctl("start", "manage")
    place.await_ready("manage")


def test_beside_a_beat_that_someone_started_manually_none_is_started(place: Place) -> None:
    text = (place.path / "inventory.yaml").read_text()
    (place.path / "with_beat.yaml").write_text(f"{text}      celery_beat: true\n")
    with place.beside(
        "foreign-beat", "beat", "-l", "INFO", "-s", str(place.path / "schedule")
    ) as pid:
        done = place.inv("remediate", "--yes", "--inventory", "with_beat.yaml")
        assert done.code == 2, done.out + done.err
        assert f"process {pid} runs it: end that" in done.out + done.err
        assert f"end it on {HOST}: sudo kill -TERM {pid}" in done.out
    assert not (place.path / "beat.pid").exists()


def test_undo_leaves_a_worker_alone_whose_name_three_answer_to(place: Place) -> None:
    """As workers do that are started without -n."""
    (place.path / "tiny.env").write_text(f"BROKER={place.url}\nSIZE=1\n")
    done = place.inv("remediate", "--yes")
    assert done.code == 0, done.out + done.err
    before = {name: place.pid(name) for name in NAMES}

    def cancelled() -> int:
        return sum(
            (place.path / f"{name}.log").read_text().count("Canceling")
            for name in ("celery", "second", "third")
        )

    with ExitStack() as stack:
        for name, queue in (("second", "e"), ("third", "f")):
            stack.enter_context(place.beside(name, "worker", "-l", "INFO", "-Q", queue))
        so_far = cancelled()
        undone = place.inv("undo", "last", "--yes")
        assert undone.code == 2, undone.out + undone.err
        assert f"3 workers answer as celery@{HOST}" in undone.out
        assert observe_nodes(place.url)[f"celery@{HOST}"].queues == {"a", "e", "f"}
        assert cancelled() == so_far
    assert "SIZE=1" in (place.path / "tiny.env").read_text()
    after = {name: place.pid(name) for name in NAMES}
    assert {name for name in NAMES if after[name] == before[name]} == {"celery"}
