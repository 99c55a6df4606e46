"""Files, written on this machine: guarded, whole or not at all, and safe to kill at any instant."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from runbooks.core.effects import WriteFile, sha256
from runbooks.core.errors import ExitCode
from runbooks.effects.base import STALE
from tests.unit.effects.made import fragment, make, mode_of, names, run
from tests.unit.fleets import make_host

OLD, NEW = b"old\0\xff\n" * 50, b"new $x `id` '\n" * 4000


def write(
    path: Path, content: bytes | None, *, mode: int = 0o644, replaces: bytes | None = None
) -> WriteFile:
    return WriteFile(str(path), content, mode, sha256(replaces))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.conf"


# --- writing files


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\n", b"no newline", bytes(range(256)) * 100, b"END_00\n'$(id)\n"]
)
def test_a_file_is_made_of_exactly_these_bytes_and_this_mode(path: Path, content: bytes) -> None:
    assert make(write(path, content, mode=0o604)).code == 0
    assert (path.read_bytes(), mode_of(path)) == (content, 0o604)
    assert names(path.parent) == [path.name]


def test_a_file_is_changed_when_it_is_what_was_seen(path: Path) -> None:
    path.write_bytes(OLD)
    assert make(write(path, NEW, replaces=OLD)).code == 0
    assert path.read_bytes() == NEW


def test_a_file_is_removed_when_it_is_what_was_seen(path: Path) -> None:
    path.write_bytes(OLD)
    assert make(write(path, None, replaces=OLD)).code == 0
    assert names(path.parent) == []


@pytest.mark.parametrize("wanted", [NEW, None])
def test_a_file_that_someone_changed_meanwhile_is_left_alone(
    path: Path, wanted: bytes | None
) -> None:
    path.write_bytes(b"of another")
    answer = make(write(path, wanted, replaces=OLD))
    assert answer.code == STALE == ExitCode.STALE
    assert f"{path} has changed since the look" in answer.err
    assert path.read_bytes() == b"of another"
    assert names(path.parent) == [path.name]


def test_a_file_that_appeared_or_vanished_meanwhile_is_left_alone(path: Path) -> None:
    assert make(write(path, NEW, replaces=OLD)).code == STALE
    assert not path.exists()
    path.write_bytes(OLD)
    assert make(write(path, NEW, replaces=None)).code == STALE
    assert path.read_bytes() == OLD


def test_an_effect_that_was_made_already_can_be_made_again(path: Path) -> None:
    path.write_bytes(OLD)
    for _ in range(2):
        assert make(write(path, NEW, mode=0o600, replaces=OLD)).code == 0
        assert (path.read_bytes(), mode_of(path)) == (NEW, 0o600)
    for _ in range(2):
        assert make(write(path, None, replaces=NEW)).code == 0
        assert not path.exists()


def test_a_changed_file_keeps_its_owner(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root gives files away")
    path.write_bytes(OLD)
    os.chown(path, 12345, 23456)
    assert make(write(path, NEW, mode=0o640, replaces=OLD)).code == 0
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (12345, 23456, 0o640)


def test_a_file_behind_a_link_is_changed_and_the_link_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "app.env", tmp_path / "etc" / "app.env"
    for directory in (real.parent, link.parent):
        directory.mkdir()
    real.write_bytes(OLD)
    link.symlink_to(real)
    assert make(write(link, NEW, replaces=OLD)).code == 0
    assert link.is_symlink()
    assert real.read_bytes() == NEW
    assert names(real.parent) == names(link.parent) == ["app.env"]


def test_a_masked_unit_is_replaced_and_dev_null_is_not(path: Path) -> None:
    """systemctl mask makes a unit a link to /dev/null."""
    path.symlink_to("/dev/null")
    assert make(write(path, NEW, replaces=b"")).code == 0
    assert (path.is_symlink(), path.read_bytes()) == (False, NEW)
    assert Path("/dev/null").is_char_device()


def test_a_missing_directory_is_reported_by_its_name_and_not_made(tmp_path: Path) -> None:
    answer = make(write(tmp_path / "none" / "f", NEW))
    assert answer.code == 1
    assert f"the directory {tmp_path / 'none'} does not exist" in answer.err
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["two words", "it's", "$(touch evil)", "`id`", "new\nline", "-rf", "*", "a\\b"]
)
def test_a_file_of_any_name_is_written_and_no_name_is_run(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    assert make(write(directory / name, NEW)).code == 0
    assert (directory / name).read_bytes() == NEW
    assert names(directory) == [name]
    assert names(tmp_path) == [name]


def test_what_a_killed_run_left_is_written_over(path: Path) -> None:
    left = path.parent / f".{path.name}.celery-runbooks"
    left.write_bytes(b"half a file that is longer than the new one " * 5000)
    left.chmod(0o400)
    assert make(write(path, NEW)).code == 0
    assert path.read_bytes() == NEW
    assert names(path.parent) == [path.name]


def test_a_link_that_lies_in_wait_under_the_temporary_name_is_not_followed(path: Path) -> None:
    victim = path.parent / "victim"
    victim.write_bytes(b"precious")
    (path.parent / f".{path.name}.celery-runbooks").symlink_to(victim)
    assert make(write(path, NEW)).code == 0
    assert (victim.read_bytes(), path.read_bytes()) == (b"precious", NEW)


def test_a_secret_is_never_readable_by_others_while_it_is_written(
    path: Path, tmp_path: Path
) -> None:
    """What stands in the temporary file when chmod is about to run, seen by a chmod of the test's
    own.
    """
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "chmod").write_text(
        f'#!/bin/sh\nstat -c %a "$2" >{tools}/seen\nexec {shutil.which("chmod")} "$@"\n'
    )
    (tools / "chmod").chmod(0o755)
    before = os.umask(0)
    try:
        body = f"PATH={tools}:$PATH\n{fragment(write(path, NEW, mode=0o640))}"
        assert run(body).code == 0
    finally:
        os.umask(before)
    assert (tools / "seen").read_text() == "600\n"
    assert mode_of(path) == 0o640


TOOLS = ("sha256sum", "base64", "chown", "rm", "chmod", "sync", "mv")


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("tool", TOOLS)
def test_killed_around_any_of_its_commands_a_write_leaves_the_old_file_or_the_new_one_whole(
    tmp_path: Path, path: Path, tool: str, moment: str
) -> None:
    path.write_bytes(OLD)
    tools = tmp_path / "tools"
    tools.mkdir()
    real = shutil.which(tool)
    act = {
        "before": "kill -9 0",
        "during": (
            f'{real} "$@" | head -c 1000; kill -9 0'
            if tool == "base64"
            else f'{real} "$@" & kill -9 0'
        ),
        "after": f'{real} "$@"; kill -9 0',
    }
    (tools / tool).write_text(f"#!/bin/sh\n{act[moment]}\n")
    (tools / tool).chmod(0o755)
    body = fragment(write(path, NEW, replaces=OLD))
    subprocess.run(
        ["/bin/sh", "-s"],
        input=f"PATH={tools}:$PATH\n{body}\n".encode(),
        start_new_session=True,
        capture_output=True,
    )
    assert path.read_bytes() in (OLD, NEW)
    assert make(write(path, NEW, replaces=OLD)).code == 0
    assert path.read_bytes() == NEW
    assert names(tmp_path) == [path.name, "tools"]


def test_killed_at_a_random_instant_a_write_leaves_the_old_file_or_the_new_one_whole(
    path: Path,
) -> None:
    script = path.parent / "script"
    script.write_text(fragment(write(path, NEW, replaces=OLD)))
    instants, seen = random.Random(7), set()
    for _ in range(40):
        path.write_bytes(OLD)
        process = subprocess.Popen(
            ["/bin/sh", script], stderr=subprocess.DEVNULL, start_new_session=True
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(instants.uniform(0, 0.03))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert path.read_bytes() in (OLD, NEW)
        seen.add(path.read_bytes() == NEW)
    assert seen, "no instant was tried"


# --- in another user's folder


ATTACK = """
import os, sys
what, folder, victim = sys.argv[1:]
path = folder + "/app.conf"
at = {"temporary": folder + "/.app.conf.celery-runbooks", "target": path, "folder": folder}[what]
lead = victim if what == "folder" else victim + "/app.conf"
count = 0
print("ready", flush=True)
while True:
    count += 1
    aside = f"{os.path.dirname(folder)}/aside{count}"
    try:
        os.rename(at, aside)
        os.symlink(lead, at)
        if what != "temporary":
            os.unlink(at)
            os.rename(aside, at)
    except OSError:
        pass
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that others come to; pytest's own are closed to them."""
    if os.getuid() != 0 and "CI" not in os.environ:
        pytest.skip("only root writes into other users' folders")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def attacker(what: str, home: Path, folder: Path, victim: Path) -> Iterator[None]:
    """A user who puts a link in the place of something, over and over, with the application's
    user's rights.
    """
    for directory in (home, folder):
        os.chown(directory, 12345, 12345)
    command = [
        "setpriv",
        "--reuid=12345",
        "--regid=12345",
        "--clear-groups",
        sys.executable,
        "-c",
        ATTACK,
    ]
    process = subprocess.Popen([*command, what, folder, victim], stdout=subprocess.PIPE, cwd="/")
    assert process.stdout
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("what", ["temporary", "target", "folder"])
def test_who_owns_the_folder_cannot_lead_root_elsewhere_by_links(shared: Path, what: str) -> None:
    home, victim = shared / "home", shared / "victim"
    folder = home / "conf"
    for directory in (folder, victim):
        directory.mkdir(parents=True)
    path, precious = folder / "app.conf", victim / "app.conf"
    precious.write_bytes(OLD)
    precious.chmod(0o600)
    before = precious.lstat()
    for _ in range(6):
        shutil.rmtree(home)
        folder.mkdir(parents=True)
        path.write_bytes(OLD)
        os.chown(path, 12345, 12345)
        with attacker(what, home, folder, victim):
            for _ in range(4):
                make(write(path, NEW, mode=0o666, replaces=OLD))
                make(write(path, OLD, mode=0o666, replaces=NEW))
        after = precious.lstat()
        assert (after.st_ino, after.st_uid, after.st_mode) == (
            before.st_ino,
            before.st_uid,
            before.st_mode,
        )
        assert precious.read_bytes() == OLD
        assert names(victim) == ["app.conf"]


def test_a_link_of_the_folders_owner_leads_only_to_their_own_files(shared: Path) -> None:
    home, victim = shared / "home", shared / "victim"
    for directory in (home, victim, home / "real"):
        directory.mkdir()
    for real in (home / "real" / "app.conf", victim / "app.conf"):
        real.write_bytes(OLD)
    for mine in (home, home / "real", home / "real" / "app.conf"):
        os.chown(mine, 12345, 12345)
    link = home / "current"
    for to, code in ((victim, 1), (home / "real", 0)):
        link.unlink(missing_ok=True)
        link.symlink_to(to)
        os.chown(link, 12345, 12345, follow_symlinks=False)
        answer = make(write(link / "app.conf", NEW, replaces=OLD))
        assert answer.code == code, answer.err
    assert (victim / "app.conf").read_bytes() == OLD
    assert (home / "real" / "app.conf").read_bytes() == NEW
    os.chown(link, 0, 0, follow_symlinks=False)
    assert (
        "leads through a link that others can change"
        in make(write(link / "app.conf", OLD, replaces=NEW)).err
    )


# --- judged by the host


@pytest.mark.parametrize(
    ("check", "content", "judged"),
    [
        (
            "unit",
            b"[Service]\nUser=shop\n# User=daemon\nGroup=web\n[Service]\nUser=it's\n",
            "judge_systemd shop 'it'\"'\"'s'",
        ),
        (
            "cron",
            b"# a\nSHELL=/bin/sh\n\n*/5 * * * * shop run\n @daily root x y z\n0 1 * * 0 shop y\n",
            "judge_cron shop root",
        ),
        ("cron", b"* * * * *\n@daily\n", "judge_cron"),
        ("logrotate", b"/var/log/a {\n su User=x\n}\n", "judge_logrotate"),
    ],
)
def test_a_host_is_asked_whether_each_user_that_a_file_names_exists(
    check: Any, content: bytes, judged: str
) -> None:
    host = make_host(service_manager="systemd", commands=None)
    written = fragment(WriteFile("/etc/f", content, 0o644, "absent", check=check), host)
    assert f" 644 '' {judged}\n" in written


def test_where_logrotate_is_missing_its_file_is_not_put_in_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # it is in /usr/sbin
    content = b"/var/log/a {\n  weekly\n}\n"
    answer = make(WriteFile(str(path), content, 0o644, "absent", check="logrotate"))
    assert (answer.code, names(path.parent)) == (1, [])
    assert "logrotate is not installed on this host" in answer.err


def test_a_user_that_does_not_exist_is_reported_and_the_file_is_not_put_in_place(
    path: Path,
) -> None:
    answer = make(
        WriteFile(str(path), b"* * * * * no-such-user true\n", 0o644, "absent", check="cron")
    )
    assert answer.code == 1
    assert "the user no-such-user does not exist here" in answer.err
    assert names(path.parent) == []
