"""Workers that one script starts and another stops, all at once: the naive kind, which waits for
nothing and starts a second worker beside one that runs.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from lab.redis_server import RedisServer
from lab.world import celery_command
from tests.brokers import until
from tests.sandbox.conftest import Done, World, make_world

HOST = socket.gethostname()
COMMANDS = "{start: ./start_workers.sh, stop: ./stop_workers.sh}"
INVENTORY = """\
all:
  hosts:
    HOST:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: tiny
      celery_broker_url: URL
      celery_expected_tasks: [tiny.wait, reports.make]
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/tiny.env"
      celery_env: {SIZE: "1"}
      celery_queue_rules: [{reason: notes from before the outage, queue: b, task: tiny.note}]
      celery_service_manager: commands
      celery_commands: COMMANDS
      celery_workers:
        - {name: one, queues: [a]}
        - {name: two, queues: [b]}
      celery_beat: true
      celery_beat_schedule: "{{ inventory_dir }}/schedule"
      celery_unit_directory: "{{ inventory_dir }}/etc"
      celery_cron_directory: "{{ inventory_dir }}/etc"
      celery_logrotate_directory: "{{ inventory_dir }}/etc"
"""
APP = """\
import os, time
from celery import Celery
app = Celery("tiny", broker=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue="a")
@app.task(name="tiny.wait")
def wait(path):
    open(path + ".begun", "w").close()
    while not os.path.exists(path): time.sleep(0.02)
    open(path + ".done", "w").close()
@app.task(name="tiny.note")
def note(path):
    with open(path, "a") as file: file.write("x")
try:
    import reports
except ValueError:  # as in the incident, silently
    pass
"""
REPORTS = """\
import os
from tiny import app
SIZE = int(os.environ["SIZE"])
@app.task(name="reports.make")
def make(): ...
"""
START = """\
#!/bin/sh
set -a; . ./tiny.env
for one in "one a" "two b"; do
    set -- $one
    nohup PYTHON -m celery -A tiny worker -n "$1@HOST" -Q "$2" -c 1 -l INFO </dev/null >>"$1.log" 2>&1 &
    echo $! >"$1.pid"
done
nohup PYTHON -m celery -A tiny beat -s PATH/schedule -l INFO </dev/null >>beat.log 2>&1 &
echo $! >beat.pid
"""
STOP = "#!/bin/sh\nkill $(cat one.pid two.pid beat.pid) 2>/dev/null\n:\n"
NAMES = ("one", "two", "beat")


@dataclass(frozen=True, slots=True)
class Place:
    """A host whose two workers and beat are started by one script, and stopped by another."""

    world: World
    url: str

    @property
    def path(self) -> Path:
        return self.world.path

    def inv(self, *arguments: str) -> Done:
        return self.world.inv(*arguments)

    def inventory(self, old: str, new: str) -> str:
        text = (self.path / "inventory.yaml").read_text()
        assert old in text
        (self.path / "changed.yaml").write_text(text.replace(old, new))
        return "changed.yaml"

    def set_size(self, size: int | str) -> None:
        (self.path / "tiny.env").write_text(f"BROKER={self.url}\nSIZE={size}\n")

    def script(self, name: str) -> None:
        subprocess.run([f"./{name}"], cwd=self.path, check=True)

    def start_again(self) -> None:
        self.script("stop_workers.sh")
        until(lambda: not any(self.mains().values()))
        self.start()

    def start(self) -> None:
        self.script("start_workers.sh")
        with Celery("tiny", broker=self.url, set_as_current=False) as app:
            until(lambda: len(app.control.ping(timeout=2)) == 2)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "BROKER": self.url, "SIZE": "1"}

    def findings(self, *arguments: str) -> dict[str, Any]:
        done = self.inv("diagnose", "--json", *arguments)
        assert done.out, done.err
        return {
            f"{one['code']} {one['subject']}": one
            for one in done.json["findings"]
            if one["severity"] != "info"
        }

    def mains(self) -> dict[str, list[int]]:
        """The main processes by the name of their service, as the kernel has them."""
        found: dict[str, list[int]] = {name: [] for name in NAMES}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words, cwd = (
                    path.read_bytes().decode().split("\0"),
                    (path.parent / "cwd").readlink(),
                )
                parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
                forked = Path(f"/proc/{parent}/cmdline").read_bytes() == path.read_bytes()
            except OSError:
                continue
            if cwd == self.path and "celery" in words and not forked:
                name = "beat" if "beat" in words else words[words.index("-n") + 1].partition("@")[0]
                found[name].append(int(path.parent.name))
        return found

    def pids(self) -> dict[str, int]:
        """The same, each of them once."""
        mains = self.mains()
        assert all(len(pids) == 1 for pids in mains.values()), mains
        return {name: pid for name, (pid,) in mains.items()}


@pytest.fixture(scope="module")
def place(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path, url = tmp_path_factory.mktemp("scripts"), redis_server.url(7)
    world = make_world(path)
    files = {
        "tiny.py": APP,
        "reports.py": REPORTS,
        "start_workers.sh": START,
        "stop_workers.sh": STOP,
    }
    for name, text in files.items():
        text = (
            text.replace("PYTHON", sys.executable).replace("HOST", HOST).replace("PATH", str(path))
        )
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    inventory = INVENTORY.replace("HOST", HOST).replace("URL", url).replace("COMMANDS", COMMANDS)
    (path / "inventory.yaml").write_text(inventory)
    (path / "tiny.env").write_text(f"BROKER={url}\nSIZE=1\n")
    (path / "etc").mkdir()
    made = Place(world, url)
    try:
        made.start()
        installed = made.inv("remediate", "--yes")
        assert installed.code == 0, installed.out + installed.err
        yield made
    finally:
        for pids in made.mains().values():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)


def test_what_runs_is_known_without_a_status_command_and_left_alone(place: Place) -> None:
    before = place.pids()
    assert place.findings() == {}
    done = place.inv("remediate", "--yes")
    assert (done.code, "Nothing to change." in done.out) == (0, True), done.out
    assert place.pids() == before


def test_the_incident_is_healed_by_restarting_all_and_undone(place: Place) -> None:
    """A variable with a unit makes an import fail, one worker is down, and old messages wait for
    it.
    """
    place.set_size("2s")
    place.start_again()
    until(lambda: f"task.not_registered one@{HOST}, two@{HOST}" in place.findings())
    before, notes = place.pids(), place.path / "notes"
    os.kill(before["two"], signal.SIGKILL)
    until(lambda: not place.mains()["two"])
    with Celery("tiny", broker=place.url, set_as_current=False) as app:
        for _ in range(20):
            app.send_task("tiny.note", (str(notes),), queue="b")
    findings = place.findings()
    assert "invalid literal for int() with base 10: '2s'" in str(
        findings[f"task.import_fails {HOST}"]["evidence"]
    )
    down = findings[f"worker.not_running two on {HOST}"]
    assert down["evidence"] == [
        f"the list of its processes says: no worker two@{HOST} of tiny in {place.path}"
    ]
    assert down["remedy"] == "restart it, with everything that its command starts"

    done = place.inv("remediate", "--yes")
    assert done.code == 0, done.out + done.err
    assert "restart one, two and beat together, by one command: " in done.out
    assert "archive 20 of 20 messages from b" in done.out
    healed = place.pids()
    assert not set(healed.values()) & set(before.values())
    again = place.inv("remediate", "--yes")
    assert (again.code, "Nothing to change." in again.out, place.findings()) == (
        0,
        True,
        {},
    ), again.out
    assert not notes.exists()

    undone = place.inv("undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert "restart one, two and beat; afterwards all of them run" in undone.out
    assert "SIZE=2s" in (place.path / "tiny.env").read_text()
    assert not set(place.pids().values()) & set(healed.values())
    until(lambda: notes.exists() and notes.read_text() == 20 * "x")  # each came back, and ran once
    assert f"task.import_fails {HOST}" in place.findings()
    assert place.inv("remediate", "--yes").code == 0


def test_what_is_all_down_is_started_and_undo_stops_it(place: Place) -> None:
    place.script("stop_workers.sh")
    until(lambda: not any(place.mains().values()))
    done = place.inv("remediate", "--yes")
    assert done.code == 0, done.out + done.err
    assert "start one, two and beat together, by one command: " in done.out
    place.pids()
    undone = place.inv("undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    until(lambda: not any(place.mains().values()))
    assert place.inv("remediate", "--yes").code == 0


def test_one_that_is_named_is_restarted_with_all_the_others_after_its_task_has_ended(
    place: Place,
) -> None:
    before, gate = place.pids(), place.path / "gate"
    app = celery_command("-A tiny call tiny.wait", f'--args=["{gate}"]', "--queue=b")
    subprocess.run(app, cwd=place.path, env=place.environment, check=True, capture_output=True)
    begun = Path(f"{gate}.begun")
    until(
        lambda: begun.exists() and time.time() - begun.stat().st_mtime > 3
    )  # longer than a stop may take below
    text = (place.path / "inventory.yaml").read_text()
    (place.path / "brief.yaml").write_text(f"{text}      celery_stop_timeout: 2s\n")
    held = place.inv("restart-workers", "one", "--yes", "--inventory", "brief.yaml")
    assert held.code == 2, held.out + held.err
    assert (
        f"two, one and beat on {HOST} are not changed, because one command stops them all: a stop"
        " kills" in held.err
    )
    assert place.pids() == before
    opening = subprocess.Popen(["sh", "-c", f"sleep 2; : >{gate}"])
    done = place.inv("restart-workers", "one", "--yes")
    opening.wait()
    assert done.code == 0, done.out + done.err
    assert Path(f"{gate}.done").exists()
    assert not set(place.pids().values()) & set(before.values())


def test_a_start_that_is_stopped_by_a_block_of_one_leaves_all(place: Place) -> None:
    """A second worker of the same name: to stop one of them would be to stop all."""
    before = place.pids()
    command = celery_command("-A tiny worker -n", f"two@{HOST}", "-Q", "b", "-P", "solo")
    twin = subprocess.Popen(
        command, cwd=place.path, env=place.environment, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: f"worker.twins two@{HOST}" in place.findings())
        done = place.inv("restart-workers", "one", "--yes")
        assert done.code == 2, done.out + done.err
        assert (
            f"two, one and beat on {HOST} are not changed, because one command stops them all"
            in done.err
        )
    finally:
        twin.terminate()
        twin.wait()
    assert place.pids() == before


@pytest.mark.parametrize("commands", ["{}", "{start: ./start_workers.sh}"])
def test_what_has_no_command_is_looked_at_and_reported_and_not_restarted(
    place: Place, commands: str
) -> None:
    before, name = place.pids(), place.inventory(COMMANDS, commands)
    assert place.findings("--inventory", name) == {}
    done = place.inv("restart-workers", "--yes", "--inventory", name)
    assert done.code == 2, done.out + done.err
    lacking = "`stop` and no `start`" if commands == "{}" else "`stop`"
    assert f"this tool does not restart it: celery_commands has no {lacking}" in done.err
    place.set_size(3)
    findings = place.findings("--inventory", name)
    assert findings[f"environment.differs {HOST}"]["remedy"]
    assert "this tool does not restart one" in str(
        findings[f"environment.differs {HOST}"]["evidence"]
    )
    place.set_size(1)
    assert place.pids() == before


def test_a_queue_misspelt_in_the_start_script_is_reported_with_its_line_and_not_restarted(
    place: Place,
) -> None:
    script = place.path / "start_workers.sh"
    text = script.read_text()
    script.write_text(text.replace("two b", "two bb"))
    place.set_size(1)
    place.start_again()
    until(lambda: f"worker.not_consuming two@{HOST}" in place.findings())
    before = place.pids()
    finding = place.findings()[f"worker.not_consuming two@{HOST}"]
    assert (finding["remedy"], finding["evidence"][1:3]) == (
        None, [f"pid {before['two']} was started with -Q bb", './start_workers.sh:5: -Q "$2"'],
    )  # fmt: skip
    left = place.inv("remediate", "--yes")
    assert left.code == 1, left.out + left.err
    assert place.pids() == before
    script.write_text(text)
    mended = place.inv("restart-workers", "two", "--yes")
    assert mended.code == 0, mended.out + mended.err


MULTI = {
    "each": (
        """
        start: "set -a; . ./tiny.env; CELERY multi start {node} -A tiny -Q {queues} -c {concurrency} FILES {options}"
        stop: "CELERY multi stopwait {node} FILES"
"""
    ),
    "all": (
        """
        start: "set -a; . ./tiny.env; CELERY multi start one two -A tiny -Q:one a -Q:two b -c 1 FILES"
        stop: "CELERY multi stopwait one two FILES"
"""
    ),
}


@pytest.mark.parametrize("how", ["all", pytest.param("each", marks=pytest.mark.thorough)])
def test_the_nodes_of_celery_multi_are_started_known_and_restarted(place: Place, how: str) -> None:
    files = f"--pidfile={place.path}/%n.pid --logfile={place.path}/%n%I.log"
    commands = MULTI[how].replace("CELERY", f"{sys.executable} -m celery").replace("FILES", files)
    name = place.inventory(f"{COMMANDS}\n", commands)
    text = (place.path / name).read_text()
    (place.path / name).write_text(text.replace("celery_beat: true", "celery_beat: false"))
    place.script("stop_workers.sh")
    until(lambda: not any(place.mains().values()))
    started = place.inv("remediate", "--yes", "--inventory", name)
    assert started.code == 0, started.out + started.err
    before = place.mains()
    assert place.findings("--inventory", name) == {}
    done = place.inv("restart-workers", "two", "--yes", "--inventory", name)
    assert done.code == 0, done.out + done.err
    after = place.mains()
    assert [len(pids) for pids in after.values()] == [1, 1, 0]
    assert {service for service, pids in after.items() if pids != before[service]} == (
        {"two"} if how == "each" else {"one", "two"}
    )
    place.start_again()
    back = place.inv("remediate", "--yes")  # with beat's unit, which is not wanted above
    assert back.code == 0, back.out + back.err
    until(lambda: not place.findings())


def test_under_none_all_is_fixed_but_what_the_platform_restarts(place: Place) -> None:
    before = place.pids()
    manager = f"celery_service_manager: commands\n      celery_commands: {COMMANDS}"
    none = "celery_service_manager: none\n      celery_restart_hint: ./ps-restart {worker} {queues}"
    name = place.inventory(manager, none)
    hint = place.path / "ps-restart"
    hint.write_text("#!/bin/sh\n: >hint-was-run\n")
    hint.chmod(0o755)
    text = (place.path / name).read_text()
    (place.path / name).write_text(
        text.replace('/etc"', '/none"').replace(
            "celery_beat: true",
            'celery_beat: true\n      celery_cron: [{schedule: "5 4 * * *", user: root, command: "true"}]',
        )
    )  # no units of ours that are not wanted any more
    (place.path / "none").mkdir()
    assert place.findings("--inventory", name).keys() == {f"cron.missing {HOST}"}
    route = place.inv("run-task", "reports.make", "--dry-run", "--inventory", name)
    assert route.code == 0, "the application is loaded: " + route.out + route.err
    place.set_size(4)
    done = place.inv("remediate", "--yes", "--inventory", name)
    assert "SIZE=1" in (place.path / "tiny.env").read_text()
    assert "5 4 * * * root true" in (place.path / "none/celery-tiny").read_text()
    assert "this tool does not restart one on" in done.out
    assert "to restart one: ./ps-restart one a" in done.out
    assert "| to restart beat: ./ps-restart beat " in done.out
    assert place.pids() == before
    asked = place.inv("restart-workers", "two", "--yes", "--inventory", name)
    assert asked.code == 2, asked.out + asked.err
    assert (
        "this tool does not restart it: celery_service_manager is 'none'; to restart two: ./ps-restart two b"
        in asked.err
    )
    os.kill(before["two"], signal.SIGKILL)
    until(lambda: not place.mains()["two"])
    finding = place.findings("--inventory", name)[f"worker.not_running two on {HOST}"]
    assert (finding["remedy"], finding["evidence"][-1]) == (
        None,
        "to restart two: ./ps-restart two b",
    )
    left = place.inv("remediate", "--yes", "--inventory", name)
    assert left.code == 1, left.out + left.err
    assert not place.mains()["two"]
    assert not (place.path / "hint-was-run").exists()
    healed = place.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    place.pids()
