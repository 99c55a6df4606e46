"""Workers and beats that others have started, on real processes: the right fault comes first, and
nothing is harmed.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from lab.redis_server import RedisServer
from lab.world import celery_command
from tests.brokers import until
from tests.sandbox.conftest import Done, World, make_world
from tests.transcripts import require_shown

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
      celery_service_manager: commands
      celery_commands:
        {start: "./ctl start {worker}", stop: "./ctl stop {worker}", status: "./ctl status {worker}"}
      celery_workers:
        - {name: one, queues: [a], concurrency: 2}
      celery_beat: true
      celery_beat_schedule: "{{ inventory_dir }}/schedule"
      celery_thresholds: {beat_silence: 10m}
      celery_unit_directory: "{{ inventory_dir }}/etc"
      celery_cron: [{schedule: "0 2 * * *", user: root, command: "true"}]
      celery_cron_directory: "{{ inventory_dir }}/etc/cron.d"
      celery_logs: ["{{ inventory_dir }}/one.log"]
      celery_logrotate_directory: "{{ inventory_dir }}/etc/logrotate.d"
"""
APP = """\
import os
from celery import Celery
app = Celery("tiny", broker=os.environ["BROKER"])
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue="a")
app.conf.beat_schedule = {"nightly": {"task": "tiny.one", "schedule": 86400.0, "options": {"queue": "a"}}}
@app.task(name="tiny.one")
def one(): pass
"""
CTL = """\
#!/bin/bash
# ctl ACTION NAME: each service has a session of its own
case $1 in
start)
    case $2 in
    beat) words="beat -s PATH/schedule" ;;
    *) words="worker -n $2@HOST -Q a -c 2" ;;
    esac
    set -a; . ./tiny.env
    setsid PYTHON -m celery -A tiny $words -l INFO </dev/null >>"$2.log" 2>&1 & echo $! >"$2.pid" ;;
stop) pid=$(cat "$2.pid") || exit 0; kill "$pid"; while kill -0 "$pid"; do sleep 0.05; done; rm "$2.pid" ;;
status) pid=$(cat "$2.pid") && kill -0 "$pid" || exit 3; echo "$pid" ;;
esac 2>/dev/null
"""
NAMES = ("one", "beat")
CELERY = ("-m", "celery", "-A", "tiny")
RUN = """\
import sys
from tiny import app
app.worker_main(sys.argv[1:])
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A host with a worker and beat that a start script runs."""

    world: World
    url: str

    @property
    def path(self) -> Path:
        return self.world.path

    @property
    def address(self) -> str:
        return self.url.removeprefix("redis://").partition("/")[0]

    def ctl(self, action: str, name: str) -> None:
        subprocess.run([f"./ctl {action} {name}"], cwd=self.path, shell=True, check=True)

    def pid(self, name: str) -> int:
        return int((self.path / f"{name}.pid").read_text())

    def log(self, name: str) -> str:
        path = self.path / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def inv(self, *arguments: str) -> Done:
        return self.world.inv(*arguments)

    def findings(self) -> list[dict[str, Any]]:
        done = self.inv("diagnose", "--json")
        assert done.out, done.err
        return [one for one in done.json["findings"] if one["severity"] != "info"]

    def first(self) -> dict[str, Any]:
        return next(iter(self.findings()), {})

    @contextmanager
    def beside(
        self, name: str, *arguments: str, url: str = "", command: tuple[str, ...] = CELERY
    ) -> Iterator[int]:
        """Celery started manually, beside the services; ends with the block. Its pid."""
        log = self.path / f"{name}.log"
        log.unlink(missing_ok=True)
        command = (sys.executable, *command, *arguments, "-l", "INFO")
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=self.path, env=os.environ | {"BROKER": url or self.url}, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        try:
            until(lambda: any(word in log.read_text() for word in (" ready.", "beat: Starting...")))
            yield process.pid
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait()

    def unharmed(self, *pids: int) -> None:
        """A plain remediation ends none of these, starts nothing, and restarts none of the
        services.
        """
        before = {name: self.pid(name) for name in NAMES}
        done = self.inv("remediate", "--yes")
        assert done.code in (0, 1, 2), (
            done.out + done.err
        )  # 1: there is something wrong, and nothing to change
        assert {name: self.pid(name) for name in NAMES} == before
        for pid in (*before.values(), *pids):
            os.kill(pid, 0)


@pytest.fixture(scope="module")
def place(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    path, url = tmp_path_factory.mktemp("seen"), redis_server.url(11)
    world = make_world(path)
    for name, text in {"tiny.py": APP, "ctl": CTL, "inventory.yaml": INVENTORY}.items():
        text = text.replace("PYTHON", sys.executable).replace("HOST", HOST).replace("URL", url)
        (path / name).write_text(text.replace("PATH", str(path)))
        (path / name).chmod(0o755)
    (path / "tiny.env").write_text(f"BROKER={url}\n")
    for folder in ("cron.d", "logrotate.d"):
        (path / "etc" / folder).mkdir(parents=True)
    made = Place(world, url)
    try:
        for name in NAMES:
            made.ctl("start", name)
        until(lambda: " ready." in made.log("one") and "Starting..." in made.log("beat"))
        installed = made.inv("remediate", "--yes")
        assert installed.code == 0, installed.out + installed.err
        yield made
    finally:
        for name in NAMES:
            made.ctl("stop", name)


def test_what_is_well_has_no_finding_and_no_plan(place: Place) -> None:
    assert place.findings() == []
    done = place.inv("remediate", "--dry-run")
    assert (done.code, "Nothing to change." in done.out) == (0, True), done.out


@contextmanager
def without_inventory(place: Place) -> Iterator[None]:
    away = (place.path / "inventory.yaml").rename(place.path / "away.yaml")
    try:
        yield
    finally:
        away.rename(place.path / "inventory.yaml")


def test_without_an_inventory_one_command_finds_what_is_wrong_and_nothing_where_all_is_well(
    place: Place,
) -> None:
    def diagnosed() -> tuple[list[dict[str, Any]], str]:
        done = place.inv("diagnose", "-A", "tiny", "--json")
        assert done.code in (0, 1), done.out + done.err
        document = done.json
        assert document["about"]["inventory"] == "no inventory"
        assert document["about"]["hosts"] == {"looked_at": 1, "of": 1}
        return [one for one in document["findings"] if one["severity"] != "info"], " ".join(
            document["messages"]
        )

    with without_inventory(place):
        findings, unseen = diagnosed()
        assert findings == []
        assert f"the environment file of {HOST}: celery_env_file" in unseen
        with place.beside("b2", "beat", "-s", "s2") as two:
            first = diagnosed()[0][0]
            assert first["code"] == "beat.several"
            either = (place.pid("beat"), two)
            ends = [
                "end all but one of them",
                *(f"to end pid {pid}, on {HOST}: sudo kill -TERM {pid}" for pid in either),
            ]
            assert first["evidence"][-3:] == ends, "nothing says which of them is meant to run"
            with Celery("producer", broker=place.url, set_as_current=False) as app:
                for _ in range(3):
                    app.send_task("tiny.one", queue="mials")
            printed = place.inv("diagnose", "-A", "tiny").out
            for mine, in_readme in {
                HOST: "vm",
                "tiny": "shop",
                str(two): "22156",
                place.address: "127.0.0.1:47455",
            }.items():
                printed = printed.replace(mine, in_readme)
            require_shown("../README.md", "inv diagnose -A shop", printed)
            assert "inventory's" not in printed
        first = diagnosed()[0][0]
        with redis.Redis.from_url(place.url) as client:
            client.delete("mials", "_kombu.binding.mials")
        assert (first["code"], first["subject"]) == ("queue.no_consumer", "mials")
        assert first["summary"] == "3 messages wait in mials and no node consumes it"


def test_the_inventory_that_is_made_of_what_runs_has_no_finding_and_no_plan(place: Place) -> None:
    done = place.inv("adopt", "-A", "tiny", "--json")
    assert f"-{HOST}: celery_service_manager: commands" in done.json["difference"]
    assert done.code == 1
    with without_inventory(place):
        adopted = place.inv("adopt")
    assert (adopted.code, "Nothing is wrong." in adopted.err) == (0, True), (
        adopted.out + adopted.err
    )
    for line in (
        f"celery_directory: {place.path}  # ",
        "celery_service_manager: none",
        "- {name: one, queues: [a], concurrency: 2}  # pid ",
        f"celery_broker_url: {place.url}",
        f"celery_beat_schedule: {place.path}/schedule",
        "# celery_env_file: /etc/proj.env",
    ):
        assert line in adopted.out
    assert "celery_cron" not in adopted.out, "files of this tool's own are not read for it"
    assert re.search(r"celery_python: \S+  # the Python of pid ", adopted.out), adopted.out
    active = place.path / "active/bin/python"
    active.parent.mkdir(parents=True)
    active.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    active.chmod(0o755)
    with without_inventory(place), place.world.variables(VIRTUAL_ENV=str(active.parents[1])):
        chosen = place.inv("adopt").out
        named = place.inv("adopt", "--python", sys.executable).out
    assert f"celery_python: {active}  # the active virtual environment" in chosen, chosen
    assert f"celery_python: {sys.executable}  # --python" in named, named
    (place.path / "adopted.yaml").write_text(adopted.out)
    looked = place.inv("diagnose", "--json", "--inventory", "adopted.yaml")
    assert (looked.code, looked.json["findings"]) == (0, [])
    planned = place.inv("remediate", "--dry-run", "--inventory", "adopted.yaml")
    assert (planned.code, "Nothing to change." in planned.out) == (0, True), planned.out


def test_of_two_applications_on_a_host_the_one_that_is_named_is_checked(place: Place) -> None:
    (place.path / "other.py").write_text(APP.replace("tiny", "other"))
    with (
        without_inventory(place),
        place.beside(
            "o", "worker", "-n", f"other@{HOST}", "-Q", "z", url=place.url.removesuffix("/11") + "/12",
            command=("-m", "celery", "-A", "other"),
        ),
    ):  # fmt: skip
        undecided = place.inv("adopt")
        assert (undecided.code, "runs workers of other, tiny" in undecided.err) == (5, True)
        document = place.inv("diagnose", "-A", "tiny", "--json").json
        assert document["about"]["workers"] == {"looked_at": 1, "of": 1}
        (entry,) = place.inv("schedule", "-A", "tiny", "--json").json["schedule"]
        assert (entry["entry"], entry["queue"]) == ("nightly", "a")
        assert [one for one in document["findings"] if one["severity"] != "info"] == []
    about = place.inv("diagnose", "-A", "tiny", "--json").json["about"]
    assert about["inventory"] == str(place.path / "inventory.yaml"), "one that has it is used"


def test_four_beats_on_one_host_are_counted_with_what_ends_each(place: Place) -> None:
    with (
        place.beside("b2", "beat", "-s", "s2") as two,
        place.beside("b3", "beat", "-s", "s3") as three,
        place.beside("w", "worker", "-B", "-s", "s4", "-Q", "z", "-n", f"other@{HOST}") as main,
    ):
        finding = place.first()
        assert finding["code"] == "beat.several"
        assert finding["summary"] == "4 beats run, so each entry of the schedule is sent 4 times"
        assert f"the -B of pid {main} on {HOST}" in str(finding["evidence"])
        assert f"to end pid {two}, on {HOST}: sudo kill -TERM {two}" in finding["evidence"]
        assert "the schedule has nightly (every 1 d)" in finding["evidence"]
        place.unharmed(two, three, main)


def test_the_beat_that_a_killed_worker_leaves_is_a_beat_too_many(place: Place) -> None:
    with place.beside(
        "w", "worker", "-B", "-s", "s4", "-Q", "z", "-n", f"other@{HOST}", "-P", "solo"
    ) as main:
        (beat,) = map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split())
        os.kill(main, signal.SIGKILL)
        try:
            until(
                lambda: (
                    not Path(f"/proc/{main}/exe").exists()
                    or "Z" in Path(f"/proc/{main}/stat").read_text()
                )
            )
            (finding,) = place.findings()
            assert finding["code"] == "beat.several"
            assert (
                f"pid {beat} on {HOST}, left of a worker with -B that has ended"
                in finding["evidence"]
            )
            assert f"to end pid {beat}, on {HOST}: sudo kill -TERM {beat}" in finding["evidence"]
            place.unharmed(beat)
        finally:
            os.kill(beat, signal.SIGTERM)
            until(lambda: not Path(f"/proc/{beat}").exists())


def test_a_start_script_that_was_run_twice_has_made_twins(place: Place) -> None:
    with place.beside("again", "worker", "-n", f"one@{HOST}", "-Q", "a", "-c", "2") as twin:
        findings = place.findings()
        assert [one["code"] for one in findings] == ["worker.twins"]
        assert f"to end pid {twin}, on {HOST}: sudo kill -TERM {twin}" in findings[0]["evidence"]
        place.unharmed(twin)
        os.kill(twin, signal.SIGSTOP)  # as a worker of an earlier start that hangs
        findings = place.findings()
        assert [one["code"] for one in findings] == ["worker.stopped"]
        assert f"sudo kill -CONT {twin}" in str(findings[0]["evidence"])
        place.unharmed(twin)


def test_workers_without_names_are_reported_by_their_one_name(place: Place) -> None:
    with (
        place.beside("x", "worker", "-Q", "a") as one,
        place.beside("y", "worker", "-Q", "a") as two,
    ):
        finding = place.first()
        assert (finding["code"], finding["subject"]) == ("worker.twins", f"celery@{HOST}")
        assert all(f"seen: pid {pid} on {HOST}" in str(finding["evidence"]) for pid in (one, two))
        place.unharmed(one, two)


def test_a_service_that_is_stopped_is_continued_and_not_restarted(place: Place) -> None:
    pid = place.pid("one")
    os.kill(pid, signal.SIGSTOP)
    try:
        finding = place.first()
        assert finding["code"] == "worker.stopped"
        assert f"continue it, on {HOST}: sudo kill -CONT {pid}" in finding["evidence"]
        place.unharmed()
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not place.findings())


@pytest.mark.parametrize("how", ["environment", "-b"])
def test_a_worker_at_another_db_is_not_a_twin_and_is_reported_with_both_sides(
    place: Place, how: str
) -> None:
    other = place.url.removesuffix("/11") + "/12"
    given = ("-b", other) if how == "-b" else ()
    words = (*given, "worker", "-n", f"one@{HOST}", "-Q", "a", "-c", "1")
    with place.beside("away", *words, url="" if given else other) as pid:
        findings = place.findings()
        assert [(one["code"], one["subject"]) for one in findings] == [
            ("worker.other_broker", f"process {pid} on {HOST}")
        ]
        assert "/12, but the inventory's broker is 127.0.0.1:" in findings[0]["summary"]
        place.unharmed(pid)


@pytest.mark.parametrize(
    "pool", ["solo", pytest.param("threads", marks=pytest.mark.thorough), "gevent"]
)
def test_under_each_pool_a_worker_that_is_well_is_not_a_fault(place: Place, pool: str) -> None:
    text = (place.path / "ctl").read_text()
    place.ctl("stop", "one")
    (place.path / "one.log").unlink()
    (place.path / "ctl").write_text(text.replace("-Q a -c 2", f"-Q a -c 2 -P {pool}"))
    try:
        place.ctl("start", "one")
        until(lambda: " ready." in place.log("one"))
        assert place.findings() == []
        place.unharmed()
    finally:
        place.ctl("stop", "one")
        (place.path / "one.log").unlink()
        (place.path / "ctl").write_text(text)
        place.ctl("start", "one")
        until(lambda: " ready." in place.log("one"))


@pytest.mark.parametrize("pool", ["prefork", pytest.param("solo", marks=pytest.mark.thorough)])
def test_a_worker_whose_command_does_not_name_celery_is_shown_with_its_process(
    place: Place, pool: str
) -> None:
    (place.path / "run.py").write_text(RUN)
    name = f"own@{HOST}"
    with place.beside(
        "own", "worker", "-n", name, "-Q", "a", "-c", "2", "-P", pool, command=("run.py",)
    ) as pid:
        lines = place.inv("workers", "--json").json["workers"]
        (line,) = [one for one in lines if one["worker"] == name]
        assert (line["state"], line["pid"], line["host"]) == ("answers", pid, HOST)
        assert line["processes"] == (3 if pool == "prefork" else 1)
        assert line["memory_bytes"] > 0
        (finding,) = [one for one in place.findings() if one["code"] == "worker.unknown"]
        assert f"seen: pid {pid} on {HOST}" in str(finding["evidence"])
        place.unharmed(pid)


def test_a_pool_that_has_grown_is_larger_than_the_inventory_allows(place: Place) -> None:
    subprocess.run(
        celery_command("-b", place.url, "control", "-d", f"one@{HOST}", "pool_grow", "2"),
        check=True,
    )
    until(
        lambda: (
            len(
                Path(f"/proc/{place.pid('one')}/task/{place.pid('one')}/children")
                .read_text()
                .split()
            )
            == 4
        )
    )
    finding = place.first()
    assert finding["code"] == "worker.too_many_processes"
    assert finding["summary"] == "one has 4 pool processes, but the inventory allows 2"
    assert (
        finding["evidence"][-1]
        == "it was started with -c 2, so its pool has grown since (pool_grow)"
    )
    place.unharmed()
    done = place.inv("restart-workers", "--yes")
    assert done.code == 0, done.out + done.err
    assert place.findings() == []


def test_a_worker_that_has_the_hosts_own_name_is_not_restarted_for_the_inventorys(
    place: Place,
) -> None:
    text = (place.path / "inventory.yaml").read_text()
    (place.path / "renamed.yaml").write_text(text.replace(f"    {HOST}:\n", "    web9:\n"))
    done = place.inv("diagnose", "--json", "--inventory", "renamed.yaml")
    finding = done.json["findings"][0]
    assert (finding["code"], finding["subject"]) == ("worker.named_otherwise", "one@web9")
    assert f"name the host {HOST} in the inventory" in finding["evidence"][-1]
    before = place.pid("one")
    place.inv("remediate", "--yes", "--inventory", "renamed.yaml")
    assert place.pid("one") == before
    assert place.inv("remediate", "--yes").code == 0


def test_files_that_someone_wrote_at_our_places_are_replaced_only_where_that_is_asked_for(
    place: Place,
) -> None:
    paths = {kind: place.path / f"etc/{kind}.d/celery-tiny" for kind in ("cron", "logrotate")}
    for path in paths.values():
        path.write_text("# the night shift's\n")
        path.chmod(0o600)
        os.utime(path, (1_750_000_000, 1_750_000_000))

    def there() -> dict[Path, tuple[bytes, int, float]]:
        return {
            path: (path.read_bytes(), path.stat().st_mode, path.stat().st_mtime)
            for path in paths.values()
        }

    before = there()
    findings = place.findings()
    assert {(one["code"], one["subject"]) for one in findings} == {
        (f"{kind}.not_ours", f"{path} on {HOST}") for kind, path in paths.items()
    }
    for verb in ("remediate", "install-cron"):
        plain = place.inv(verb, "--yes")
        assert plain.code == 0, plain.out + plain.err
        assert there() == before
    done = place.inv("remediate", "--take-over", "--yes")
    assert done.code == 0, done.out + done.err
    assert all(
        b"Managed by celery-runbooks for tiny" in path.read_bytes() for path in paths.values()
    )
    assert place.findings() == []
    undone = place.inv("undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert there() == before
    assert place.inv("remediate", "--take-over", "--yes").code == 0


def test_a_worker_at_another_server_is_reported_with_its_port(place: Place, tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    try:
        with place.beside(
            "away", "worker", "-n", f"one@{HOST}", "-Q", "a", url=server.url(11)
        ) as pid:
            (finding,) = place.findings()
            assert (finding["code"], finding["subject"]) == (
                "worker.other_broker",
                f"process {pid} on {HOST}",
            )
            place.unharmed(pid)
    finally:
        server.stop()
