"""Containers of Docker 20.10: `docker_look.txt` is the output of `docker_look.sh` for five."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.core.settings import DockerSettings, Worker
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.services.docker import Docker
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host

PODMAN = (Path(__file__).parent / "podman_look.txt").read_bytes()
"""The same of two containers of Podman 4.3, which is called `docker` there; shortened."""
LOOK = (Path(__file__).parent / "docker_look.txt").read_bytes()
CLOCK = Clock(1_796_000_000.0, 1000.0, 100)


def host(*services: str, **docker: Any) -> FleetHost:
    workers = tuple(Worker(name=name, queues=("q",)) for name in services)
    where = DockerSettings(**(docker or {"project": "proj"}))
    env = {} if docker.get("containers") else {"TIMEOUT": "30"}
    return make_host(
        service_manager="docker", commands=None, docker=where, workers=workers, beat=False, env=env
    )


def states(*services: str, look: bytes = LOOK, **docker: Any) -> dict[str, ServiceState]:
    found = Docker().parse(
        host(*services, **docker), "shop", {" ".join(services): Answer(0, look, "")}, CLOCK
    )
    return dict(found)


def changed(name: str, **changes: Any) -> bytes:
    """The look with other values for one container; a dot separates a key from the keys in it."""
    shown, rest = LOOK.decode().split("---\n", 1)
    inspected = json.loads(shown)
    (one,) = (one for one in inspected if one["Name"] == f"/proj_{name}_1")
    for path, value in changes.items():
        *above, last = path.split("__")
        into = one
        for key in above:
            into = into.setdefault(key, {})
        into[last] = value
    return f"{json.dumps(inspected, indent=1)}\n---\n{rest}".encode()


def test_the_engine_is_asked_at_the_inventorys_socket_or_where_dockers_client_asks(
    tmp_path: Path,
) -> None:
    client = tmp_path / "docker"
    client.write_text(
        f'#!/bin/sh\necho "$DOCKER_HOST" >>{tmp_path}/asked\necho "$*" >>{tmp_path}/words\n'
    )
    client.chmod(0o755)
    here = f"PATH={tmp_path}:$PATH; unset DOCKER_HOST\n"
    for settings in ({}, {"socket": "/run/other.sock"}):
        questions = Docker().ask(host("low", project="proj", **settings), "shop", ["low"])
        fragments = {name: here + text for name, text in questions.items()}
        run_fragments(LocalTransport(), fragments, timeout_s=30)
    assert set((tmp_path / "asked").read_text().split("\n")) == {"", "unix:///run/other.sock"}
    first = (tmp_path / "words").read_text().splitlines()[0]
    assert first.startswith("ps -aq "), "also those that do not run"
    assert "--filter label=com.docker.compose.project=proj" in first


def test_of_an_engine_that_does_not_answer_only_that_is_said_and_once(tmp_path: Path) -> None:
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    client.chmod(0o755)
    both = host("low", "high", project="proj")
    for script, code in (
        (Docker().probe(both, "true", ("5", "5"), ""), 1),
        (Docker().run(both, "shop", "", "pass", "answer"), 3),
    ):
        done = subprocess.run(
            ["sh", "-c", f"PATH={tmp_path}:$PATH\n{script}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == "Cannot connect to the Docker daemon\n"


def test_a_service_is_its_containers_and_all_processes_in_them() -> None:
    low = states("low")["low"]
    (container,) = low.containers
    assert (container.name, container.status, container.number) == ("proj_low_1", "running", "1")
    assert low.pid == container.pid
    assert low.pids[low.pid or 0] == 1
    assert len(low.pids) == 2
    assert low.answer == "proj_low_1: running"
    assert low.started_at == pytest.approx(1795987179.3, abs=0.1)
    assert low.read_at == pytest.approx(1795987177.3, abs=0.1)
    assert container.grace_s == 30.0
    assert container.stop_signal == "SIGTERM"
    assert low.environment
    assert "BROKER_URL" in low.environment


def test_a_shell_as_first_process_and_a_failing_health_check_show() -> None:
    (container,) = states("shell")["shell"].containers
    assert container.shell == "dash"
    assert container.health == "unhealthy"
    assert container.grace_s == 10.0
    assert states("shell")["shell"].answer == "proj_shell_1: running (unhealthy)"
    health = {"Status": "unhealthy", "Log": [{"Output": "well"}, {"Output": "no answer\n"}]}
    (container,) = states("shell", look=changed("shell", State__Health=health))["shell"].containers
    assert container.health_said == "no answer"


def test_a_container_that_is_paused_has_not_ended() -> None:
    paused = states("low", look=changed("low", State__Status="paused", State__Paused=True))["low"]
    assert (paused.containers[0].status, paused.pid is None) == ("paused", False)


def test_a_container_that_restarts_again_and_again_does_not_run_and_has_failed() -> None:
    crash = states("crash")["crash"]
    assert (crash.pid, crash.gave_up) == (None, True)
    assert "restarting, exit code 3, restarted 5 times by its policy" in crash.answer
    assert crash.last_lines[-1] == "cannot start"
    assert crash.containers[0].loops
    assert (crash.containers[0].restarts, crash.containers[0].exit_code) == (5, 3)


def test_one_that_has_ended_is_reported_with_its_exit_code() -> None:
    done = states("done")["done"]
    assert (done.pid, done.gave_up) == (None, False)
    assert done.answer == "proj_done_1: exited, exit code 1"
    out_of_memory = states(
        "done", look=changed("done", State__OOMKilled=True, State__ExitCode=137)
    )["done"]
    assert out_of_memory.answer == "proj_done_1: exited, exit code 137, it ran out of memory"
    assert out_of_memory.containers[0].out_of_memory


def test_a_service_without_a_container_does_not_exist_and_the_others_are_named() -> None:
    lost = states("lwo")["lwo"]
    assert not lost.exists
    assert (
        lost.answer
        == "the Compose project proj has no container of lwo, only of crash, done, low, shell"
    )


def test_containers_are_found_by_a_pattern_of_names() -> None:
    found = states("low", "shell", "lwo", containers="proj_{worker}_*")
    assert [len(found[name].containers) for name in ("low", "shell")] == [1, 1]
    lost = found["lwo"]
    assert (lost.exists, lost.answer) == (False, "no container's name matches proj_lwo_*")
    assert (
        "name=^/?proj_low_.*$"
        in Docker().ask(host("low", containers="proj_{worker}_*"), "shop", ["low"])["low"]
    )


@pytest.mark.parametrize(
    ("command", "signals_all"),
    [
        (["/usr/bin/tini", "-g", "--", "celery"], "tini -g"), (["tini", "--", "celery", "-g"], ""),
        (["tini", "-vg", "celery"], "tini -g"), (["dumb-init", "celery"], "dumb-init"),
        (["dumb-init", "--single-child", "celery"], ""), (["celery", "worker"], ""),
    ],
)  # fmt: skip
def test_an_init_that_signals_all_processes_is_known(command: list[str], signals_all: str) -> None:
    look = changed("low", Path=command[0], Args=command[1:])
    assert states("low", look=look)["low"].containers[0].signals_all == signals_all


def test_podman_names_a_signal_by_its_number_and_always_has_a_health() -> None:
    look = changed(
        "low",
        Config__StopSignal=15,
        Config__StopTimeout=10,
        State__Health={"Status": "", "Log": None},
    )
    (container,) = states("low", look=look)["low"].containers
    assert (container.stop_signal, container.grace_s, container.health) == ("SIGTERM", 10.0, "")


NOTHING = b"[]\n---\n---\n---\n"
OTHERS = b"other web_1\n alone\n"


@pytest.mark.parametrize(
    ("answer", "docker", "problem", "advice"),
    [
        (Answer(127, b"", "docker is not on its PATH"), {}, "docker is not on its PATH", "install Docker's client"),
        (
            Answer(1, b"", "Got permission denied while trying to connect to the Docker daemon socket at unix:///x"),
            {"project": "proj", "socket": "/x"}, "may not use Docker's socket /x", "ansible_become: true",
        ),
        (
            Answer(1, b"", "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?"), {},
            "engine does not answer", "systemctl start docker",
        ),
        (
            Answer(0, NOTHING + OTHERS, ""), {}, "the Compose project proj has no containers (projects there: other)",
            "correct celery_docker.project",
        ),
        (
            Answer(0, NOTHING + OTHERS, ""), {"containers": "x-{worker}"},
            "no container's name matches x-{worker} (containers there: alone, web_1)",
            "correct celery_docker.containers",
        ),
    ],
)  # fmt: skip
def test_an_engine_that_cannot_be_asked_is_reported_with_the_next_step(
    answer: Answer, docker: dict[str, Any], problem: str, advice: str
) -> None:
    with pytest.raises(RunbookError) as error:
        Docker().parse(host("low", **docker), "shop", {"low": answer}, CLOCK)
    assert problem in error.value.problem
    assert advice in (error.value.advice or "")


def test_what_is_notable_in_the_logs_of_its_containers_is_reported_with_their_times() -> None:
    (container,) = states("low")["low"].containers
    text = "Task a.b[1] raised unexpected: E()"
    line = json.dumps({"log": f"{text}\n", "stream": "stderr", "time": "2026-11-30T01:20:00.5Z"})
    path = f"/var/lib/docker/containers/{container.id}/{container.id}-json.log"
    look = LOOK + f"---\n==> {path} <==\ncut off\n{line}\n".encode()
    said = Docker().said(host("low", "high"), {"low high": Answer(0, look, "")})
    assert [(one.at, one.text) for one in said["low"]] == [(1796001600.5, text)]
    assert not said["high"]
    assert states("low", look=look) == states("low")


def test_podmans_containers_are_read_as_well() -> None:
    high = states("high", look=PODMAN, containers="pod_{worker}_*")["high"]
    assert (
        high.answer == "pod_high_1: running; pod_high_2: stopped"
    )  # Podman says so before it has tidied up
    up, down = high.containers
    assert (high.pid, up.program, up.stop_signal, up.grace_s, up.health) == (
        up.pid,
        "/usr/bin/sleep",
        "SIGTERM",
        10,
        "",
    )
    assert high.pids == {up.pid: 1}
    assert (down.pid, down.command) == (None, ("sh", "-c", "echo hi; exit 3"))
