"""The incident in containers, under a real Docker engine and Compose: one sandbox for all, and as
root only.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.docker import _IMAGE, PROJECT, SERVICES, DockerError, Engine, require
from lab.faults.grounds import Sandbox
from lab.matrix import tried_alone
from lab.sshd import SSHD, make_key, running_sshd
from runbooks.core.effects import ControlService
from runbooks.core.errors import RunbookError
from runbooks.core.settings import DockerSettings, Worker
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import Answer
from runbooks.hosts.services.docker import Docker
from tests.brokers import until
from tests.sandbox.conftest import Done, World, make_world
from tests.sandbox.test_census_findings import HOST
from tests.sandbox.test_interrupted import end_at, runs
from tests.sandbox.test_remediate import CHECK, faults, task_of
from tests.transcripts import require_shown
from tests.unit.fleets import make_host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an engine of its own needs root")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The incident in containers. It goes down after its engine was killed, and leaves no trace all
    the same.
    """
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
    found += [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(engine.folder) in line
    ]
    found += [
        str(path)
        for path in (Path("/sys/class/net", engine.bridge), engine.folder)
        if path.exists()
    ]
    mounts = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return found + [line for line in mounts if str(engine.folder) in line]


def containers(world: World, service: str, project: str = PROJECT) -> list[str]:
    """The ids of a service's containers that run."""
    labels = (f"project={project}", f"service={service}")
    filters = [
        word for label in labels for word in ("--filter", f"label=com.docker.compose.{label}")
    ]
    return engine_of(world).docker("ps", "-q", "--no-trunc", *filters).stdout.decode().split()


def environment_of(world: World, container: str) -> dict[str, str]:
    (inspected,) = json.loads(engine_of(world).docker("inspect", container).stdout)
    return dict(pair.split("=", 1) for pair in inspected["Config"]["Env"])


def test_the_incident_is_healed_though_it_is_killed_in_the_middle_and_undone(
    world: World,
) -> None:
    env_file, codes = world.env_file.read_bytes(), faults(world)
    compose = (world.root / "docker-compose.yml").read_bytes()
    assert {"task.import_fails", "worker.not_running", "task.not_registered"} <= codes
    planned = world.inv("remediate", "--dry-run").out
    assert "recreate worker_high: has been running since before" in planned
    assert "start worker_low: it is not running" in planned
    require_shown("docker.md", "sudo ./inv remediate --dry-run", planned)
    before = {name: containers(world, name) for name in ("worker_high", "worker_low")}
    assert before["worker_low"] == []

    assert end_at(world, 11, signal.SIGKILL) == -9  # while workers are being recreated
    healed = world.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    require_shown("docker.md", "sudo ./inv remediate --yes", healed.out)
    again = world.inv("remediate", "--yes", "--json")
    assert (again.code, again.json["plan"]) == (0, [])
    for name in ("worker_high", "worker_low", "worker_daemon", "beat"):
        (container,) = containers(world, name)
        assert environment_of(world, container)["GLPI_TIMEOUT_S"] == "30", name
        assert container not in before.get(name, [])
    logs = world.inv("tail-logs", "--grep", "ready|Scheduler|beat: Starting")
    assert {"worker_high", "beat"} <= {
        line.split()[3] for line in logs.out.splitlines() if " sandbox " in line
    }

    _scaled_and_restarted(world)
    for journal in reversed(runs(world)):
        undone = world.inv("undo", journal.parent.name, "--yes")
        assert undone.code == 0, undone.out + undone.err
    assert world.env_file.read_bytes() == env_file
    assert [
        environment_of(world, one)["GLPI_TIMEOUT_S"] for one in containers(world, "worker_high")
    ] == [
        "30s",
        "30s",
    ], "both are recreated"
    assert (world.root / "docker-compose.yml").read_bytes() == compose
    assert containers(world, "worker_low") == []
    assert sum(task_of(raw) == CHECK for raw in world.queue()) == 300


def _scaled_and_restarted(world: World) -> None:
    """Two containers of a service are one service, whose restart leaves both in place."""
    compose = world.root / "docker-compose.yml"
    scaled = ("worker_high", "worker_low")
    wanted = [word for name in scaled for word in ("--scale", f"{name}=2")]
    engine_of(world).compose(compose, "up", "-d", "--no-deps", *wanted, *scaled)
    both = sorted(containers(world, "worker_low"))
    restarted = world.inv("restart-workers", "worker_low", "--yes")
    assert restarted.code == 0, restarted.out + restarted.err
    assert sorted(containers(world, "worker_low")) == both
    assert faults(world) == set()
    nodes = [
        line.split()[0]
        for line in world.inv("workers").out.splitlines()
        if line.startswith("worker_low@")
    ]
    assert sorted(node.partition("@")[2] for node in nodes) == [one[:12] for one in both]


def _known_without_an_inventory(world: World) -> None:
    """The application in a container: one command finds what is wrong, and what `adopt` writes has
    no finding.
    """
    service, there = f"{PROJECT}_beat_1", ("-A", PROJECT, "--container")
    engine = f"unix://{engine_of(world).socket}"

    def inv(*words: str) -> Done:
        command = world.command(*words)
        environment = world.environment | {"DOCKER_HOST": engine}
        done = subprocess.run(
            command, cwd="/", env=environment, capture_output=True, text=True, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    healthy = inv("diagnose", *there, service)
    assert (healthy.code, "no inventory: checked 1 host, 3 workers" in healthy.out) == (
        0,
        True,
    ), healthy.out
    engine_of(world).docker("stop", *containers(world, "worker_low"))
    findings = inv("diagnose", *there, "worker_high", "--json").json["findings"]
    assert (findings[0]["code"], findings[0]["subject"]) == (
        "worker.not_running",
        "worker_low on " + HOST,
    )
    engine_of(world).compose(world.root / "docker-compose.yml", "start", "worker_low")
    until(lambda: inv("diagnose", *there, service).code == 0, timeout_s=60)

    adopted = inv("adopt", *there, service, "--secrets-file", str(world.root / "adopted.secret"))
    assert (adopted.code, "remediate --dry-run --app printer_inventory\n" in adopted.err) == (
        0,
        True,
    ), adopted.err
    for line in (
        "{name: worker_low, queues: [low_priority], concurrency: 2, options: [",
        "celery_service_manager: docker  # ",
        f"celery_docker: {{project: {PROJECT}, socket: ",
        f"celery_env_file: {world.env_file}  # env_file: of container ",
        "; celery_env cannot set APP, as environment: does",
        f"celery_python: {world.path}/.venv/bin/python  # ",
    ):
        assert line in adopted.out, adopted.out
    (world.path / "adopted.yaml").write_text(adopted.out)
    looked = world.inv("diagnose", "-i", "adopted.yaml", "--json")
    assert (looked.code, [one for one in looked.json["findings"] if one["severity"] != "info"]) == (
        0,
        [],
    )
    planned = world.inv("remediate", "--dry-run", "-i", "adopted.yaml")
    assert (planned.code, "Nothing to change." in planned.out) == (0, True), planned.out
    nowhere = inv("workers", *there, "wroker")
    assert (nowhere.code, f"containers there: {service}, " in nowhere.err) == (5, True), nowhere.err


BY_NAME = (
    ("project: printer_inventory", f"containers: {PROJECT}_{{worker}}_*"),
    (
        'celery_env:\n          GLPI_TIMEOUT_S: "30"\n',
        "celery_env: {}\n",
    ),  # only Compose could apply it
)


def _found_by_their_names(world: World) -> None:
    """Containers that a pattern of names finds, and no label, are checked, restarted and read as
    well.
    """
    unknown = world.inv(
        "diagnose", "-i", world.inventory((BY_NAME[0][0], "containers: none-{worker}"), BY_NAME[1])
    )
    assert unknown.code == 1, unknown.out + unknown.err
    assert (
        f"no container's name matches none-{{worker}} (containers there: {PROJECT}_beat_1"
        in unknown.out
    )
    inventory = world.inventory(*BY_NAME)
    before = {name: containers(world, name) for name in ("worker_high", "worker_low")}
    looked = world.inv("diagnose", "--json", "-i", inventory)
    found = {one["code"] for one in looked.json["findings"] if one["severity"] != "info"}
    assert found <= {"cron.differs"}, "cron names the inventory"
    restarted = world.inv("restart-workers", "worker_low", "--yes", "-i", inventory)
    assert restarted.code == 0, restarted.out + restarted.err
    assert {name: containers(world, name) for name in before} == before
    assert "services run: 4 of 4" in world.inv("verify", "-i", inventory).out
    logs = world.inv("tail-logs", "worker_low", "--grep", "ready", "-i", inventory).out
    assert "worker_low" in logs


def _run_in_containers_as_their_own_user(world: World) -> None:
    """What is loaded, and a probe, where one runs and where none does; and what keeps it from that."""
    engine = engine_of(world)
    where = DockerSettings(containers="own_{worker}", socket=str(engine.socket))
    host = make_host(
        service_manager="docker", commands=None, docker=where, beat=False, env={}, directory="/tmp",
        workers=(Worker(name="high", queues=("q",)),), python=f"{sys.base_prefix}/bin/python3",
    )  # fmt: skip
    mounts = [word for path in ("/usr", sys.base_prefix) for word in ("-v", f"{path}:{path}:ro")]

    def made(*options: str, network: str = "none") -> None:
        engine.docker("rm", "-f", "own_high", check=False)
        own = ("--name", "own_high", "--network", network, *mounts)
        engine.docker("create", *own, *options, _IMAGE, "sleep", "600")

    def ran(script: str) -> tuple[int, str]:
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def loaded() -> tuple[int, str]:
        says = "import os; print(os.getuid(), os.getcwd(), os.environ['SIZE'])"
        return ran(
            Docker().run(host, "own", says, "import sys; exec(sys.stdin.read())", "no last line")
        )

    try:
        made("--user", "65534", "--workdir", "/tmp", "--env", "SIZE=7")
        assert loaded() == (0, "65534 /tmp 7\n"), "in a temporary one"
        engine.docker("start", "own_high")
        assert loaded() == (0, "65534 /tmp 7\n")
        assert ran(Docker().probe(host, "id -u; pwd", ("10", "5"), "")) == (0, "65534\n/tmp\n")
        made("--env", "SIZE=1\n2")
        code, said = loaded()
        assert (code, "a variable of /own_high has several lines" in said) == (3, True), said
        engine.docker("network", "create", "--subnet", "10.254.253.0/28", "short")
        made(network="short")
        engine.docker("network", "rm", "short")
        code, said = loaded()
        assert (code, "a temporary copy of /own_high cannot be started" in said) == (3, True), said
    finally:
        engine.docker("rm", "-f", "own_high", check=False)


def _created_by_their_own_compose_alone(world: World, folder: Path) -> None:
    """Beside a Compose of another major version, which would rename them, none is created."""
    scripts = {
        "docker": f'[ "$1" != compose ] || exec docker-compose\nexec {shutil.which("docker")} "$@"\n',
        "docker-compose": "echo 9.9.9\n",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    where = DockerSettings(project=PROJECT, socket=str(engine_of(world).socket))
    host = make_host(service_manager="docker", commands=None, docker=where)
    before = containers(world, "worker_low")
    done = subprocess.run(
        ["sh", "-c", Docker().control(host, ControlService("worker_low", "recreate"))],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "but this host has 9.9.9" in done.stderr) == (1, True), done.stderr
    assert containers(world, "worker_low") == before


def _loaded_beside_those_that_are_down(world: World) -> None:
    """Without a container that runs the application is loaded in one that is made for it; or
    nothing is said of it.
    """
    engine = engine_of(world)
    all_ids = [one for name in SERVICES for one in containers(world, name)]
    engine.docker("stop", *all_ids)
    looked = world.inv("diagnose", "--fresh", "--json")
    found = {one["code"] for one in looked.json["findings"]}
    assert {"worker.not_running", "beat.not_running"} <= found
    assert not {"host.probe_failed", "host.not_loaded", "task.import_fails"} & found
    listed = world.inv("tasks", "--json")
    assert CHECK in listed.out, "only the application knows it while no worker runs"

    high = all_ids[0]
    engine.docker("network", "create", "--subnet", "10.254.253.0/28", "second")
    engine.docker("network", "connect", "second", high)
    unknown = world.inv("remediate", "--dry-run", "--fresh")
    assert unknown.code == 0, unknown.out + unknown.err
    assert "start worker_high: it is not running" in unknown.out
    looked = world.inv("diagnose", "--fresh", "--json")
    (not_loaded,) = [one for one in looked.json["findings"] if one["code"] == "host.not_loaded"]
    assert "cannot be in all of its networks" in not_loaded["summary"]
    engine.docker("network", "disconnect", "second", high)
    engine.docker("network", "rm", "second")
    assert "celery-runbooks-load" not in engine.docker("ps", "-a").stdout.decode()
    engine.docker("start", *all_ids)
    until(lambda: faults(world) == set(), timeout_s=90)


@pytest.mark.parametrize(
    ("replacement", "code", "expected"),
    [
        (
            ("project: printer_inventory", "project: printers"), 1,
            ["the Compose project printers has no containers", "correct celery_docker.project"],
        ),
        (("docker/docker.sock", "docker/other.sock"), 1, ["Docker's engine does not answer", "systemctl start docker"]),
        (("name: worker_low", "name: worker_lwo"), 1, ["has no container of worker_lwo, only of beat, worker_daemon"]),
        (
            ("{{ inventory_dir }}/.venv/bin/python", "/opt/app/bin/python"), 1,
            ["celery_python is /opt/app/bin/python", "of the image celery-runbooks-sandbox:1 cannot run it"],
        ),
        (
            ("{{ inventory_dir }}/.venv/bin/python", f"{sys.base_prefix}/bin/python3"), 1,
            ["cannot import Celery", "name the Python of the application's environment"],
        ),
        (("ansible_connection: local", "ansible_connection: docker"), 5, ["celery_service_manager: docker"]),
    ],
)  # fmt: skip
def test_what_docker_cannot_answer_is_one_error_with_the_next_step(
    world: World, replacement: tuple[str, str], code: int, expected: list[str]
) -> None:
    done = world.inv("diagnose", "--fresh", "-i", world.inventory(replacement))
    assert done.code == code, done.out + done.err
    text = " ".join((done.out + done.err).replace("|", " ").split())
    assert all(one in text for one in expected), text
    if "engine does not answer" in text:
        env_file = world.env_file.read_bytes()
        assert "environment.differs" in text, "the rest of the host is judged"
        left = world.inv("remediate", "--yes", "-i", world.inventory(replacement))
        assert (left.code, "nothing was changed: Docker's engine" in left.err) == (2, True), (
            left.out + left.err
        )
        assert world.env_file.read_bytes() == env_file


def test_that_a_user_may_not_use_the_socket_is_reported(world: World) -> None:
    where = DockerSettings(project=PROJECT, socket=str(engine_of(world).socket))
    host = make_host(service_manager="docker", commands=None, docker=where)
    (question,) = Docker().ask(host, "shop", ["high"]).values()
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", question]
    done = subprocess.run(as_nobody, capture_output=True, text=True, check=False, cwd="/")
    with pytest.raises(RunbookError, match="this user may not use Docker's socket") as error:
        Docker().parse(
            host, "shop", {"high": Answer(done.returncode, b"", done.stderr)}, Clock(0.0, 0.0, 100)
        )
    assert "ansible_become" in (error.value.advice or "")


@pytest.fixture
def over_ssh(tmp_path: Path) -> Iterator[str]:
    """The variables of a host that is reached over SSH: this machine, by an sshd of its own."""
    if not SSHD and "CI" not in os.environ:
        pytest.skip("there is no sshd on this machine (Debian: openssh-server)")
    host_key, user_key = make_key(tmp_path / "host_ed25519"), make_key(tmp_path / "user")
    with running_sshd(tmp_path / "sshd", [host_key], user_key) as port:
        known_hosts = tmp_path / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
        yield (
            f"          ansible_host: 127.0.0.1\n          ansible_port: {port}\n         "
            f" ansible_user: root\n          ansible_ssh_private_key_file: {user_key}\n         "
            f" ansible_ssh_common_args: -F none -o UserKnownHostsFile={known_hosts}\n"
        )


def second_host(world: World, way: str) -> str:
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
        f"        second:\n{way}          celery_env_file: {env_file}\n"
        + "".join(
            f"          celery_{kind}_directory: {app}/etc\n"
            for kind in ("unit", "cron", "logrotate")
        )
        + "          celery_beat: false\n          celery_docker: {project: second, socket:"
        f" {engine.socket}}}\n          celery_workers: [{{name: worker_second, queues:"
        " [low_priority]}]\n"
    )
    return world.inventory(
        ("celery_start_timeout: 60s", "celery_start_timeout: 30s"),
        (
            "\n      vars:\n        # The application",
            f"\n{settings}\n      vars:\n        # The application",
        ),
    )


def test_containers_are_known_by_what_runs_in_them_by_their_names_and_while_they_are_down(
    world: World, tmp_path: Path
) -> None:
    engine_of(world).docker("stop", *(one for name in SERVICES for one in containers(world, name)))
    healed = world.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    paused = tried_alone("container.paused", Sandbox(world))
    assert paused.well, paused
    _known_without_an_inventory(world)
    _found_by_their_names(world)
    _created_by_their_own_compose_alone(world, tmp_path)
    _run_in_containers_as_their_own_user(world)
    _loaded_beside_those_that_are_down(world)


@pytest.mark.thorough
def test_where_the_first_batch_does_not_come_up_the_rest_is_left_alone(
    world: World, over_ssh: str
) -> None:
    healed = world.inv("remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err
    inventory = second_host(world, over_ssh)
    assert world.inv("remediate", "-i", inventory, "--yes").code == 0
    _restarted_over_ssh(world, inventory)
    second, env_file = containers(world, "worker_second", "second"), world.env_file.read_bytes()
    compose = world.root / "docker-compose.yml"
    compose.write_text(compose.read_text().replace('"APP": "printer_inventory"', '"APP": "nosuch"'))
    text = (
        (world.path / inventory).read_text().replace('GLPI_TIMEOUT_S: "30"', 'GLPI_TIMEOUT_S: "31"')
    )
    (world.path / inventory).write_text(text)

    failed = world.inv("remediate", "-i", inventory, "--yes", timeout_s=600)
    assert failed.code == 2, failed.out
    assert "skipped: [second] recreate worker_second" in failed.out
    assert "changed: [second] recreate worker_second" not in failed.out
    assert containers(world, "worker_second", "second") == second
    assert world.env_file.read_bytes() == env_file, (
        "the values of before are back where the start failed"
    )
    until(
        lambda: "container.restarting" in faults(world), timeout_s=90
    )  # between two starts it runs for a moment


def _restarted_over_ssh(world: World, inventory: str) -> None:
    looked = world.inv("diagnose", "--fresh", "--json", "-i", inventory)
    found = {one["code"] for one in looked.json["findings"] if one["severity"] != "info"}
    assert found <= {
        "worker.other_unit",
        "worker.too_many_processes",
    }, "two names of one machine, one of them local"
    second = containers(world, "worker_second", "second")
    restarted = world.inv("restart-workers", "worker_second", "--yes", "-i", inventory)
    assert restarted.code == 0, restarted.out + restarted.err
    assert containers(world, "worker_second", "second") == second
    assert (
        "worker_second@"
        in world.inv("tail-logs", "worker_second", "--grep", "ready", "-i", inventory).out
    )


def test_without_root_nothing_is_put_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DockerError, match="needs root"):
        require()
