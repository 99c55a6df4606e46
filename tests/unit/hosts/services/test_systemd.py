"""What systemd tells of a service, and whether it still tries."""

import pytest

from runbooks.core.effects import sha256
from runbooks.core.model import DropIn, ServiceState
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import Answer
from runbooks.hosts.services.systemd import parse_units

CLOCK = Clock(1_000_000.0, 5000.0, 100)

SHOWN = """\
Restart=on-failure
NRestarts={restarts}
MainPID={pid}
Result={result}
Id=celery-worker@high.service
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
---
{running}""".replace("{a}", "a" * 64).replace("{b}", "b" * 64)


def high(*, restarts: int = 0, pid: int = 0, result: str = "exit-code", active: str, sub: str) -> ServiceState:
    stat = f"{pid} (celery) S 1 " + " ".join(["0"] * 17) + " 400000 0\n"
    running = f"celery-worker@high.service celery {stat}" if pid else ""
    said = SHOWN.format(restarts=restarts, pid=pid, result=result, active=active, sub=sub, running=running)
    return parse_units(Answer(0, said.encode(), ""), CLOCK)["high"]


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


def test_a_service_that_runs_is_none_of_these_however_often_it_failed_before() -> None:
    found = high(restarts=7, pid=42, result="success", active="active", sub="running")
    assert (found.pid, found.gave_up, found.started_at) == (42, False, 999_000.0)


def test_a_drop_in_has_the_time_of_its_last_change_and_no_later_one_than_when_it_was_put_there() -> None:
    found = high(active="inactive", sub="dead")
    assert found.drop_ins == {
        "/etc/systemd/system/celery-worker@high.service.d/a.conf": DropIn(1000.5, "a" * 64),
        "/run/b.conf": DropIn(3000.5, "b" * 64),
        "/run/gone.conf": DropIn(0.0, "absent"),
    }


WAITING = "celery-worker@high.service celery 77 (celery) S 1 " + " ".join(["0"] * 17) + " 400000 0\n"


@pytest.mark.parametrize(
    ("active", "sub", "leaked", "starting"),
    [("activating", "start", 0, True), ("activating", "auto-restart", 0, False), ("inactive", "dead", 1, False)],
)
def test_nothing_is_leaked_while_a_unit_is_being_started_and_has_no_main_process(
    active: str, sub: str, leaked: int, starting: bool
) -> None:
    said = SHOWN.format(restarts=0, pid=0, result="success", active=active, sub=sub, running=WAITING)
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
        return f"celery-worker@high.service {what} {pid} (x) S {parent} {' '.join(['0'] * 17)} {started} 0\n"

    running = line(42, "celery", 1, 400_000) + line(50, what, parent, started) + line(51, "-", 50, 600_000)
    said = SHOWN.format(restarts=0, pid=42, result="success", active="active", sub="running", running=running)
    found = parse_units(Answer(0, said.encode(), ""), CLOCK)["high"]
    assert tuple(process.pid for process in found.leaked) == leaked


def test_the_environment_that_a_process_was_started_with_is_known_by_its_digests() -> None:
    stat = "42 (celery) S 1 " + " ".join(["0"] * 17) + " 400000 0\n"
    running = f"celery-worker@high.service celery {stat}---\n==> /proc/42/environ <==\nTOKEN=a=b\nc\0LANG=C\0"
    said = SHOWN.format(restarts=0, pid=42, result="success", active="active", sub="running", running=running)
    found = parse_units(Answer(0, said.encode(), ""), CLOCK)["high"]
    assert found.environment == {"TOKEN": sha256(b"a=b\nc"), "LANG": sha256(b"C")}
