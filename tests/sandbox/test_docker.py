"""The incident in containers, under a real Docker engine and Compose: one sandbox for all, and as root only."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.docker import PROJECT, DockerError, Engine, require
from runbooks.core.errors import RunbookError
from runbooks.core.settings import DockerSettings
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import Answer
from runbooks.hosts.services.docker import Docker
from tests.brokers import until
from tests.sandbox.conftest import World, make_world
from tests.sandbox.test_interrupted import end_at, runs
from tests.sandbox.test_remediate import CHECK, faults, task_of
from tests.unit.fleets import make_host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an engine of its own needs root")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The incident in containers. It goes down after its engine was killed, and leaves no trace all the same."""
    world = make_world(tmp_path_factory.mktemp("docker"))
    up = world.inv("sandbox", "--manager", "docker")
    assert up.code == 0, up.err
    yield world
    engine = engine_of(world)
    os.kill(int((engine.folder / "pid").read_text()), signal.SIGKILL)
    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err
    assert traces(engine) == []


def engine_of(world: World) -> Engine:
    return Engine(world.root / "docker")


def traces(engine: Engine) -> list[str]:
    """All that names the sandbox's engine: its folder, mounts, control groups, link and processes."""
    found = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{engine.name}")]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(engine.folder) in line]
    found += [str(path) for path in (Path("/sys/class/net", engine.bridge), engine.folder) if path.exists()]
    told = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return found + [line for line in told if str(engine.folder) in line]


def containers(world: World, service: str, project: str = PROJECT) -> list[str]:
    """The ids of a service's containers that run."""
    labels = (f"project={project}", f"service={service}")
    filters = [word for label in labels for word in ("--filter", f"label=com.docker.compose.{label}")]
    return engine_of(world).docker("ps", "-q", "--no-trunc", *filters).stdout.decode().split()


def environment_of(world: World, container: str) -> dict[str, str]:
    (told,) = json.loads(engine_of(world).docker("inspect", container).stdout)
    return dict(pair.split("=", 1) for pair in told["Config"]["Env"])


def test_the_incident_is_healed_though_it_is_killed_in_the_middle_and_taken_back(world: World) -> None:
    env_file, codes = world.env_file.read_bytes(), faults(world)
    assert {"task.import_fails", "worker.not_running", "task.not_registered"} <= codes
    planned = world.inv("remediate", "--dry-run").out
    assert "recreate worker_high: it runs since before" in planned
    assert "start worker_low: it is not running" in planned
    before = {name: containers(world, name) for name in ("worker_high", "worker_low")}
    assert before["worker_low"] == []

    assert end_at(world, 11, signal.SIGKILL) == -9  # while workers are being recreated
    healed = world.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    again = world.inv("remediate", "--yes", "--json")
    assert (again.code, again.json["plan"]) == (0, [])
    for name in ("worker_high", "worker_low", "worker_daemon", "beat"):
        (container,) = containers(world, name)
        assert environment_of(world, container)["GLPI_TIMEOUT_S"] == "30", name
        assert container not in before.get(name, [])
    logs = world.inv("tail-logs", "--grep", "ready|Scheduler|beat: Starting")
    assert {"worker_high", "beat"} <= {line.split()[3] for line in logs.out.splitlines() if " sandbox " in line}

    _scaled_and_restarted(world)
    for journal in reversed(runs(world)):
        undone = world.inv("undo", journal.parent.name, "--yes")
        assert undone.code == 0, undone.out + undone.err
    assert world.env_file.read_bytes() == env_file
    (high,) = containers(world, "worker_high")
    assert environment_of(world, high)["GLPI_TIMEOUT_S"] == "30s"
    assert containers(world, "worker_low") == []
    assert sum(task_of(raw) == CHECK for raw in world.queue()) == 300


def _scaled_and_restarted(world: World) -> None:
    """Two containers of a service are one service, whose restart leaves both in place."""
    compose = world.root / "docker-compose.yml"
    engine_of(world).compose(compose, "up", "-d", "--no-deps", "--scale", "worker_low=2", "worker_low")
    both = sorted(containers(world, "worker_low"))
    restarted = world.inv("restart-workers", "worker_low", "--yes")
    assert restarted.code == 0, restarted.out + restarted.err
    assert sorted(containers(world, "worker_low")) == both
    assert faults(world) == set()
    nodes = [line.split()[0] for line in world.inv("workers").out.splitlines() if line.startswith("worker_low@")]
    assert sorted(node.partition("@")[2] for node in nodes) == [one[:12] for one in both]


@pytest.mark.parametrize(
    ("replacement", "code", "told"),
    [
        (
            ("project: printer_inventory", "project: printers"), 4,
            ["there is no container of the Compose project printers", "correct celery_docker.project"],
        ),
        (("docker/docker.sock", "docker/other.sock"), 4, ["Docker's engine does not answer", "systemctl start docker"]),
        (("name: worker_low", "name: worker_lwo"), 1, ["has no container of worker_lwo, but of beat, worker_daemon"]),
        (
            ("{{ inventory_dir }}/.venv/bin/python", "/opt/app/bin/python"), 1,
            ["celery_python is /opt/app/bin/python", "of the image celery-runbooks-sandbox:1, cannot run that"],
        ),
        (("ansible_connection: local", "ansible_connection: docker"), 5, ["celery_service_manager: docker"]),
    ],
)  # fmt: skip
def test_what_docker_cannot_answer_is_one_error_with_the_next_step(
    world: World, replacement: tuple[str, str], code: int, told: list[str]
) -> None:
    done = world.inv("diagnose", "--fresh", "-i", world.inventory(replacement))
    assert done.code == code, done.out + done.err
    text = " ".join((done.out + done.err).replace("|", " ").split())
    assert all(one in text for one in told), text


def test_a_user_who_may_not_use_the_socket_is_told_so(world: World) -> None:
    where = DockerSettings(project=PROJECT, socket=str(engine_of(world).socket))
    host = make_host(service_manager="docker", commands=None, docker=where)
    (question,) = Docker().ask(host, "shop", ["high"]).values()
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", question]
    done = subprocess.run(as_nobody, capture_output=True, text=True, check=False, cwd="/")
    with pytest.raises(RunbookError, match="this user may not use Docker's socket") as error:
        Docker().parse(host, "shop", {"high": Answer(done.returncode, b"", done.stderr)}, Clock(0.0, 0.0, 100))
    assert "ansible_become" in (error.value.advice or "")


def second_host(world: World) -> str:
    """A project beside the sandbox's, on a host of its own; returns the inventory of both."""
    app = world.root / "second"
    (app / "etc").mkdir(parents=True)
    env_file = app / "second.env"
    shutil.copy(world.env_file, env_file)
    compose = json.loads((world.root / "docker-compose.yml").read_text())
    low = compose["services"]["worker_low"]
    command = [word.replace("worker_low@", "worker_second@") for word in low["command"]]
    compose["services"] = {"worker_second": {**low, "command": command, "env_file": str(env_file)}}
    file = app / "docker-compose.yml"
    file.write_text(json.dumps(compose))
    engine = engine_of(world)
    engine.compose(file, "up", "-d", project="second")
    settings = (
        f"        second:\n          ansible_connection: local\n          celery_env_file: {env_file}\n"
        + "".join(f"          celery_{kind}_directory: {app}/etc\n" for kind in ("unit", "cron", "logrotate"))
        + "          celery_beat: false\n          celery_docker: {project: second, socket: "
        f"{engine.socket}}}\n          celery_workers: [{{name: worker_second, queues: [low_priority]}}]\n"
    )
    return world.inventory(
        ("celery_start_timeout: 60s", "celery_start_timeout: 30s"),
        ("\n      vars:\n        # The application", f"\n{settings}\n      vars:\n        # The application"),
    )


def test_where_the_first_batch_does_not_come_up_the_rest_is_left_alone(world: World) -> None:
    assert world.inv("remediate", "--yes").code == 0
    inventory = second_host(world)
    assert world.inv("remediate", "-i", inventory, "--yes").code == 0
    second, env_file = containers(world, "worker_second", "second"), world.env_file.read_bytes()
    compose = world.root / "docker-compose.yml"
    compose.write_text(compose.read_text().replace('"APP": "printer_inventory"', '"APP": "nosuch"'))
    text = (world.path / inventory).read_text().replace('GLPI_TIMEOUT_S: "30"', 'GLPI_TIMEOUT_S: "31"')
    (world.path / inventory).write_text(text)

    failed = world.inv("remediate", "-i", inventory, "--yes")
    assert failed.code == 2, failed.out
    assert "skipped: [second] recreate worker_second" in failed.out
    assert "changed: [second] recreate worker_second" not in failed.out
    assert containers(world, "worker_second", "second") == second
    assert world.env_file.read_bytes() == env_file, "the values of before are back where the start failed"
    until(lambda: "container.restarting" in faults(world), timeout_s=90)  # between two starts it runs for a moment


def test_without_root_nothing_is_put_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DockerError, match="needs root"):
        require()
