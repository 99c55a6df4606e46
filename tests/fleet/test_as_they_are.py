"""Hosts as operators leave them: environment files, aliases, units of a user's own systemd, no
cron.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.faults.grounds import Hosts, look
from lab.matrix import tried_alone
from runbooks.core.census import Kind, Unit
from runbooks.hosts.census import ask_census, parse_census
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import Answer
from runbooks.hosts.services.registry import manager_of
from tests.fleet.conftest import FleetWorld, two_hosts, wait_until
from tests.sandbox.conftest import Done
from tests.unit.fleets import make_host

HIGH, LOW = "celery-worker@worker_high", "celery-worker@worker_low"
ENV_FILE = "/etc/printer_inventory.env"
UNITS = "/etc/systemd/system"
CERT = 'CERT="-----BEGIN\nGLPI_TIMEOUT_S=1\n-----END"'


@pytest.fixture(scope="module")
def two(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Two healthy hosts; tests leave them so."""
    with two_hosts(tmp_path_factory.mktemp("two")) as world:
        yield world


def inv(world: FleetWorld, verb: str, *arguments: str) -> Done:
    return world.inv(verb, *arguments, "--inventory", ".fleet/inventory.yaml")


def root(world: FleetWorld, command: str, host: str = "web1") -> str:
    """What a command of root's prints."""
    done = world.ssh(host, f"sudo sh -c {shlex.quote(command)}")
    assert done.code == 0, done.err
    return done.out


def words(done: Done) -> str:
    """All that it said, on one line."""
    return " ".join((done.out + done.err).split())


@contextmanager
def changed(world: FleetWorld, change: str, back: str, host: str = "web1") -> Iterator[None]:
    """A host changed by a command of root's, and put back."""
    root(world, change, host)
    try:
        yield
    finally:
        root(world, back, host)


def test_a_variable_that_systemd_does_not_take_from_the_file_is_found_and_nothing_beside_it_is_changed(
    two: FleetWorld,
) -> None:
    """`export`, and a line that looks like the variable inside a value of several lines."""
    spoil = (
        f"sed -i 's/^GLPI_TIMEOUT_S=/export &/' {ENV_FILE}; echo {shlex.quote(CERT)} >>{ENV_FILE}"
    )
    with changed(two, f"cp -p {ENV_FILE} /root/env; {spoil}", f"cp -p /root/env {ENV_FILE}"):
        before = root(two, f"cat {ENV_FILE}")
        looked = inv(two, "diagnose")
        assert "GLPI_TIMEOUT_S: not set" in looked.out, looked.out
        assert "takes 'export GLPI_TIMEOUT_S' as the name" in words(looked)
        done = inv(two, "remediate", "--yes")
        assert done.code == 0, done.out + done.err
        assert root(two, f"cat {ENV_FILE}") == before + "GLPI_TIMEOUT_S=30\n"
        pid = root(two, f"systemctl show -P MainPID {LOW}").strip()
        assert "GLPI_TIMEOUT_S=30\n" in root(two, f"tr '\\0' '\\n' </proc/{pid}/environ")
        undone = inv(two, "undo", "last", "--yes")
        assert undone.code == 0, undone.out + undone.err
        assert root(two, f"cat {ENV_FILE}") == before
    healed = inv(two, "remediate", "--yes")
    assert healed.code == 0, healed.out + healed.err


def test_a_drop_in_that_takes_a_variable_away_is_found_in_the_process(two: FleetWorld) -> None:
    folder = f"{UNITS}/{LOW}.service.d"
    take_away = (
        f"mkdir {folder}; printf '[Service]\nUnsetEnvironment=GLPI_TIMEOUT_S\n' >{folder}/x.conf"
    )
    again = f"systemctl daemon-reload; systemctl restart {LOW}"
    with changed(two, f"{take_away}; {again}", f"rm -r {folder}; {again}"):
        looked = inv(two, "diagnose")
        assert "environment.not_in_effect" in looked.out, looked.out
        assert "GLPI_TIMEOUT_S: not set" in looked.out


def test_a_unit_that_has_our_name_only_as_an_alias_is_left_as_it_is_and_the_rest_of_its_host_is_looked_at(
    two: FleetWorld,
) -> None:
    unit, theirs, other = (
        f"{UNITS}/celery-beat.service",
        f"{UNITS}/printer-beat.service",
        "celery-worker@worker_daemon",
    )
    change = (
        f"systemctl disable --now celery-beat; mv {unit} {theirs}; ln -s {theirs} {unit}; systemctl"
        f" daemon-reload; systemctl start printer-beat; systemctl stop {other}"
    )
    back = (
        f"systemctl stop printer-beat; rm {unit}; mv {theirs} {unit}; systemctl daemon-reload; "
        "systemctl enable --now celery-beat"
    )
    with changed(two, change, back, "broker"):
        show = f"cat {theirs}; readlink {unit}; systemctl show -P InvocationID printer-beat"
        before = root(two, show, "broker")
        done = inv(two, "remediate", "--yes")
        assert done.code == 2, done.out + done.err
        assert "celery-beat.service is an alias of printer-beat.service" in words(done)
        assert root(two, show, "broker") == before
        assert root(two, f"systemctl is-active {other}", "broker") == "active\n"


def test_a_worker_of_a_users_own_systemd_is_named_with_what_ends_it(two: FleetWorld) -> None:
    manager = (
        "[Service]\nType=notify\nUser=%i\nSlice=user-%i.slice\nDelegate=yes\nRuntimeDirectory=user/%i\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\nExecStart=/lib/systemd/systemd"
        " --user\n"
    )
    worker = (
        "[Service]\nWorkingDirectory=/srv/printer_inventory\nEnvironmentFile=/etc/printer_inventory.env\nExecStart=/srv/venv/bin/python"
        " -m celery -A printer_inventory worker -n mine@web1 -Q daemon --pool=solo\n"
    )
    as_user = "sudo -u deploy XDG_RUNTIME_DIR=/run/user/1000 systemctl --user"
    change = (
        f"printf %s {shlex.quote(manager)} >{UNITS}/user@.service; systemctl daemon-reload;"
        " systemctl start user@1000; printf %s"
        f" {shlex.quote(worker)} >/etc/systemd/user/printers.service; {as_user} daemon-reload;"
        f" {as_user} start printers"
    )
    files = f"{UNITS}/user@.service /etc/systemd/user/printers.service"
    back = f"systemctl stop user@1000; rm {files}; systemctl daemon-reload"
    with changed(two, change, back):
        looked = words(inv(two, "diagnose"))
        assert (
            "printers.service of user 1000 runs worker mine@web1 in addition to the inventory's services"
            in looked
        ), looked
        assert "units of a user's own systemd (systemctl --user) are not checked" in looked
        command = re.search(r"end it on web1: (sudo -u '#1000' .*? printers\.service)", looked)
        assert command, looked
        assert two.ssh("web1", command[1]).code == 0
        assert root(two, f"{as_user} is-active printers || :") == "inactive\n"


def test_a_host_with_entries_for_cron_and_no_cron_is_reported(two: FleetWorld) -> None:
    assert "cron." not in inv(two, "diagnose").out
    with changed(two, "systemctl stop cron", "systemctl start cron", "broker"):
        looked = inv(two, "diagnose")
        assert "cron.not_running" in looked.out, looked.out
        assert "no cron runs on broker" in looked.out


def test_one_host_under_two_names_is_an_error_of_the_inventory_before_anything_is_done(
    two: FleetWorld,
) -> None:
    text = (two.fleet / "inventory.yaml").read_text()
    line = re.search(r"\n( +)web1:.*?(ansible_host: [\d.]+)", text, re.DOTALL)
    assert line
    twice = text.replace(line[0], f"\n{line[1]}twin: {{{line[2]}}}{line[0]}")
    (two.fleet / "twice.yaml").write_text(twice)
    before = root(two, f"sha256sum {UNITS}/*.service; systemctl show -P InvocationID {HIGH} {LOW}")
    done = two.inv("remediate", "--yes", "--inventory", ".fleet/twice.yaml")
    assert done.code == 5, done.out + done.err
    assert "are one machine" in done.out + done.err
    assert (
        root(two, f"sha256sum {UNITS}/*.service; systemctl show -P InvocationID {HIGH} {LOW}")
        == before
    )


FOREIGN = """\
[Service]
Type=simple
KillMode=process
User=deploy
Environment=GREETING=hello "NOTE=hunter2 secret=x" PATH=/usr/bin:/bin
Environment='QUOTED=it is'
ExecStart=/srv/venv/bin/python -m celery -A printer_inventory beat -s /tmp/foreign
[Install]
WantedBy=multi-user.target
"""


def test_units_that_name_celery_are_reported_also_where_they_do_not_run(two: FleetWorld) -> None:
    """A unit that is enabled and stopped starts with the host; one of a template's instances is
    enabled by its link.
    """
    files = f"{UNITS}/foreign.service {UNITS}/foreign@.service"
    write = (
        f"printf %s {shlex.quote(FOREIGN)} | tee {files} >/dev/null; systemctl -q enable foreign"
        " foreign@one"
    )
    remove = f"systemctl -q disable foreign foreign@one; rm {files}; systemctl daemon-reload"
    host = make_host(
        "web1", directory="/srv/printer_inventory", service_manager="systemd", commands=None
    )
    script = ask_census(host, manager_of(host).own_groups)
    with changed(two, write, remove):
        said = two.ssh("web1", "sudo sh -s", stdin=script)
    assert "hunter2" not in said.out
    seen = parse_census(Answer(said.code, said.out.encode(), said.err), Clock(0.0, 0.0, 100), {})
    assert set(seen.units) == {"foreign.service", "foreign@one.service"}
    assert seen.units["foreign.service"] == Unit(
        "foreign.service", f"{UNITS}/foreign.service", "enabled", "simple", "process", "inactive", "dead",
        names_celery=True, user="deploy", variables=("GREETING", "NOTE", "PATH", "QUOTED"),
        lines=(f"{UNITS}/foreign.service:3: KillMode=process",),
    )  # fmt: skip
    kinds = {(one.unit, one.kind) for one in seen.processes}
    assert {
        (f"{HIGH}.service", Kind.MAIN),
        (f"{HIGH}.service", Kind.CHILD),
        (f"{LOW}.service", Kind.MAIN),
    } <= kinds
    assert {one.user for one in seen.processes if one.unit == f"{HIGH}.service"} == {"deploy"}
    mains = [one.pid for one in seen.processes if one.kind is Kind.MAIN]
    again = two.ssh(
        "web1", "sudo sh -s", stdin=ask_census(host, manager_of(host).own_groups, mains)
    )
    asked = parse_census(
        Answer(again.code, again.out.encode(), again.err), Clock(0.0, 0.0, 100), {}
    )
    assert all(
        one.named_broker and one.connections for one in asked.processes if one.kind is Kind.MAIN
    )


@pytest.mark.parametrize(
    "code",
    [
        "host.login_refused",
        "environment.missing",
        "unit.missing",
        "service.runs_elsewhere",
        "cron.missing",
        "timer.missing",
        "logrotate.by_another",
    ],
)
def test_of_each_kind_of_fault_on_hosts_the_cause_is_reported_first(
    two: FleetWorld, code: str
) -> None:
    ground = Hosts(two)
    row = tried_alone(code, ground)
    assert row.well, row
    wait_until(lambda: look(ground).faults == [], "a fleet that is well again")
