"""One look at the fleet: only what is asked for, hosts at once, and no secret in what is found."""

import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import ClassVar, cast

import pytest
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind, Options
from runbooks.core.errors import BrokerUnreachable, ExitCode, RunbookError, Trouble
from runbooks.core.fleet import FleetHost
from runbooks.core.model import BrokerState, FileState, HostState, NotAsked, OtherRun, Unreachable
from runbooks.core.needs import Needs
from runbooks.core.redaction import redact
from runbooks.diagnosis.judge import judge
from runbooks.engine.host_look import keep_secrets_of
from runbooks.engine.observe import _scheduler, on_hosts
from runbooks.hosts.transport import Completed, LocalTransport, Transport, Transports
from tests.unit.engine.conftest import Flaky, World, ready
from tests.unit.fleets import make_fleet, make_host
from tests.unit.hosts.test_transport import is_alive, pid_in, wait_until

NEEDS = Needs.EVERYTHING & ~Needs.IMPORTS


def host_state(world: World, name: str, needs: Needs) -> HostState:
    state = world.session().observe(needs).hosts[name]
    assert isinstance(state, HostState)
    return state


def test_a_look_at_files_sees_the_environment_the_units_and_the_cron_file_and_asks_no_service(
    world: World,
) -> None:
    world.path("web1", "high.silly").touch()
    state = host_state(world, "web1", Needs.FILES)
    here = world.root / "web1"
    assert sorted(state.files) == [
        f"{here}/cron/celery-shop",
        f"{here}/env",
        f"{here}/units/celery-beat.service",
        f"{here}/units/celery-worker@high.service",
        f"{here}/units/celery.target",
    ]
    assert state.files[f"{here}/env"].content == b"TIMEOUT=x\nTOKEN=s3cret\n"
    assert state.services == {}


def test_a_look_at_services_sees_workers_and_beat(world: World) -> None:
    world.remediate("web1")
    services = host_state(world, "web1", Needs.SERVICES | Needs.FILES).services
    assert {name: service.pid for name, service in services.items()} == {
        name: int(world.path("web1", f"{name}.pid").read_text()) for name in ("high", "beat")
    }


def test_a_host_that_is_to_run_nothing_is_asked_for_its_celery_processes_too(world: World) -> None:
    session = world.session()
    idle = {"workers": (), "beat": False}
    hosts = tuple(
        replace(host, settings=host.settings.model_copy(update=idle))
        for host in session.fleet.hosts
    )
    session.fleet = replace(session.fleet, hosts=hosts)
    for state in session.observe(Needs.SERVICES).reachable().values():
        assert state.census is not None
        assert state.services == {}
    assert host_state(world, "web1", Needs.FILES).census is None


def test_a_look_at_queues_alone_asks_no_host(world: World) -> None:
    for transport in world.transports.values():
        transport.is_gone = True
    assert world.session().observe(Needs.QUEUES).hosts == {}


def test_a_host_that_does_not_answer_is_part_of_what_is_seen(world: World) -> None:
    world.transports["web1"].is_gone = True
    snapshot = world.session().observe(Needs.FILES)
    assert snapshot.hosts["web1"] == Unreachable("No route to host")
    assert list(snapshot.reachable()) == ["web2"]


def test_a_broker_that_goes_away_during_a_look_is_part_of_what_is_seen_where_that_is_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[OtherRun | RunbookError | None] = [
        None,
        BrokerUnreachable("gone", "is it up?"),
    ] * 2

    def other_run() -> OtherRun | None:
        answer = answers.pop(0)
        if isinstance(answer, RunbookError):
            raise answer
        return answer

    monkeypatch.setattr(world.broker, "other_run", other_run)
    seen = world.session().observe(Needs.FILES, without_broker=True)
    assert seen.broker == BrokerState.not_seen(NotAsked(Trouble.UNREACHABLE, "gone", "is it up?"))
    assert list(seen.reachable()) == ["web1", "web2"]
    with pytest.raises(BrokerUnreachable, match="gone"):
        world.session().observe(Needs.FILES)


def test_a_broken_status_command_is_that_services_fault_and_the_others_are_judged_and_changed(
    world: World,
) -> None:
    world.path("web2", "high.silly").touch()
    services = world.session().observe(Needs.SERVICES).reachable()["web2"].services
    assert services["high"].why_unknown.startswith("its status command exited with 1")
    assert services["beat"].why_unknown == ""
    assert judged(world) == {
        ("service.untold", "high on web2"),
        ("beat.not_running", "beat on web2"),
    }
    assert (
        world.remediate(blocking=world.session().blocking(world.session().observe(NEEDS)))
        == ExitCode.FAILED
    )
    assert world.log("web2") == ["start beat"]


@pytest.mark.parametrize("path", ["env", "units/celery.target"])
def test_a_folder_in_the_place_of_a_file_is_reported_and_its_host_left_alone(
    path: str, world: World
) -> None:
    there = world.path("web2", path)
    there.unlink(missing_ok=True)
    there.mkdir()
    found = judged(world)
    code = "environment.is_folder" if path == "env" else "host.folder_in_place"
    assert {
        (code, "web2"),
        ("worker.not_running", "high on web2"),
        ("beat.not_running", "beat on web2"),
    } <= found
    world.remediate(blocking=world.session().blocking(world.session().observe(NEEDS)))
    assert world.log("web2") == []
    assert world.log("web1") == ["start high", "start beat"]
    assert there.is_dir()


def test_a_directory_of_the_application_that_is_not_there_is_one_finding(world: World) -> None:
    world.hosts["web2"] = replace(
        world.hosts["web2"],
        settings=world.hosts["web2"].settings.model_copy(update={"directory": "/no/such/place"}),
    )
    found = {(code, subject) for code, subject in judged(world) if "web2" in subject}
    assert ("host.no_directory", "web2") in found
    assert not [code for code, _ in found if code in ("service.untold", "worker.not_running")]


def judged(world: World) -> set[tuple[str, str]]:
    """What is found on the second host but for its other files."""
    session = world.session()
    found = judge(session.fleet, session.observe(NEEDS), session.files)
    return {
        (one.code, one.subject) for one in found
        if "web2" in one.subject and one.code.partition(".")[0] not in ("unit", "cron", "logrotate", "inventory")
        if one.code not in ("worker.not_answering", "environment.differs", "beat.several")
    }  # fmt: skip


class Lacking(LocalTransport):
    """This machine, with a program that does something else than everywhere else."""

    def __init__(self, program: str, does: str) -> None:
        super().__init__()
        self._instead = f"{program}() {{ {does}; }}\n"

    def run(self, script: str, *, timeout_s: float) -> Completed:
        return super().run(self._instead + script, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("program", "does", "expected"),
    [
        (
            "getconf",
            "echo getconf: not found >&2; return 127",
            "its clock cannot be read: getconf: not found",
        ),
        ("stat", "echo this is busybox", "its answer cannot be parsed"),
    ],
)
def test_an_answer_that_cannot_be_understood_is_that_hosts_fault_and_the_others_are_looked_at(
    program: str, does: str, expected: str, world: World
) -> None:
    world.transports["web2"] = cast(Flaky, Lacking(program, does))
    snapshot = world.session().observe(Needs.FILES)
    state = snapshot.hosts["web2"]
    assert isinstance(state, Unreachable)
    assert expected in state.why
    assert list(snapshot.reachable()) == ["web1"]


def test_an_error_on_one_host_ends_the_scripts_on_the_others(world: World, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def work(host: FleetHost, transport: Transport) -> None:
        if host.name == "web1":
            transport.run(f"echo $$ >{pid_file}; sleep 600", timeout_s=600)
        pid_in(pid_file)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        on_hosts(ready(world.transports), [world.hosts["web2"], world.hosts["web1"]], work)
    wait_until(lambda: not is_alive(pid_in(pid_file)), "the end of the other host's script")


def test_more_hosts_than_can_be_asked_at_once_are_all_asked(world: World) -> None:
    hosts = [make_host(f"h{n}") for n in range(50)]
    transports = Transports({host.name: LocalTransport for host in hosts})
    found = on_hosts(transports, hosts, lambda host, way: way.run("echo x", timeout_s=30).out)
    assert found == {host.name: b"x\n" for host in hosts}


def test_secrets_are_the_values_of_variables_named_so() -> None:
    content = b"GLPI_TOKEN='s3 cret'\nTIMEOUT=30\nDB_PASSWORD=hunter2\nNOTE=caf\xe9\n"
    keep_secrets_of(FileState(content, 0o640))
    keep_secrets_of(FileState(None))
    assert redact("'s3 cret' hunter2 30 café") == "'********' ******** 30 café"


# --- why tasks are not registered, asked of a real application

APP = """\
    from celery import Celery
    app = Celery("shop", broker="memory://", set_as_current=False)
    try:
        import shop.tasks
    except Exception:
        pass
    """
TASKS = """\
    import os
    from shop import app
    if os.environ["TIMEOUT"] != "30":
        raise RuntimeError(f"{os.environ['TOKEN']} redis://:hunter2@h/0 {os.environ['TIMEOUT']}")

    @app.task
    def bill(): ...

    @app.task
    def ship(): ...
    """


@pytest.fixture
def site(world: World) -> World:
    for name in world.hosts:
        package = world.path(name, "shop")
        package.mkdir()
        (package / "__init__.py").write_text(dedent(APP))
        (package / "tasks.py").write_text(dedent(TASKS))
    return world


def test_imports_are_tried_with_the_files_environment_and_with_the_inventorys(site: World) -> None:
    state = host_state(site, "web1", Needs.EVERYTHING)
    assert state.imports_now is not None
    assert state.imports_wanted is not None
    assert "shop.tasks.bill" not in state.imports_now.registered
    assert {"shop.tasks.bill", "shop.tasks.ship"} <= state.imports_wanted.registered


def test_the_secrets_of_the_environment_file_and_passwords_in_urls_are_hidden_in_what_an_import_says(
    site: World,
) -> None:
    state = host_state(site, "web1", Needs.EVERYTHING)
    assert state.imports_now is not None
    error = state.imports_now.errors["shop.tasks"]
    assert error.splitlines()[-1] == "RuntimeError: ******** redis://********@h/0 x"
    assert "s3cret" not in repr(state.imports_now)
    assert "hunter2" not in repr(state.imports_now)


def test_what_an_import_says_lies_in_no_file_of_the_host(
    site: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "host"))
    (tmp_path / "host").mkdir()
    look = f"'somewhere' if subprocess.getoutput('grep -rl s3cret {tmp_path}/host') else 'nowhere'"
    said = (
        "print(1_000_000 * (os.environ['TOKEN'] + ' '), file=sys.stderr, flush=True)\nraise"
        f" RuntimeError({look})\n"
    )
    (site.path("web1", "shop") / "tasks.py").write_text("import os, subprocess, sys\n" + said)
    state = host_state(site, "web1", Needs.EVERYTHING)
    assert state.imports_now is not None
    assert state.imports_now.errors["shop.tasks"].splitlines()[-1] == "RuntimeError: nowhere"


def test_imports_are_not_tried_where_every_node_knows_its_tasks(site: World) -> None:
    site.remediate("web1")
    snapshot = site.session().observe(Needs.EVERYTHING)
    web1, web2 = snapshot.hosts["web1"], snapshot.hosts["web2"]
    assert isinstance(web1, HostState)
    assert isinstance(web2, HostState)
    assert web1.imports_now is None
    assert web2.imports_now is not None


def test_where_the_environment_is_right_the_second_try_is_spared(site: World) -> None:
    site.path("web1", "env").write_text("TIMEOUT=30\nTOKEN=s3cret\n")
    state = host_state(site, "web1", Needs.EVERYTHING)
    assert state.imports_now is not None
    assert state.imports_now is state.imports_wanted


def test_options_that_differ_are_tried_with_the_inventorys_environment_too(site: World) -> None:
    options = (
        "import os\napp.conf.broker_transport_options = {'visibility_timeout': 120 *"
        " int(os.environ['TIMEOUT'])}\n"
    )
    package = site.path("web1", "shop")
    (package / "__init__.py").write_text(dedent(APP) + options)
    (package / "tasks.py").write_text(dedent(TASKS).replace('!= "30"', '== "x"'))
    site.path("web1", "env").write_text("TIMEOUT=5\nTOKEN=s3cret\n")
    state = host_state(site, "web1", Needs.EVERYTHING)
    assert state.imports_now is not None
    assert state.imports_wanted is not None
    assert (state.imports_now.options, state.imports_wanted.options) == (
        {"visibility_timeout": 600},
        {"visibility_timeout": 3600},
    )


def test_the_applications_own_python_is_asked(site: World) -> None:
    host = site.hosts["web1"]
    assert host.settings.python == sys.executable
    settings = host.settings.model_copy(update={"python": "/no/such/python"})
    site.hosts["web1"] = replace(host, settings=settings)
    assert make_fleet(*site.hosts.values()).hosts[0].settings.python == "/no/such/python"
    state = host_state(site, "web1", Needs.EVERYTHING)
    assert state.imports_now is not None
    assert "/no/such/python" in state.imports_now.failed


class Meeting(LocalTransport):
    """A host that answers only when as many scripts run as there are hosts: the slowest holds all
    of them up.
    """

    def __init__(self, all_of_them: threading.Barrier) -> None:
        super().__init__()
        self.all_of_them = all_of_them

    def run(self, script: str, *, timeout_s: float) -> Completed:
        self.all_of_them.wait(timeout=30)
        return Completed(0, b"")


class Counted(LocalTransport):
    """A host that answers only while another one is asked, too, and notes how many are."""

    both = threading.Barrier(2)
    asked: ClassVar[list[str]] = []
    most = 0

    def run(self, script: str, *, timeout_s: float) -> Completed:
        self.asked.append(script)
        Counted.most = max(Counted.most, len(self.asked))
        self.both.wait(timeout=30)
        self.asked.remove(script)
        return Completed(0, b"")


def test_no_more_hosts_are_asked_at_once_than_forks() -> None:
    hosts = [make_host(f"web{n}") for n in range(6)]
    ways = ready({host.name: Counted() for host in hosts}, forks=2)
    on_hosts(ways, hosts, lambda host, way: way.run(host.name, timeout_s=30).code)
    assert Counted.most == 2


def test_sixty_four_slow_hosts_take_as_long_as_the_slowest_of_them() -> None:
    hosts = [make_host(f"web{n}") for n in range(64)]
    all_of_them = threading.Barrier(len(hosts))
    ways = ready({host.name: Meeting(all_of_them) for host in hosts}, forks=64)
    answers = on_hosts(ways, hosts, lambda host, way: way.run(":", timeout_s=30).code)
    assert answers == {host.name: 0 for host in hosts}


def test_which_scheduler_beat_uses_is_what_its_command_line_says(world: World) -> None:
    host = world.hosts["web1"]
    said = Options("beat", "shop", scheduler="redbeat.RedBeatScheduler")
    beat = CeleryProcess(7, 4000, 1.0, "S", Kind.BEAT, said, inner_pid=7, parent=1, here=True)
    assert _scheduler(host, HostState(1.0, {}, {}, census=Census((beat,), {}))) == said.scheduler
    assert _scheduler(host, HostState(1.0, {}, {})) == "", "then the application's settings say it"
