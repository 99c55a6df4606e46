"""The environment step: exactly the inventory's variables, and the way back."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.effects import Change, SetEnvironment
from runbooks.core.fleet import FleetHost
from runbooks.core.model import (
    Block,
    FileState,
    Finding,
    HostState,
    ServiceState,
    Severity,
    Unreachable,
)
from runbooks.core.settings import Worker
from runbooks.diagnosis.environment import drift, faults
from runbooks.diagnosis.since_start import changed_since_start, digest_of
from runbooks.diagnosis.steps import environment_step
from tests.unit.fleets import ENV_FILE, NOW, make_fleet, make_host, make_snapshot, make_state

HOST = make_host(env={"TIMEOUT": "30", "URL": "http://x y"})
FLEET = make_fleet(HOST)


def state_with(content: bytes | None) -> HostState:
    return replace(make_state(HOST), files={ENV_FILE: FileState(content, 0o640, NOW)})


def plan(content: bytes | None) -> tuple[Change, ...]:
    return environment_step(FLEET).plan(make_snapshot(FLEET, hosts={"web1": state_with(content)}))


def test_nothing_is_to_do_where_the_file_holds_the_inventorys_values_however_they_are_written() -> (
    None
):
    assert plan(b"OTHER=1\nexport TIMEOUT=30\nURL='http://x y'\n") == ()


def test_only_the_variables_that_differ_are_set_and_undo_gives_back_what_was_there() -> None:
    (change,) = environment_step(FLEET).plan(
        make_snapshot(
            FLEET, hosts={"web1": state_with(b"TIMEOUT=x\nURL='http://x y'\nTOKEN=s3cret\n")}
        )
    )
    assert (change.host, change.step) == ("web1", "environment")
    assert change.do == SetEnvironment(ENV_FILE, {"TIMEOUT": "30"}, {"TIMEOUT": "x"}, "shell")
    assert change.undo == SetEnvironment(
        ENV_FILE, {"TIMEOUT": "x"}, {"TIMEOUT": "30"}, "shell", NOW, as_written={"TIMEOUT": "x"}
    )
    assert change.detail == f"--- {ENV_FILE}\n+++ {ENV_FILE}\n-TIMEOUT=x\n+TIMEOUT=30"
    assert "s3cret" not in repr(change)


def test_a_variable_that_is_missing_is_added_and_undo_takes_it_out() -> None:
    (change,) = environment_step(FLEET).plan(make_snapshot(FLEET, hosts={"web1": state_with(None)}))
    assert change.undo == SetEnvironment(
        ENV_FILE,
        {"TIMEOUT": None, "URL": None},
        {"TIMEOUT": "30", "URL": "http://x y"},
        "shell",
        NOW,
        was_absent=True,
    )
    assert "-TIMEOUT" not in change.detail


def test_a_file_that_is_not_utf_8_is_not_a_reason_to_stop_where_a_shell_reads_it() -> None:
    assert plan(b"NOTE=caf\xe9\nTIMEOUT=30\nURL='http://x y'\n") == ()


def test_a_host_that_does_not_answer_is_left_out() -> None:
    fleet = make_fleet(make_host("web1"), make_host("web2"))
    snapshot = make_snapshot(fleet, hosts={"web1": Unreachable("gone")})
    assert environment_step(fleet).plan(snapshot) == ()


def test_drift_tells_a_missing_variable_from_an_empty_one() -> None:
    state = replace(make_state(HOST), files={ENV_FILE: FileState(b"TIMEOUT=\n", 0o640, NOW)})
    assert drift(HOST, state) == {"TIMEOUT": "", "URL": None}


def test_a_value_that_holds_a_password_is_neither_shown_nor_written_down_nor_replaced() -> None:
    (change,) = plan(b"TIMEOUT=x\nURL=redis://:s3cret@cache/1\n")
    assert change.do == SetEnvironment(ENV_FILE, {"TIMEOUT": "30"}, {"TIMEOUT": "x"}, "shell")
    assert plan(b"TIMEOUT=30\nURL=redis://:s3cret@cache/1\n") == ()


SYSTEMD = make_host(service_manager="systemd", commands=None)
OF_OTHERS = Worker(name="high", queues=("high_q",), unit="celery.service")


def found(content: bytes, host: FleetHost = SYSTEMD, **changes: Any) -> list[Finding]:
    state = make_state(host, files={ENV_FILE: FileState(content, 0o640, NOW - 1000)}, **changes)
    return list(faults(make_fleet(host), make_snapshot(make_fleet(host), hosts={"web1": state})))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"TIMEOUT=30\nNAME=M\xfcnster\n",
            "line 2, column 7: systemd refuses the file and starts nothing: ",
        ),
        (
            b"TIMEOUT=30\nNAME='x\n",
            "line 2, column 6: this quote is never closed, so systemd takes the rest of the file",
        ),
    ],
)
def test_a_file_that_its_reader_cannot_read_blocks_its_host(content: bytes, expected: str) -> None:
    (finding,) = found(content)
    assert finding.code == "environment.unreadable"
    assert finding.summary.startswith(f"{ENV_FILE}, {expected}")
    assert finding.blocks == (Block("web1"),)
    assert finding.fix == ()


@pytest.mark.parametrize(
    ("host", "reported"),
    [
        (SYSTEMD, True),
        (make_host(), True),
        (make_host(env={}), False),
        (make_host(service_manager="systemd", commands=None, env={}), True),
        (make_host(service_manager="systemd", commands=None, env={}, workers=(OF_OTHERS,), beat=False), False),
    ],
    ids=["our units", "commands", "commands, no celery_env", "our units, no celery_env", "another's unit"],
)  # fmt: skip
def test_a_file_that_does_not_exist_is_reported_where_something_needs_it(
    host: FleetHost, reported: bool
) -> None:
    state = make_state(host, files={ENV_FILE: FileState(None)})
    findings = faults(make_fleet(host), make_snapshot(make_fleet(host), hosts={"web1": state}))
    missing = [finding for finding in findings if finding.code == "environment.missing"]
    assert len(missing) == reported
    effect = "systemd starts no service that needs it"
    if not host.manager.has_drop_ins:
        effect = "services start without its variables"
    assert all(effect in finding.summary for finding in missing)
    assert all("restore everything else" in finding.evidence[1] for finding in missing)


def test_a_folder_in_the_place_of_the_file_is_said_to_be_one_and_blocks_its_host() -> None:
    state = make_state(SYSTEMD, files={ENV_FILE: FileState(None, is_folder=True)})
    fleet = make_fleet(SYSTEMD)
    (finding,) = faults(fleet, make_snapshot(fleet, hosts={"web1": state}))
    assert (finding.code, finding.blocks) == ("environment.is_folder", (Block("web1"),))
    assert finding.evidence == (
        "celery_env_file of the inventory names it: correct that, or put the file in its place",
    )


def test_a_byte_in_a_comment_that_is_not_utf_8_keeps_nothing_from_being_read() -> None:
    assert found(b"# M\xfcnster\nTIMEOUT=30\n") == []


def test_a_variable_that_systemd_ignores_is_not_set_and_the_line_that_seems_to_set_it_is_named() -> (
    None
):
    (finding,) = found(b"A=1\nexport TIMEOUT=30\n")
    assert finding.evidence == (
        "TIMEOUT: not set, the inventory says '30'",
        (
            "line 2, column 1: this line does not set TIMEOUT: the reader takes 'export"
            " TIMEOUT' as the name"
        ),
    )
    assert found(b"A=1\nexport TIMEOUT=30\n", make_host()) == []


def test_a_variable_is_not_judged_where_only_the_shell_knows_it() -> None:
    host = make_host(env={"A": "1", "B": "2", "TIMEOUT": "30"})
    (finding,) = found(b"A=1\n[ -r more ] && . more\nTIMEOUT=30\nB=$(id -u)\n", host)
    assert (finding.code, finding.severity, finding.fix) == (
        "environment.unknown",
        Severity.WARNING,
        (),
    )
    assert finding.summary == f"whether A, B in {ENV_FILE} are as in the inventory is not known"
    assert finding.evidence == (
        "line 2, column 1: what this line does shows only in the shell",
        "line 4, column 3: the value of B shows only in the shell",
    )
    assert found(b"A=1\nTIMEOUT=30\nB=2\n", host) == []
    (finding,) = found(b"A=1\nTIMEOUT=30\nB=3\n", host)
    assert finding.code == "environment.differs"


def test_what_cannot_be_set_without_a_change_of_the_rest_is_reported_and_left() -> None:
    (finding,) = found(b"A=1\n# more \\")
    assert (finding.code, finding.fix, finding.remedy) == ("environment.differs", (), None)
    assert finding.evidence[-1].startswith("not changed: ")


def test_what_a_start_script_does_not_export_is_reported_with_what_it_has_to_do_and_restarts_nothing() -> (
    None
):
    host = make_host()
    services = {"high": ServiceState(100, NOW - 500, "", environment={"PATH": digest_of("/bin")})}
    (finding,) = found(b"TIMEOUT=30\n", host, services=services)
    assert (finding.code, finding.fix) == ("environment.not_in_effect", ())
    assert finding.evidence == (
        "TIMEOUT: not set",
        (
            "its start command has to export what it reads from the file, as set -a does, and not"
            " change it later"
        ),
    )
    younger = make_state(
        host, files={ENV_FILE: FileState(b"TIMEOUT=30\n", 0o640, NOW)}, services=services
    )
    assert changed_since_start(host, "high", younger) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TIMEOUT": digest_of("31")}, "TIMEOUT: another value"),
        ({}, "TIMEOUT: not set"),
        (None, None),
    ],
)
def test_a_service_that_was_started_on_the_file_and_has_not_its_value_is_reported(
    environment: dict[str, str] | None, expected: str | None
) -> None:
    services = {
        "high": ServiceState(100, NOW - 500, "", environment=environment),
        "beat": ServiceState(101, NOW - 500, "", environment={"TIMEOUT": digest_of("30")}),
    }
    findings = found(b"TIMEOUT=30\n", services=services)
    assert [(one.code, one.subject, one.evidence[0]) for one in findings] == (
        [("environment.not_in_effect", "high on web1", expected)] if expected else []
    )
    unit = "systemctl cat celery-worker@high.service"
    assert all(one.evidence[1].endswith(unit) for one in findings)
    services = {name: replace(service, started_at=NOW - 1001) for name, service in services.items()}
    assert found(b"TIMEOUT=30\n", services=services) == [], (
        "it was started before the file was written"
    )
