"""One look at the fleet: only what is asked for, hosts at once, and no secret in what is found."""

import sys
import threading
from pathlib import Path
from textwrap import dedent
from typing import cast

import pytest
from msgspec.structs import replace

from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, HostState, Unreachable
from runbooks.core.needs import Needs
from runbooks.engine.observe import on_hosts, secrets_in
from runbooks.hosts.transport import Completed, LocalTransport, Transport, Transports
from tests.unit.engine.conftest import Flaky, World, ready
from tests.unit.fleets import make_fleet, make_host, make_state
from tests.unit.hosts.test_transport import is_alive, pid_in, wait_until


def host_state(world: World, name: str, needs: Needs) -> HostState:
    state = world.session().observe(needs).hosts[name]
    assert isinstance(state, HostState)
    return state


def test_a_look_at_files_sees_the_environment_the_units_and_the_cron_file_and_asks_no_service(world: World) -> None:
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


def test_a_look_at_queues_alone_asks_no_host(world: World) -> None:
    for transport in world.transports.values():
        transport.is_gone = True
    assert world.session().observe(Needs.QUEUES).hosts == {}


def test_a_host_that_does_not_answer_is_part_of_what_is_seen(world: World) -> None:
    world.transports["web1"].is_gone = True
    snapshot = world.session().observe(Needs.FILES)
    assert snapshot.hosts["web1"] == Unreachable("No route to host")
    assert list(snapshot.reachable()) == ["web2"]


def test_a_broken_status_command_is_that_hosts_fault_and_the_others_are_looked_at(world: World) -> None:
    world.path("web2", "high.silly").touch()
    snapshot = world.session().observe(Needs.SERVICES)
    state = snapshot.hosts["web2"]
    assert isinstance(state, Unreachable)
    assert state.why.startswith("the status command of high exited 1")
    assert "celery_commands.status" in state.why
    assert list(snapshot.reachable()) == ["web1"]


class Lacking(LocalTransport):
    """This machine, with a program that does something else than everywhere else."""

    def __init__(self, program: str, does: str) -> None:
        super().__init__()
        self._instead = f"{program}() {{ {does}; }}\n"

    def run(self, script: str, *, timeout_s: float) -> Completed:
        return super().run(self._instead + script, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("program", "does", "told"),
    [
        ("getconf", "echo getconf: not found >&2; return 127", "its clock cannot be read: getconf: not found"),
        ("stat", "echo this is busybox", "what it answered cannot be understood"),
    ],
)
def test_an_answer_that_cannot_be_understood_is_that_hosts_fault_and_the_others_are_looked_at(
    program: str, does: str, told: str, world: World
) -> None:
    world.transports["web2"] = cast(Flaky, Lacking(program, does))
    snapshot = world.session().observe(Needs.FILES)
    state = snapshot.hosts["web2"]
    assert isinstance(state, Unreachable)
    assert told in state.why
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
    host = make_host()
    content = b"GLPI_TOKEN='s3 cret'\nTIMEOUT=30\nDB_PASSWORD=hunter2\nNOTE=caf\xe9\n"
    state = replace(make_state(host), files={host.settings.env_file: FileState(content, 0o640)})
    assert secrets_in(state.files[host.settings.env_file]) == ("s3 cret", "hunter2")
    assert secrets_in(FileState(None)) == ()


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
    assert error.splitlines()[-1] == "RuntimeError: ******** redis://:********@h/0 x"
    assert "s3cret" not in repr(state.imports_now)
    assert "hunter2" not in repr(state.imports_now)


def test_what_an_import_says_lies_in_no_file_of_the_host(
    site: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "host"))
    (tmp_path / "host").mkdir()
    look = f"'somewhere' if subprocess.getoutput('grep -rl s3cret {tmp_path}/host') else 'nowhere'"
    said = f"print(1_000_000 * (os.environ['TOKEN'] + ' '), file=sys.stderr, flush=True)\nraise RuntimeError({look})\n"
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
        "import os\napp.conf.broker_transport_options = {'visibility_timeout': 120 * int(os.environ['TIMEOUT'])}\n"
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
    """A host that answers only when as many scripts run as there are hosts: the slowest holds all of them up."""

    def __init__(self, all_of_them: threading.Barrier) -> None:
        super().__init__()
        self.all_of_them = all_of_them

    def run(self, script: str, *, timeout_s: float) -> Completed:
        self.all_of_them.wait(timeout=30)
        return Completed(0, b"")


def test_sixty_four_slow_hosts_take_as_long_as_the_slowest_of_them() -> None:
    hosts = [make_host(f"web{n}") for n in range(64)]
    all_of_them = threading.Barrier(len(hosts))
    ways = ready({host.name: Meeting(all_of_them) for host in hosts}, forks=64)
    answers = on_hosts(ways, hosts, lambda host, way: way.run(":", timeout_s=30).code)
    assert answers == {host.name: 0 for host in hosts}
