"""The file steps: bytes and mode exactly as wanted, a diff to read before, and the way back."""

from dataclasses import replace

from runbooks.core.effects import Change, WriteFile, sha256
from runbooks.core.model import FileState, Unreachable
from runbooks.steps.files import MODE, FilesInPlace, diff
from tests.unit.fleets import NOW, in_place, make_fleet, make_host, make_snapshot, make_state

HOST = make_host()
FLEET = make_fleet(HOST)
PATH = "/etc/cron.d/celery-shop"
WANTED = {"web1": {PATH: b"one\ntwo\n"}}


def plan(file: FileState) -> tuple[Change, ...]:
    state = replace(make_state(HOST), files={**make_state(HOST).files, PATH: file})
    return FilesInPlace("cron", "cron", FLEET, WANTED).plan(make_snapshot(FLEET, hosts={"web1": state}))


def test_nothing_is_to_do_where_bytes_and_mode_are_right_whoever_owns_the_file() -> None:
    assert plan(in_place(b"one\ntwo\n")) == ()
    assert plan(FileState(b"one\ntwo\n", MODE, "jane", "jane", NOW)) == ()


def test_a_missing_file_is_created_and_undo_removes_it() -> None:
    (change,) = plan(FileState(None))
    assert change.summary == f"create {PATH}"
    assert change.do == WriteFile(PATH, b"one\ntwo\n", MODE, "absent")
    assert change.undo == WriteFile(PATH, None, 0, sha256(b"one\ntwo\n"))
    assert change.detail == f"--- /dev/null\n+++ {PATH}\n@@ -0,0 +1,2 @@\n+one\n+two"


def test_a_differing_file_is_changed_and_undo_puts_back_its_bytes_and_mode() -> None:
    (change,) = plan(in_place(b"one\n2\xff\n", 0o600))
    assert change.summary == f"change {PATH}"
    assert change.do == WriteFile(PATH, b"one\ntwo\n", MODE, sha256(b"one\n2\xff\n"))
    assert change.undo == WriteFile(PATH, b"one\n2\xff\n", 0o600, sha256(b"one\ntwo\n"), changed_at=NOW - 2000)
    assert change.detail.endswith(" one\n-2\ufffd\n+two")


def test_a_wrong_mode_alone_is_a_change_that_says_so() -> None:
    (change,) = plan(in_place(b"one\ntwo\n", 0o666))
    assert change.detail == "mode 666 → 644"


def test_an_empty_file_is_not_a_missing_one() -> None:
    (change,) = plan(in_place(b""))
    assert change.summary == f"change {PATH}"
    assert diff(PATH, b"", b"x\n").startswith(f"--- {PATH}\n")


def test_a_host_that_does_not_answer_is_left_out() -> None:
    assert (
        FilesInPlace("cron", "cron", FLEET, WANTED).plan(make_snapshot(FLEET, hosts={"web1": Unreachable("gone")}))
        == ()
    )


def test_the_rotation_of_logs_that_the_inventory_no_longer_has_is_removed() -> None:
    stale = in_place(b"# Managed by celery-runbooks for shop;\n")
    state = replace(make_state(HOST), managed={"/etc/logrotate.d/celery-shop": stale, PATH: stale})
    steps = FilesInPlace("logrotate", "logrotate", FLEET, {"web1": {}})
    (change,) = steps.plan(make_snapshot(FLEET, hosts={"web1": state}))
    assert change.summary == "remove /etc/logrotate.d/celery-shop: the inventory no longer has it"
