"""The file steps: bytes and mode exactly as wanted, a diff to read before, and the way back."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from runbooks.core.effects import Change, EnableService, WriteFile, sha256
from runbooks.core.fleet import FleetHost, mark_of
from runbooks.core.foreign import Foreign
from runbooks.core.model import (
    Block,
    FileState,
    Finding,
    Rotation,
    ServiceState,
    Severity,
    Unreachable,
)
from runbooks.core.settings import CronEntry, MonitorSettings, Worker
from runbooks.diagnosis.files import of_kind, same_machine
from runbooks.diagnosis.steps import file_step
from runbooks.diagnosis.wanted_files import (
    MODE,
    Kind,
    cron_files,
    diff,
    logrotate_files,
    unit_files,
)
from runbooks.inventory.templates import Templates
from tests.unit.fleets import NOW, in_place, make_fleet, make_host, make_snapshot, make_state

CHECKOUT = Path(__file__).parents[3]
HOST = make_host(user="deploy")
FLEET = make_fleet(HOST)
PATH = "/etc/cron.d/celery-shop"
MARK = f"{mark_of('shop')}\n".encode()
ONE_TWO = MARK + b"one\ntwo\n"
WANTED = {"web1": {PATH: ONE_TWO}}


def plan(file: FileState) -> tuple[Change, ...]:
    state = replace(make_state(HOST), files={**make_state(HOST).files, PATH: file})
    return file_step(FLEET, "cron", WANTED).plan(make_snapshot(FLEET, hosts={"web1": state}))


def test_nothing_is_to_do_where_bytes_and_mode_are_right_also_if_another_user_owns_the_file() -> (
    None
):
    assert plan(in_place(ONE_TWO)) == ()
    assert plan(FileState(ONE_TWO, MODE, NOW)) == ()


def test_a_missing_file_is_created_and_undo_removes_it() -> None:
    (change,) = plan(FileState(None))
    assert change.summary == f"create {PATH}"
    assert change.do == WriteFile(PATH, ONE_TWO, MODE, "absent")
    assert change.undo == WriteFile(PATH, None, 0, sha256(ONE_TWO))
    assert (
        change.detail
        == f"--- /dev/null\n+++ {PATH}\n@@ -0,0 +1,3 @@\n+{mark_of('shop')}\n+one\n+two"
    )


def test_a_differing_file_is_changed_and_undo_puts_back_its_bytes_and_mode() -> None:
    edited = MARK + b"one\n2\xff\n"
    (change,) = plan(in_place(edited, 0o600))
    assert change.summary == f"change {PATH}"
    assert change.do == WriteFile(PATH, ONE_TWO, MODE, sha256(edited))
    assert change.undo == WriteFile(PATH, edited, 0o600, sha256(ONE_TWO), changed_at=NOW - 2000)
    assert change.detail.endswith(" one\n-2\ufffd\n+two")


def test_a_wrong_mode_alone_is_a_change_that_says_so() -> None:
    (change,) = plan(in_place(ONE_TWO, 0o666))
    assert change.detail == "mode 666 → 644"


def test_an_empty_file_is_not_a_missing_one() -> None:
    (change,) = plan(in_place(b""))
    assert change.summary == f"change {PATH}"
    assert diff(PATH, b"", b"x\n").startswith(f"--- {PATH}\n")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Environment=LANG=C DB_PASSWORD=hunter2", "Environment=LANG=C DB_PASSWORD=********"),
        ('Environment="DB_PASSWORD=hun ter2"', 'Environment="DB_PASSWORD=********'),
        ("API_KEY = 'hunter2 x'", "API_KEY = ********"),
        ("ExecStart=celery -b redis://:hunter2@h/0", "ExecStart=celery -b redis://********@h/0"),
    ],
)
def test_what_someone_wrote_into_a_file_of_ours_shows_no_secret(line: str, shown: str) -> None:
    said = diff(PATH, f"{line}\n".encode(), b"x\n")
    assert "hunter2" not in said
    assert "ter2" not in said
    assert f"-{shown}" in said


def test_a_host_that_does_not_answer_is_left_out() -> None:
    assert (
        file_step(FLEET, "cron", WANTED).plan(
            make_snapshot(FLEET, hosts={"web1": Unreachable("gone")})
        )
        == ()
    )


def test_the_rotation_of_logs_that_the_inventory_no_longer_has_is_removed() -> None:
    stale = in_place(b"# Managed by celery-runbooks for shop;\n")
    state = replace(make_state(HOST), managed={"/etc/logrotate.d/celery-shop": stale, PATH: stale})
    steps = file_step(FLEET, "logrotate", {"web1": {}})
    (change,) = steps.plan(make_snapshot(FLEET, hosts={"web1": state}))
    assert change.summary == "remove /etc/logrotate.d/celery-shop: the inventory no longer has it"


UNIT, TIMER = (
    "/etc/systemd/system/celery-beat.service",
    "/etc/systemd/system/celery-cron-shop-1.timer",
)
ROTATED = "/etc/logrotate.d/celery-shop"


@pytest.mark.parametrize(
    ("kind", "path", "codes"),
    [
        ("unit", UNIT, ("unit.missing", "unit.differs", "unit.not_ours", "unit.stale")),
        ("cron", PATH, ("cron.missing", "cron.differs", "cron.not_ours", "cron.stale")),
        ("timer", TIMER, ("timer.missing", "timer.differs", "timer.not_ours", "timer.stale")),
        (
            "logrotate",
            ROTATED,
            ("logrotate.missing", "logrotate.differs", "logrotate.not_ours", "logrotate.stale"),
        ),
    ],
)
def test_a_file_of_each_kind_is_missing_edited_another_owners_or_stale(
    kind: Kind, path: str, codes: tuple[str, str, str, str]
) -> None:
    host = make_host(service_manager="systemd", commands=None, cron_scheduler=OF_CRON.get(kind))
    fleet = make_fleet(host)

    def found(
        file: FileState | None, *, wanted: bool = True, theirs: bool = False
    ) -> list[Finding]:
        own = make_state(host)
        timers = {"celery-cron-shop-1.timer": own.services["beat"]}
        managed = {path: file} if file and not theirs else {}
        state = replace(
            own, files={**own.files, path: file or FileState(None)}, managed=managed, timers=timers
        )
        files = {"web1": {path: ONE_TWO} if wanted else {}}
        snapshot = make_snapshot(fleet, hosts={"web1": state})
        return list(of_kind(fleet, snapshot, kind, files))

    assert found(in_place(ONE_TWO)) == []
    assert found(in_place(b"another owner's"), wanted=False, theirs=True) == []
    missing, differs, not_ours, stale = codes
    (gone,) = found(None)
    assert (gone.code, gone.evidence, written(gone)) == (missing, (path,), [ONE_TWO])
    (edited,) = found(in_place(MARK + b"edited"))
    assert (edited.code, written(edited)) == (differs, [ONE_TWO])
    assert edited.evidence == (path, "  -edited", "  +one", "  +two")
    (open_to_all,) = found(in_place(ONE_TWO, 0o666))
    assert (open_to_all.code, written(open_to_all)) == (differs, [ONE_TWO])
    (theirs,) = found(in_place(b"another owner's"), theirs=True)
    assert (theirs.code, theirs.fix) == (not_ours, ())
    assert "`inv remediate --take-over --dry-run`" in theirs.evidence[-1]
    assert theirs.blocks == ((Block("web1", "beat"),) if kind == "unit" else ())
    (old,) = found(in_place(ONE_TWO), wanted=False)
    assert (old.code, written(old)) == (stale, [None])
    stops = [change.do for change in old.fix if isinstance(change.do, EnableService)]
    assert stops == ([EnableService("celery-cron-shop-1.timer", False)] if kind == "timer" else [])


def written(finding: Finding) -> list[bytes | None]:
    """What the fix writes into files; None removes one."""
    return [change.do.content for change in finding.fix if isinstance(change.do, WriteFile)]


OF_CRON = {"cron": "cron", "timer": "systemd"}
"""What has to run the entries, so that files of this kind are wanted."""


@pytest.mark.parametrize(
    ("content", "codes"), [(ONE_TWO, ["cron.stale"]), (b"another owner's", []), (None, [])]
)
def test_where_timers_run_the_entries_a_cron_file_of_ours_is_stale_and_another_owners_is_not(
    content: bytes | None, codes: list[str]
) -> None:
    host = make_host(service_manager="systemd", commands=None, cron_scheduler="systemd")
    fleet = make_fleet(host)
    state = make_state(host)
    file = FileState(None) if content is None else in_place(content)
    state = replace(state, files={**state.files, PATH: file})
    snapshot = make_snapshot(fleet, hosts={"web1": state})
    assert [one.code for one in of_kind(fleet, snapshot, "cron", WANTED)] == codes


@pytest.mark.parametrize(
    ("content", "codes"), [(ONE_TWO, ["timer.stale"]), (b"another owner's", []), (None, [])]
)
def test_where_cron_runs_the_entries_a_timer_of_ours_is_stale_and_none_is_missing(
    content: bytes | None, codes: list[str]
) -> None:
    host = make_host(service_manager="systemd", commands=None, cron_scheduler="cron")
    fleet = make_fleet(host)
    state = make_state(host)
    file = FileState(None) if content is None else in_place(content)
    state = replace(state, files={**state.files, TIMER: file})
    snapshot = make_snapshot(fleet, hosts={"web1": state})
    found = list(of_kind(fleet, snapshot, "timer", {"web1": {TIMER: ONE_TWO}}))
    assert [one.code for one in found] == codes
    assert not codes or "cron runs its entry here" in found[0].summary


def test_a_timer_that_is_not_active_is_reported_whether_its_file_is_there_or_not() -> None:
    host = make_host(service_manager="systemd", commands=None, cron_scheduler="systemd")
    fleet = make_fleet(host)
    off = ServiceState(None, None, "disabled, inactive", enabled=False)
    for file, expected in (
        (in_place(ONE_TWO), ["timer.not_enabled"]),
        (FileState(None), ["timer.missing", "timer.not_enabled"]),
        (in_place(MARK + b"edited"), ["timer.differs", "timer.not_enabled"]),
    ):
        state = make_state(host)
        timers = {"celery-cron-shop-1.timer": off}
        state = replace(state, files={**state.files, TIMER: file}, timers=timers)
        snapshot = make_snapshot(fleet, hosts={"web1": state})
        found = list(of_kind(fleet, snapshot, "timer", {"web1": {TIMER: ONE_TWO}}))
        assert [one.code for one in found] == expected
        assert [change.do for change in found[-1].fix] == [
            EnableService("celery-cron-shop-1.timer", True)
        ]


def test_two_names_of_one_machine_are_a_fault_only_if_they_share_files_or_services() -> None:
    other = make_host("web2", env_file="/srv/other.env")

    def found(*hosts: FleetHost, machine: str = "id/boot/space") -> list[str]:
        fleet = make_fleet(*hosts)
        states = {
            host.name: make_state(host, machine=name)
            for host, name in zip(hosts, ("id/boot/space", machine), strict=True)
        }
        return [one.code for one in same_machine(fleet, make_snapshot(fleet, hosts=states))]

    assert found(HOST, other) == []
    assert found(HOST, make_host("web2")) == ["inventory.same_machine"]
    assert found(HOST, make_host("web2"), machine="another") == []
    systemd = [
        make_host(name, env_file=f"/srv/{name}.env", service_manager="systemd", commands=None)
        for name in ("web1", "web2")
    ]
    assert found(*systemd) == ["inventory.same_machine"]


# --- the monitor's cron entry

MONITOR = MonitorSettings(
    host="web1",
    inventory="/etc/my shop/inventory.yaml",
    log="/var/log/shop/100%.log",
    textfile="/var/lib/node/shop.prom",
)


def cron(host: FleetHost, monitor_host: str | None = "web1", **changes: object) -> str:
    fleet = replace(
        make_fleet(host, monitor=MONITOR.model_copy(update=changes)), monitor_host=monitor_host
    )
    files = cron_files(fleet, Templates(CHECKOUT / "templates"))[host.name]
    return "".join(content.decode() for content in files.values())


def test_the_monitor_is_run_every_six_hours_by_the_applications_user_and_its_lines_are_appended() -> (
    None
):
    assert cron(HOST).splitlines()[-1] == (
        "0 */6 * * * deploy /usr/local/bin/celery-runbooks monitor --inventory '/etc/my"
        " shop/inventory.yaml' "
        r"--textfile /var/lib/node/shop.prom >>/var/log/shop/100\%.log 2>&1"
    )
    line = cron(
        HOST, schedule="*/5 * * * *", user="daemon", command="/opt/inv", textfile=None
    ).splitlines()[-1]
    assert line.startswith(
        "*/5 * * * * daemon /opt/inv monitor --inventory '/etc/my shop/inventory.yaml' >>"
    )


def test_it_stands_beside_the_hosts_own_entries_and_on_no_other_host() -> None:
    own = make_host(cron=(CronEntry(schedule="0 2 * * *", user="deploy", command="true"),))
    assert cron(own).splitlines()[-2] == "0 2 * * * deploy true"
    assert "monitor" not in cron(own, monitor_host="web2")
    assert cron(HOST, monitor_host=None) == ""


LOG, OTHER_LOG = "/var/log/celery/high.log", "/var/log/celery/low.log"
ROTATES = "/etc/logrotate.d/celery-shop"


def rotation(
    *others: Rotation, content: bytes | None = None, logs: tuple[str, ...] = (LOG,)
) -> list[Finding]:
    host = make_host(logs=logs)
    files = {
        **make_state(host).files,
        ROTATES: FileState(None) if content is None else in_place(content),
    }
    ours = () if content is None else tuple(Rotation(ROTATES, 2, log) for log in logs)
    state = replace(make_state(host), files=files, rotations=(*ours, *others))
    fleet = make_fleet(host)
    wanted = {"web1": {ROTATES: MARK + b"rotation"}}
    return list(of_kind(fleet, make_snapshot(fleet, hosts={"web1": state}), "logrotate", wanted))


@pytest.mark.parametrize("pattern", [LOG, "/var/log/celery/*.log"])
def test_logs_that_another_file_rotates_are_left_to_it(pattern: str) -> None:
    other = Rotation("/etc/logrotate.d/celery", 1, pattern)
    assert [one.code for one in rotation()] == ["logrotate.missing"]
    (finding,) = rotation(other)
    assert (finding.code, finding.severity, finding.fix) == (
        "logrotate.by_another",
        Severity.INFO,
        (),
    )
    assert finding.evidence == (
        f"/etc/logrotate.d/celery:1: {pattern}",
        "set celery_logrotate: false if the logs are rotated elsewhere; or remove these names there",
    )
    stale, finding = rotation(other, content=MARK + b"rotation")
    assert (stale.code, finding.code) == ("logrotate.stale", "logrotate.by_another")
    assert [change.do for change in stale.fix] == [
        WriteFile(ROTATES, None, MODE, sha256(MARK + b"rotation"))
    ]
    assert rotation(content=MARK + b"rotation") == []


def test_logs_that_no_one_rotates_or_two_others_do_are_a_warning() -> None:
    others = [Rotation(f"/etc/logrotate.d/{name}", 1, LOG) for name in ("a", "b")]
    (finding,) = rotation(others[0], logs=(LOG, OTHER_LOG))
    assert (finding.severity, f"nothing rotates {OTHER_LOG}" in finding.summary) == (
        Severity.WARNING,
        True,
    )
    (finding,) = rotation(*others)
    assert (finding.severity, "which makes logrotate fail" in finding.summary) == (
        Severity.WARNING,
        True,
    )


def test_no_rotation_is_wanted_where_the_inventory_says_so() -> None:
    fleet = make_fleet(make_host(logs=(LOG,), logrotate=False))
    assert logrotate_files(fleet, Templates(CHECKOUT / "templates")) == {"web1": {}}


# --- two applications on a host


def test_of_two_applications_on_a_host_one_has_the_target_and_beats_unit() -> None:
    templates = Templates(CHECKOUT / "templates")
    mine, theirs = (
        make_host(
            service_manager="systemd", commands=None, workers=(Worker(name=name, queues=("q",)),)
        )
        for name in ("mail_out", "shop_high")
    )
    there = unit_files(make_fleet(theirs), templates)["web1"]
    fleet = make_fleet(mine, app="mail")
    wanted = unit_files(fleet, templates)
    files = dict.fromkeys(wanted["web1"], FileState(None))
    files |= {path: in_place(content) for path, content in there.items()}
    state = make_state(mine, files=files, foreign=Foreign({}))
    found = list(of_kind(fleet, make_snapshot(fleet, hosts={"web1": state}), "unit", wanted))
    assert [(one.code, one.subject) for one in found] == [
        ("unit.not_ours", "beat on web1"),
        ("unit.not_ours", "celery.target on web1"),
        ("unit.missing", "web1"),
    ]
    assert [one.service for one in found[0].blocks] == ["beat"]
    assert [change.path for change in found[2].fix if change.path] == [
        "/etc/systemd/system/celery-worker@mail_out.service"
    ]
