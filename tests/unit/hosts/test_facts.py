"""What a host is asked, tried on this machine: real files, a real schedule."""

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from runbooks.core.errors import RunbookError
from runbooks.core.fleet import mark_of
from runbooks.core.model import FileState, Rotation
from runbooks.hosts import facts
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host


def ask(question: str, private: Collection[str] = ()) -> Answer:
    return run_fragments(LocalTransport(), {"q": question}, timeout_s=30, private=private)["q"]


def look(path: Path | str) -> FileState:
    return facts.parse_files([str(path)], ask(facts.ask_files([str(path)])))[str(path)]


# --- the clock


def test_the_clock_is_the_hosts_own_in_epoch_seconds() -> None:
    before = time.time()
    assert before <= facts.parse_clock(ask(facts.ask_clock())).now <= time.time()


# --- files


def test_a_file_is_its_bytes_mode_owner_and_the_time_of_its_last_change(tmp_path: Path) -> None:
    path = tmp_path / "app.env"
    path.write_bytes(b"A=1\n")
    path.chmod(0o640)
    os.utime(path, (1_700_000_000.25, 1_700_000_000.25))
    assert look(path) == FileState(b"A=1\n", 0o640, 1_700_000_000.25)


def test_a_file_that_is_not_there_is_told_from_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert look(tmp_path / "none").content is None
    assert look(tmp_path / "empty").content == b""


@pytest.mark.parametrize(
    "content", [bytes(range(256)) * 3, b"\n", b"\n\nx", b"no newline", b"\0", b"0644 root\n"]
)
def test_a_file_of_any_bytes_comes_back_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert look(tmp_path / "file").content == content


def test_many_files_are_told_apart_whatever_is_in_them(tmp_path: Path) -> None:
    contents = {
        f"f{n}": content
        for n, content in enumerate((b"no newline", None, b"", b"\n\n1\n", None, b"644 x"))
    }
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in contents]
    states = facts.parse_files(paths, ask(facts.ask_files(paths)))
    assert [states[path].content for path in paths] == list(contents.values())


def test_a_file_that_changes_while_it_is_read_is_not_mixed_up_with_the_next() -> None:
    with pytest.raises(RunbookError, match="changed while it was read"):
        facts.parse_files(["/a", "/b"], Answer(0, b"11\n3 644 1.0 a:b\n3 644 1.0 a:b\nabcabcd", ""))


@pytest.mark.parametrize(
    "name",
    [
        "two words",
        "it's",
        'say "hi"',
        "new\nline",
        "$(touch evil)",
        "`id`",
        "$HOME",
        "*",
        "-n",
        "ü",
        "a\\b",
        ";ls",
    ],
)
def test_a_file_of_any_name_is_found_and_no_name_is_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(name)
    (tmp_path / "other").write_text("other")
    assert look(tmp_path / name).content == name.encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "other"])


def test_a_link_is_the_file_it_leads_to_and_not_mode_777(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    assert (look(tmp_path / "link").content, look(tmp_path / "link").mode) == (b"x", 0o600)


def test_a_folder_where_a_file_belongs_is_told_apart_from_no_file(tmp_path: Path) -> None:
    assert look(tmp_path) == FileState(None, is_folder=True)
    assert look(tmp_path / "none") == FileState(None)


def let_enter(folder: Path) -> None:
    """Let every user enter a folder, and those above it."""
    for one in (folder, *folder.parents):
        mode = one.stat().st_mode
        if not mode & 0o001:
            one.chmod(mode | 0o001)


def test_a_file_that_may_not_be_read_is_an_error_and_not_an_absent_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.env"
    path.write_text("x")
    path.chmod(0)
    as_nobody = ["/bin/sh", "-c", facts.ask_files([str(path)])]
    if os.getuid() == 0:
        let_enter(tmp_path)
        done = subprocess.run(
            as_nobody, capture_output=True, text=True, user=65534, group=65534, extra_groups=[]
        )
    else:
        done = subprocess.run(as_nobody, capture_output=True, text=True)
    with pytest.raises(RunbookError, match=f"cannot be read: .*{path}.*denied") as caught:
        facts.parse_files([str(path)], Answer(done.returncode, done.stdout.encode(), done.stderr))
    assert "user" in caught.value.advice


def test_a_link_to_a_file_of_ours_is_not_one_itself(tmp_path: Path) -> None:
    """If the link were removed as unwanted, the file that it leads to would be lost with it."""
    here, unit = str(tmp_path), tmp_path / "celery-worker@high.service"
    unit.write_text(f"{mark_of('shop')}\n[Unit]\n")
    (tmp_path / "celery-worker@old.service").symlink_to(unit)
    host = make_host(unit_directory=here, cron_directory=here, logrotate_directory=here)
    assert list(facts.parse_managed(ask(facts.ask_managed(host, "shop", ())))) == [str(unit)]


# --- folders


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[[str], Answer]:
    """Asks as a user who owns nothing; in a folder that everybody may enter."""
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    let_enter(tmp_path)

    def ask_it(question: str) -> Answer:
        done = subprocess.run(
            ["/bin/sh", "-c", question], capture_output=True, user=65534, group=65534, extra_groups=[], check=True
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    return ask_it


def test_the_applications_directory_is_there_or_is_missing_or_is_no_folder(tmp_path: Path) -> None:
    def lacks(directory: Path) -> str:
        return facts.parse_places(ask(facts.ask_places(make_host(directory=str(directory)))))[1]

    (tmp_path / "file").touch()
    assert lacks(tmp_path) == ""
    assert lacks(tmp_path / "none" / "below") == "does not exist"
    assert lacks(tmp_path / "file") == "is not a directory"


def test_a_folder_that_the_user_may_not_see_is_not_said_to_be_missing(
    tmp_path: Path, as_nobody: Callable[[str], Answer]
) -> None:
    (tmp_path / "closed" / "app").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    for name, expected in (("closed/app", ""), ("closed/none", ""), ("none", "does not exist")):
        question = facts.ask_places(make_host(directory=str(tmp_path / name)))
        assert facts.parse_places(as_nobody(question))[1] == expected


def test_folders_of_our_files_are_known_that_the_user_may_not_write_to(
    tmp_path: Path, as_nobody: Callable[[str], Answer]
) -> None:
    for name, mode in (("units", 0o755), ("cron", 0o777), ("logrotate", 0o755), ("etc", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    host = make_host(
        unit_directory=str(tmp_path / "units"),
        cron_directory=str(tmp_path / "cron"),
        logrotate_directory=str(tmp_path / "logrotate"),
        env_file=str(tmp_path / "etc" / "shop.env"),
    )
    found = facts.parse_unwritable(as_nobody(facts.ask_unwritable(host)))
    nobody = pwd.getpwuid(65534).pw_name
    assert found == {str(tmp_path / name): nobody for name in ("units", "logrotate", "etc")}


def test_files_without_this_applications_mark_are_not_its_own(tmp_path: Path) -> None:
    here = str(tmp_path)
    files = {
        "celery-worker@high.service": f"{mark_of('shop')}\n[Unit]\n",
        "celery-cron-shop-1.timer": f"{mark_of('shop')}\n[Timer]\n",
        "celery-shop": f"{mark_of('shop')}\n",
        "celery-bank": f"{mark_of('bank')}\n",
        "celery-worker@theirs.service": "[Unit]\n",
        "celery-below": f"# theirs\n{mark_of('shop')}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    host = make_host(unit_directory=here, cron_directory=here, logrotate_directory=here)
    found = facts.parse_managed(ask(facts.ask_managed(host, "shop", ())))
    assert sorted(Path(path).name for path in found) == [
        "celery-cron-shop-1.timer",
        "celery-shop",
        "celery-worker@high.service",
    ]


def test_a_link_to_dev_null_is_an_empty_file_of_a_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "masked.service").symlink_to("/dev/null")
    masked = look(tmp_path / "masked.service")
    assert (masked.content, masked.mode) == (b"", 0o644)


# --- beat


SCHEDULE = """
import os, shelve, sys, dbm.{library}
import dbm
path = sys.argv[1]
store = shelve.Shelf(dbm.{library}.open(path, "c"), writeback=True)
store["entries"] = {{}}
store.sync()
for name in os.listdir(os.path.dirname(path)):
    os.utime(os.path.join(os.path.dirname(path), name), (5, 5))
store["entries"]["sent"] = 1
store.sync()
print("synced", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("library", ["dumb", "gnu", "ndbm"])
def test_when_beat_last_sent_is_known_where_its_schedule_is_written_then(
    library: str, tmp_path: Path
) -> None:
    pytest.importorskip(f"dbm.{library}", exc_type=ImportError)
    host = make_host(beat_schedule=str(tmp_path / "schedule"))
    assert facts.parse_beat(ask(facts.ask_beat(host))) == (None, "")
    program = [sys.executable, "-c", SCHEDULE.format(library=library), str(tmp_path / "schedule")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as beat:
        assert beat.stdout is not None
        assert beat.stdout.readline() == b"synced\n"
        sent_at, why_unknown = facts.parse_beat(ask(facts.ask_beat(host)))
    if why_unknown:
        assert (library, sent_at) == ("ndbm", None)
    else:
        assert sent_at is not None
        assert sent_at > 5


@pytest.mark.parametrize("name", ["cron", "crond", "bcron-sched"])
def test_whether_a_cron_runs_is_known_from_its_process(tmp_path: Path, name: str) -> None:
    if facts.parse_cron(ask(facts.ask_cron())):
        pytest.skip("a cron runs here")
    cron = tmp_path / name
    cron.symlink_to("/bin/sleep")
    process = subprocess.Popen([cron, "60"])
    try:
        assert facts.parse_cron(ask(facts.ask_cron())) is True
    finally:
        process.kill()
        process.wait()
    assert facts.parse_cron(Answer(0, b"", "")) is None


@pytest.mark.parametrize(("is_active", "runs"), [("0", True), ("3", False)])
def test_a_cron_target_of_systemds_runs_the_entries_where_it_is_active(
    tmp_path: Path, is_active: str, runs: bool
) -> None:
    if facts.parse_cron(ask(facts.ask_cron())):
        pytest.skip("a cron runs here")
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(
        f"#!/bin/sh\ncase $* in 'is-active --quiet cron.target') exit {is_active} ;; esac\n"
    )
    systemctl.chmod(0o755)
    answer = ask(f"PATH={tmp_path}:$PATH\n{facts.ask_cron()}")
    assert (facts.parse_cron(answer), facts.parse_lacks_cron(answer)) == (runs, False)


def test_the_logs_that_logrotate_rotates_are_known_with_file_and_line(tmp_path: Path) -> None:
    folder = tmp_path / "logrotate.d"
    folder.mkdir()
    (tmp_path / "logrotate.conf").write_text("weekly\n/var/log/wtmp {\n  rotate 1\n}\n")
    (folder / "celery").write_text(
        '# ours\n/var/log/celery/*.log "/var/log/my app.log"\n{\n  daily\n}\n'
    )
    (folder / "celery.dpkg-old").write_text("/var/log/old.log { daily }\n")
    (folder / "broken").write_text('"/var/log/x {\n')
    found = facts.parse_rotated(ask(facts.ask_rotated(make_host(logrotate_directory=str(folder)))))
    assert found == (
        Rotation(f"{tmp_path}/logrotate.conf", 2, "/var/log/wtmp"),
        Rotation(f"{folder}/celery", 2, "/var/log/celery/*.log"),
        Rotation(f"{folder}/celery", 2, "/var/log/my app.log"),
    )
