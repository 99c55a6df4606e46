"""What systemd reports about a service, and whether it still tries."""

import pytest

from runbooks.core.effects import sha256
from runbooks.core.errors import RunbookError
from runbooks.core.model import DropIn, ServiceState
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import Answer
from runbooks.hosts.services.systemd import Systemd, parse_units

CLOCK = Clock(1_000_000.0, 5000.0, 100)

SHOWN = """\
Restart=on-failure
NRestarts={restarts}
MainPID={pid}
Result={result}
Type=exec
Id=celery-worker@high.service
Names=celery-worker@high.service
LoadState=loaded
ActiveState={active}
SubState={sub}
DropInPaths=/etc/systemd/system/celery-worker@high.service.d/a.conf /run/b.conf /run/gone.conf
UnitFileState=enabled
NeedDaemonReload=no
---
1000.5 2000.5 /etc/systemd/system/celery-worker@high.service.d/a.conf
4000.5 3000.5 /run/b.conf
{a}  /etc/systemd/system/celery-worker@high.service.d/a.conf
{b}  /run/b.conf
/etc/systemd/system/celery-worker@high.service.d/a.conf:Nice=5
/etc/systemd/system/celery-worker@high.service.d/a.conf:Environment=A=b:c
---
{running}""".replace("{a}", "a" * 64).replace("{b}", "b" * 64)


def high(
    *, restarts: int = 0, pid: int = 0, result: str = "exit-code", active: str, sub: str
) -> ServiceState:
    stat = f"{pid} (celery) S 1 " + " ".join(["0"] * 17) + " 400000 0\n"
    running = f"celery-worker@high.service celery {stat}" if pid else ""
    said = SHOWN.format(
        restarts=restarts, pid=pid, result=result, active=active, sub=sub, running=running
    )
    return parse_units(Answer(0, said.encode(), ""), CLOCK)["high"]


def test_a_name_that_is_another_units_is_reported_and_that_unit_is_not_a_service_of_ours() -> None:
    said = SHOWN.format(
        restarts=0, pid=0, result="success", active="active", sub="running", running=""
    )
    names = said.replace("Names=", "Names=shop.service shop-worker.service ")
    theirs = names.replace("Id=celery-worker@high.service", "Id=shop.service")
    found = parse_units(Answer(0, theirs.encode(), ""), CLOCK)
    assert found["high"].alias_of == found["shop-worker.service"].alias_of == "shop.service"
    assert parse_units(Answer(0, names.encode(), ""), CLOCK)["high"].alias_of == ""


@pytest.mark.parametrize(
    ("restarts", "result", "active", "sub", "gave_up"),
    [
        (5, "start-limit-hit", "failed", "failed", True),
        (0, "exit-code", "failed", "failed", True),
        (0, "exit-code", "activating", "auto-restart", False),
        (1, "exit-code", "activating", "auto-restart", True),
        (2, "exit-code", "activating", "auto-restart-queued", True),
        (0, "success", "inactive", "dead", False),
        (0, "success", "activating", "start", False),
    ],
)
def test_a_service_that_failed_or_fails_again_and_again_need_not_be_waited_for(
    restarts: int, result: str, active: str, sub: str, gave_up: bool
) -> None:
    found = high(restarts=restarts, result=result, active=active, sub=sub)
    assert (found.pid, found.gave_up) == (None, gave_up)
    assert found.answer.startswith(f"loaded, {active} ({sub})")
    assert (f", automatic restarts: {restarts}" in found.answer) is bool(restarts)


def test_a_service_that_runs_is_not_one_of_these_however_often_it_failed_before() -> None:
    found = high(restarts=7, pid=42, result="success", active="active", sub="running")
    assert (found.pid, found.gave_up, found.started_at) == (42, False, 999_000.0)


def test_a_drop_in_has_the_time_of_its_last_change_and_no_later_one_than_when_it_was_put_there() -> (
    None
):
    found = high(active="inactive", sub="dead")
    assert found.drop_ins == {
        "/etc/systemd/system/celery-worker@high.service.d/a.conf": DropIn(
            1000.5, "a" * 64, ("Nice=5", "Environment=A=b:c")
        ),
        "/run/b.conf": DropIn(3000.5, "b" * 64),
        "/run/gone.conf": DropIn(0.0, "absent"),
    }


WAITING = (
    "celery-worker@high.service celery 77 (celery) S 1 " + " ".join(["0"] * 17) + " 400000 0\n"
)


@pytest.mark.parametrize(
    ("active", "sub", "leaked", "starting"),
    [
        ("activating", "start", 0, True),
        ("activating", "auto-restart", 0, False),
        ("inactive", "dead", 1, False),
    ],
)
def test_nothing_is_leaked_while_a_unit_is_being_started_and_has_no_main_process(
    active: str, sub: str, leaked: int, starting: bool
) -> None:
    said = SHOWN.format(
        restarts=0, pid=0, result="success", active=active, sub=sub, running=WAITING
    )
    found = parse_units(Answer(0, said.encode(), ""), CLOCK)["high"]
    assert (len(found.leaked), found.starting, found.masked) == (leaked, starting, False)


@pytest.mark.parametrize(
    ("what", "parent", "started", "leaked"),
    [
        ("celery", 1, 300_000, (50, 51)),  # a worker of an earlier start, and its pool
        ("celery", 1, 500_000, ()),  # what a task has sent into the background
        ("-", 1, 300_000, ()),  # a helper that was started before the worker
        ("-", 1, 500_000, ()),
        ("-", 42, 500_000, ()),
    ],
)
def test_leaked_is_what_comes_from_a_worker_of_an_earlier_start(
    what: str, parent: int, started: int, leaked: tuple[int, ...]
) -> None:
    def line(pid: int, what: str, parent: int, started: int) -> str:
        return (
            f"celery-worker@high.service {what} {pid} (x) S"
            f" {parent} {' '.join(['0'] * 17)} {started} 0\n"
        )

    running = (
        line(42, "celery", 1, 400_000)
        + line(50, what, parent, started)
        + line(51, "-", 50, 600_000)
    )
    said = SHOWN.format(
        restarts=0, pid=42, result="success", active="active", sub="running", running=running
    )
    found = parse_units(Answer(0, said.encode(), ""), CLOCK)["high"]
    assert tuple(process.pid for process in found.leaked) == leaked


def test_the_environment_that_a_process_was_started_with_is_known_by_its_digests() -> None:
    stat = "42 (celery) S 1 " + " ".join(["0"] * 17) + " 400000 0\n"
    running = (
        f"celery-worker@high.service celery {stat}---\n==> /proc/42/environ"
        " <==\nTOKEN=a=b\nc\0LANG=C\0"
    )
    said = SHOWN.format(
        restarts=0, pid=42, result="success", active="active", sub="running", running=running
    )
    found = parse_units(Answer(0, said.encode(), ""), CLOCK)["high"]
    assert found.environment == {"TOKEN": sha256(b"a=b\nc"), "LANG": sha256(b"C")}


def daemons(main: int, *processes: tuple[int, int]) -> ServiceState:
    """A unit as `celery multi` has it, which was last started at tick 300,000; its daemons, each
    with its start.
    """
    running = "".join(
        f"celery-worker@high.service celery {pid} (celery) S 1 {' '.join(['0'] * 17)} {at} 0\n"
        for pid, at in processes
    )
    said = SHOWN.format(
        restarts=0, pid=main, result="success", active="active", sub="running", running=running
    )
    forking = said.replace("Type=exec", "Type=forking\nInactiveExitTimestampMonotonic=3000000000")
    return parse_units(Answer(0, forking.encode(), ""), CLOCK)["high"]


def test_the_daemons_of_one_start_are_not_left_overs_of_each_other_but_those_of_an_earlier_one_are() -> (
    None
):
    found = daemons(42, (42, 300_200), (43, 300_100), (44, 290_000))
    assert (found.pid, [one.pid for one in found.leaked]) == (42, [44])


def test_where_systemd_guessed_no_main_process_it_is_the_first_daemon() -> None:
    found = daemons(0, (42, 300_200), (43, 300_100))
    assert (found.pid, found.leaked) == (43, ())


def test_a_unit_of_someone_elses_shows_what_it_reads_and_whether_it_is_there() -> None:
    said = SHOWN.format(
        restarts=0, pid=0, result="success", active="inactive", sub="dead", running=""
    )
    theirs = said.replace("celery-worker@high.service", "shop.service").replace(
        "UnitFileState=enabled", "UnitFileState=static\n"
        "EnvironmentFiles=/etc/a b.env (ignore_errors=no)\nEnvironmentFiles=/etc/*.env (ignore_errors=yes)"
    )  # fmt: skip
    found = parse_units(Answer(0, theirs.encode(), ""), CLOCK)["shop.service"]
    assert (found.reads, found.enabled, found.exists) == (
        ("/etc/a b.env", "/etc/*.env"),
        True,
        True,
    )
    gone = parse_units(Answer(0, theirs.replace("loaded", "not-found").encode(), ""), CLOCK)[
        "shop.service"
    ]
    assert not gone.exists


@pytest.mark.parametrize(
    ("name", "state", "enabled"),
    [
        ("celery-worker@high.service", "enabled", True),
        ("celery-worker@high.service", "disabled", False),
        ("celery-worker@high.service", "static", False),
        ("shop.service", "disabled", False),
        ("shop.service", "static", True),
        ("shop.service", "generated", True),
    ],
)
def test_a_unit_of_ours_has_to_be_enabled_and_one_of_someone_elses_only_not_to_be_disabled(
    name: str, state: str, enabled: bool
) -> None:
    said = SHOWN.format(
        restarts=0, pid=0, result="success", active="inactive", sub="dead", running=""
    )
    said = said.replace("celery-worker@high.service", name)
    said = said.replace("UnitFileState=enabled", f"UnitFileState={state}")
    (found,) = parse_units(Answer(0, said.encode(), ""), CLOCK).values()
    assert found.enabled is enabled


def test_systemctl_show_says_that_a_unit_is_masked_or_was_not_read() -> None:
    said = SHOWN.format(
        restarts=0, pid=0, result="success", active="inactive", sub="dead", running=""
    )
    (found,) = parse_units(Answer(0, said.encode(), ""), CLOCK).values()
    assert (found.masked, found.needs_reload) == (False, False)
    said = said.replace("LoadState=loaded", "LoadState=masked")
    said = said.replace("NeedDaemonReload=no", "NeedDaemonReload=yes")
    (found,) = parse_units(Answer(0, said.encode(), ""), CLOCK).values()
    assert (found.masked, found.needs_reload) == (True, True)


@pytest.mark.parametrize(
    ("enabled", "active", "is_on"),
    [
        ("enabled", "active", True),
        ("enabled", "inactive", False),
        ("disabled", "active", False),
    ],
)
def test_a_timer_is_on_where_it_is_enabled_and_active(
    enabled: str, active: str, is_on: bool
) -> None:
    timer = "celery-cron-shop-1.timer"
    shown = (
        f"Result=success\nId={timer}\nNames={timer}\nLoadState=loaded\nActiveState={active}\n"
        f"SubState=waiting\nDropInPaths=\nUnitFileState={enabled}\nNeedDaemonReload=no\n"
    )
    found = parse_units(Answer(0, f"{shown}---\n---\n".encode(), ""), CLOCK)
    assert found[timer].enabled is is_on
    assert " --now " in Systemd().enable(timer, True, reload=False), "it is also started"


def test_a_systemd_that_does_not_answer_is_reported_with_what_it_said() -> None:
    answer = Answer(1, b"", "Failed to connect to bus: No such file or directory\n")
    with pytest.raises(RunbookError, match=r"systemd does not answer: Failed to connect") as error:
        parse_units(answer, CLOCK)
    assert "celery_service_manager" in error.value.advice


def test_what_runs_our_services_is_known_without_asking_once_more() -> None:
    said = SHOWN.format(
        restarts=3, pid=7, result="success", active="active", sub="running", running=""
    )
    said = said.replace(
        "Type=exec", "Type=exec\nKillMode=process\nUser=deploy\nFragmentPath=/etc/a.service"
    )
    (unit,) = Systemd().units({"units": Answer(0, said.encode(), "")}).values()
    assert (unit.name, unit.path, unit.enabled, unit.type, unit.kill_mode, unit.user, unit.restarts) == (
        "celery-worker@high.service", "/etc/a.service", "enabled", "exec", "process", "deploy", 3,
    )  # fmt: skip
    assert unit.names_celery
    assert unit.variables is None, "not asked"
