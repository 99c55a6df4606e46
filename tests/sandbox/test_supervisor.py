"""Workers under real supervisords: the incident in the sandbox, and two hosts restarted one after
the other.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import celery
import psutil
import pytest

from lab import supervisord
from lab.faults.grounds import Sandbox
from lab.matrix import tried_alone
from lab.redis_server import RedisServer
from tests.brokers import until
from tests.sandbox.conftest import Done, World, make_world
from tests.sandbox.test_interrupted import end_at, runs
from tests.sandbox.test_remediate import CHECK, conserved, files, task_of
from tests.sandbox.test_sandbox import of
from tests.transcripts import require_shown

BESIDES = ("state", "supervisord")


def shows(done: Done, command: str) -> None:
    """It printed what the documentation shows of it."""
    require_shown("supervisor.md", command, done.out + done.err)


def status(conf: Path) -> str:
    ctl = Path(sys.executable).with_name("supervisorctl")
    return subprocess.run(
        [ctl, "-c", conf, "status"], capture_output=True, text=True, check=False
    ).stdout


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose path leaves room for that of a socket."""
    world = make_world(tmp_path_factory.mktemp("s"))
    yield world
    world.inv("sandbox", "--down")


def test_the_incident_is_diagnosed_healed_after_a_kill_undone_and_leaves_no_trace(
    short: World,
) -> None:
    world = short
    up = world.inv("sandbox", "--manager", "supervisor")
    assert up.code == 0, up.err
    put_in, before = world.queue(), files(world, besides=BESIDES)
    found = {one["code"]: one for one in world.inv("diagnose", "--json").json["findings"]}
    assert found.keys() >= {"task.import_fails", "worker.not_running", "unit.missing"}
    assert found["worker.not_running"]["subject"] == "worker_low on sandbox"
    assert found["worker.not_running"]["evidence"][0] == "supervisord says: no such process"

    shows(world.inv("remediate", "--dry-run"), "inv remediate --dry-run")
    assert end_at(world, 14, signal.SIGKILL) == -signal.SIGKILL
    healed = world.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    until(lambda: status(world.root / "supervisord.conf").count("RUNNING") == 4)
    again = world.inv("remediate", "--yes")
    assert (again.code, "Nothing to change." in again.out) == (0, True)
    assert "No findings." in again.out, "its probe was not run"
    assert "Probes were not run; to run them: inv verify" in again.out
    impatient = tried_alone("program.stop_loses_tasks", Sandbox(world))
    assert impatient.well, impatient
    logs = world.inv("tail-logs", "worker_low", "--grep", "ready")
    assert "worker_low@sandbox ready" in logs.out

    for journal in reversed(runs(world)):
        undone = world.inv("undo", journal.parent.name, "--yes")
        assert undone.code == 0, undone.out + undone.err
    assert files(world, besides=BESIDES) == before
    assert sum(task_of(raw) == CHECK for raw in conserved(world, put_in)) == 300
    assert "worker_low" not in status(world.root / "supervisord.conf")

    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err
    assert of(world) == []
    assert not world.root.exists()


APP = """\
import os, pathlib, time
from celery import Celery, signals
app = Celery("tiny", broker=os.environ["BROKER"])
app.conf.update(worker_pool="solo", task_default_queue="q1", worker_enable_remote_control=True)
@app.task(name="tiny.sleep")
def sleep(seconds):
    pathlib.Path("busy").touch()
    time.sleep(seconds)
@signals.worker_init.connect
def refuse(**_):
    if pathlib.Path("refuse").exists():
        print("no license for this host", flush=True)
        os._exit(3)
"""
INVENTORY = """\
all:
  vars:
    runbooks_state_directory: "{{ inventory_dir }}/state"
    home: "{{ inventory_dir }}/{{ inventory_hostname }}"
    celery_app: tiny
    celery_broker_url: URL
    celery_expected_tasks: [tiny.sleep]
    celery_directory: "{{ home }}"
    celery_python: "{{ inventory_dir }}/.venv/bin/python"
    celery_user: "{{ lookup('pipe', 'id -un') }}"
    celery_env_file: "{{ home }}/tiny.env"
    celery_service_manager: supervisor
    celery_supervisor:
      conf: "{{ home }}/supervisord.conf"
      ctl: "{{ inventory_dir }}/.venv/bin/supervisorctl"
      log_directory: "{{ home }}/app/logs"
    celery_unit_directory: "{{ home }}/root/etc/supervisor/conf.d"
    celery_stop_timeout: 30s
    celery_start_timeout: 60s
  hosts:
    one: {ansible_connection: local, celery_workers: [{name: a, queues: [q1], options: [--pool=solo]}]}
    two: {ansible_connection: local, celery_workers: [{name: b, queues: [q2], options: [--pool=solo]}]}
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two hosts, each with a supervisord and one worker, on this machine."""

    world: World
    url: str
    daemons: "dict[str, subprocess.Popen[bytes]]"

    def home(self, host: str) -> Path:
        return self.world.path / host

    def inv(self, *arguments: str) -> Done:
        return self.world.inv(*arguments)

    def start(self, host: str) -> None:
        self.daemons[host] = supervisord.start(self.home(host))
        until(lambda: (self.home(host) / "supervisor.sock").exists())

    def states(self) -> str:
        return "".join(status(self.home(host) / "supervisord.conf") for host in ("one", "two"))

    def pids(self) -> dict[str, int]:
        words = [line.split() for line in self.states().splitlines()]
        return {line[0][-1]: int(line[3].strip(",")) for line in words if line[1] == "RUNNING"}


@pytest.fixture(scope="module")
def pair(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path, url = tmp_path_factory.mktemp("pair"), redis_server.url(9)
    made = Pair(make_world(path), url, {})
    (path / "inventory.yaml").write_text(INVENTORY.replace("URL", url))
    try:
        for host in ("one", "two"):
            home = made.home(host)
            (home / "root/etc/supervisor/conf.d").mkdir(parents=True)
            (home / "app").mkdir()
            (home / "tiny.py").write_text(APP)
            (home / "tiny.env").write_text(f"BROKER={url}\n")
            made.start(host)
        yield made
    finally:
        left = [
            one
            for process in made.daemons.values()
            for one in supervisord.session_of(process.pid, path)
        ]
        for process in made.daemons.values():
            process.terminate()
        psutil.wait_procs(left, timeout=20)
        for process in made.daemons.values():
            process.wait(40)


def test_a_batch_that_does_not_come_up_ends_a_rolling_restart_and_a_rerun_goes_on(
    pair: Pair,
) -> None:
    healed = pair.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    assert pair.inv("verify").code == 0
    until(lambda: pair.pids().keys() == {"a", "b"})
    before = pair.pids()

    (pair.home("one") / "refuse").touch()
    failed = pair.inv("restart-workers", "--yes")
    assert failed.code == 2, failed.out + failed.err
    shows(failed, "inv restart-workers --yes")
    assert pair.pids() == {"b": before["b"]}, "the second host was not touched"
    until(lambda: "FATAL" in pair.states())
    shows(pair.inv("diagnose"), "inv diagnose")

    (pair.home("one") / "refuse").unlink()
    healed = pair.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    assert "start a: it is not running; its manager says: FATAL" in healed.out


def test_a_restart_that_is_killed_while_supervisord_waits_for_a_task_is_made_by_a_rerun(
    pair: Pair,
) -> None:
    assert pair.inv("remediate", "--yes").code == 0
    app = celery.Celery("tiny", broker=pair.url, set_as_current=False)
    app.send_task("tiny.sleep", (12,), queue="q1")
    app.close()
    until((pair.home("one") / "busy").exists)
    process = subprocess.Popen(
        pair.world.command("restart-workers", "--yes", "--kill-running"), cwd=pair.world.path,
        env=pair.world.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: "STOPPING" in pair.states())
    killed = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in killed:  # and so is what it has sent to the host
        one.kill()
    process.wait()
    healed = pair.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    assert "start a: it is not running" in healed.out
    until(lambda: pair.pids().keys() == {"a", "b"})
    assert pair.inv("verify").code == 0


THEIRS = """\
[program:old]
command=sh -c '. ./tiny.env; export BROKER; PYTHON -m celery -A tiny worker -n a@one -Q q1 --pool=solo -l INFO'
directory=HOME
autorestart=true
stopasgroup=true
environment=REGION="eu"
[program:other]
command=sleep 600
startsecs=0
[program:spare]
command=PYTHON -m celery -A tiny worker -n a@one -Q q1 --pool=solo
directory=HOME
environment=BROKER="none"
startsecs=0
[group:shop]
programs=old,other,spare
"""


def test_a_program_of_someone_elses_is_taken_over_and_undone(pair: Pair) -> None:
    assert pair.inv("remediate", "--yes").code == 0
    home, conf = pair.home("one"), pair.home("one") / "supervisord.conf"
    theirs = home / "root/etc/supervisor/conf.d/shop.conf"
    ctl = [str(Path(sys.executable).with_name("supervisorctl")), "-c", str(conf)]
    subprocess.run([*ctl, "stop", "celery-worker-a"], check=True)
    theirs.write_text(THEIRS.replace("PYTHON", sys.executable).replace("HOME", str(home)))
    subprocess.run([*ctl, "update", "shop"], check=True)
    subprocess.run([*ctl, "stop", "shop:spare"], check=True)
    until(lambda: status(conf).count("RUNNING") == 2)
    until(
        lambda: any(
            "a@one ready" in log.read_text() for log in (home / "app/logs").glob("old-stderr*")
        )
    )
    before = status(conf), theirs.read_text()
    (other,) = [line.split()[3] for line in before[0].splitlines() if "shop:other" in line]

    left = pair.inv("remediate", "--yes")
    assert left.code == 2, left.out
    assert "remediate --take-over --dry-run" in left.out
    until(lambda: status(conf).count("RUNNING") == 2)
    kept = pair.inv("remediate", "--take-over", "--yes")
    assert kept.code == 2, kept.out
    assert (
        "environment= in its conf file sets REGION, and the environment file does not"
        in kept.out + kept.err
    )

    assert f"changed: [one] set autostart=false of program spare in {theirs}" in kept.out
    assert pair.inv("undo", "last", "--yes").code == 0
    assert theirs.read_text() == before[1]

    with (home / "tiny.env").open("a") as file:
        file.write("REGION=eu\n")
    planned = pair.inv("remediate", "--take-over", "--dry-run")
    assert f"set autostart=false of program old and program spare in {theirs}" in planned.out
    assert theirs.read_text() == before[1]
    taken = pair.inv("remediate", "--take-over", "--yes")
    assert taken.code == 0, taken.out + taken.err
    assert "stop program old, which does the work of a" in taken.out
    until(lambda: "celery-worker-a" in status(conf) and pair.pids().keys() >= {"a", "b"})
    assert pair.inv("verify").code == 0
    assert other in status(conf), "the rest of its group was not touched"
    again = pair.inv("remediate", "--take-over", "--yes")
    assert (again.code, "Nothing to change." in again.out) == (0, True)
    pair.daemons["one"].terminate()
    pair.daemons["one"].wait(60)
    pair.start("one")
    until(lambda: "shop:other                       RUNNING" in status(conf))
    for program in ("old  ", "spare"):
        assert f"shop:{program}                       STOPPED   Not started" in status(conf), (
            "it stays away"
        )

    run = pair.world.path / "state/runs"
    of_taking = max(
        path for path in run.iterdir() if "shop.conf" in (path / "journal.jsonl").read_text()
    )
    undone = pair.inv("undo", of_taking.name, "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert theirs.read_text() == before[1]
    until(lambda: "shop:old                         RUNNING" in status(conf))
    assert "celery-worker-a                  STOPPED" in status(conf)

    theirs.unlink()
    subprocess.run([*ctl, "update"], check=True)
    assert pair.inv("remediate", "--yes").code == 0


def test_a_supervisord_that_does_not_run_is_reported_with_what_starts_it(pair: Pair) -> None:
    assert pair.inv("remediate", "--yes").code == 0
    pair.daemons["two"].terminate()
    pair.daemons["two"].wait(60)
    conf = pair.home("one") / "supervisord.conf"
    ctl = [str(Path(sys.executable).with_name("supervisorctl")), "-c", str(conf)]
    subprocess.run([*ctl, "stop", "celery-worker-a"], check=True)
    own = pair.home("two") / "root/etc/supervisor/conf.d/celery-worker-b.conf"
    right = own.read_text()
    own.write_text(f"{right}; a note\n")
    found = pair.inv("diagnose", "--json")
    assert found.code == 1
    by_code = {one["code"]: one for one in found.json["findings"] if one["subject"] != "q1"}
    away = by_code["service.manager_away"]
    assert away["subject"] == "two"
    assert away["summary"].startswith("supervisord does not run: nothing answers at unix://")
    assert f"supervisord -c {pair.home('two')}/supervisord.conf" in str(away["evidence"])
    assert by_code.keys() == {
        "service.manager_away",
        "worker.not_running",
        "queue.no_consumer",
        "unit.differs",
    }
    assert by_code["unit.differs"]["subject"] == "two", "its files are judged"
    assert by_code["queue.no_consumer"]["caused_by"] == [
        {"code": "service.manager_away", "subject": "two"}
    ]

    healed = pair.inv("remediate", "--yes")  # the other host
    assert healed.code == 2, healed.out + healed.err
    assert "two is not changed: supervisord does not run" in healed.err
    assert own.read_text() == f"{right}; a note\n"
    own.write_text(right)
    until(lambda: pair.pids().keys() == {"a"})
    pair.start("two")
    until(lambda: pair.pids().keys() == {"a", "b"})
    until(lambda: pair.inv("verify").code == 0)


def test_a_supervisords_fleet_is_known_without_an_inventory_also_where_it_does_not_run(
    pair: Pair, tmp_path: Path
) -> None:
    assert pair.inv("remediate", "--yes").code == 0
    until(lambda: pair.pids().keys() == {"a", "b"})

    def inv(*words: str) -> Done:
        """In the application's folder, where no inventory is."""
        command = [*pair.world.command(*words), "--state-dir", str(tmp_path)]
        environment = pair.world.environment | {"BROKER": pair.url}
        done = subprocess.run(
            command, cwd=pair.home("one"), env=environment, capture_output=True, text=True
        )
        return Done(done.returncode, done.stdout, done.stderr)

    (pair.home("one") / "inventory.yaml").touch()  # as `> inventory.yaml` does before anything runs
    adopted = inv("adopt")
    assert adopted.code == 0, adopted.out + adopted.err
    conf = pair.home("one") / "supervisord.conf"
    for line in (
        "celery_service_manager: supervisor",
        f"conf: {conf}",
        (
            "- {name: a, node: a@one, service: celery-worker-a, queues: [q1], concurrency: 1,"
            ' options: ["--pool=solo"]}'
        ),
        "celery_nodes: [b@two]",
    ):
        assert line in adopted.out, adopted.out
    (pair.home("one") / "inventory.yaml").write_text(adopted.out)
    looked = inv("diagnose", "--json")
    assert (looked.code, looked.json["findings"]) == (0, [])
    planned = inv("remediate", "--dry-run")
    assert (planned.code, "Nothing to change." in planned.out) == (0, True), planned.out
    (pair.home("one") / "inventory.yaml").unlink()

    ctl = [str(Path(sys.executable).with_name("supervisorctl")), "-c", str(conf)]
    subprocess.run([*ctl, "stop", "celery-worker-a"], check=True)
    findings = inv("diagnose", "-A", "tiny", "--python", sys.executable, "--json").json["findings"]
    found = {one["code"]: one for one in findings}
    assert found["worker.not_running"]["evidence"][0].startswith("supervisord says: STOPPED")
    assert pair.inv("remediate", "--yes").code == 0
    until(lambda: pair.pids().keys() == {"a", "b"})
