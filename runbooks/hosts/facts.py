"""What a host is asked, and what its answer means: pairs of pure functions, `ask_…` → shell,
`parse_…` ← its answer.
"""

import base64
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from stat import S_IMODE, S_ISREG

from msgspec import Struct

from runbooks.core.application import CameFrom
from runbooks.core.effects import sha256
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost, mark_of
from runbooks.core.model import FileState, Rotation
from runbooks.hosts.script import Answer, shell


class Clock(Struct, frozen=True):
    """A host's own clock when it was asked, and what turns its processes' starts into the time of
    day.

    `machine` is the same where two names lead to one machine, and nowhere else; "" where that
    cannot be told.
    """

    now: float
    uptime_s: float
    ticks_per_s: int
    machine: str = ""

    def at(self, start_ticks: int) -> float:
        """The epoch seconds of a start. **Source:** proc(5), `/proc/PID/stat`: it is in clock ticks
        since boot.
        """
        return self.now - self.uptime_s + start_ticks / self.ticks_per_s


def ask_clock() -> str:
    return shell("clock")


def parse_clock(answer: Answer) -> Clock:
    """Raises RunbookError where one of them is missing.

    **Source:** GNU date; getconf(1); proc(5); machine-id(5); namespaces(7).
    """
    try:
        now, ticks_per_s, uptime_s, _, *machine = answer.out.decode().split()
        return Clock(float(now), float(uptime_s), int(ticks_per_s), "".join(machine))
    except ValueError:
        said = answer.err.strip()[-300:] or "it says something else"
        advice = "GNU date, getconf and /proc are needed there"
        raise RunbookError(f"its clock cannot be read: {said}", advice) from None


def ask_uptime() -> str:
    return "cat /proc/uptime"


def parse_uptime(answer: Answer) -> float:
    """For how many seconds the host is up. Raises RunbookError where it does not say. **Source:**
    proc(5).
    """
    try:
        return float(answer.out.split()[0])
    except (ValueError, IndexError):
        raise RunbookError(
            f"its uptime cannot be read: {answer.err.strip()[-300:]}", "/proc is needed there"
        ) from None


def ask_files(paths: Iterable[str]) -> str:
    return shell("files", *paths)


def parse_files(paths: Sequence[str], answer: Answer) -> dict[str, FileState]:
    """The state of each file; raises RunbookError when one exists and cannot be read. **Source:**
    GNU stat.
    """
    if answer.code != 0:
        advice = "mend that there, or run as a user who may read it"
        raise RunbookError(f"a file cannot be read: {answer.err.strip()}", advice)
    there, _, rest = answer.out.partition(b"\n")
    found = [path for path, digit in zip(paths, there.decode(), strict=True) if digit == "1"]
    *lines, contents = rest.split(b"\n", len(found))
    heads = [line.decode(errors="replace").partition(" ") for line in lines]
    if sum(int(size) for size, _, _ in heads) != len(contents):
        raise RunbookError("a file changed while it was read", "run the command again")
    states = {
        path: FileState(None, is_folder=digit == "2")
        for path, digit in zip(paths, there.decode(), strict=True)
    }
    for path, (size, _, head) in zip(found, heads, strict=True):
        content, contents = contents[: int(size)], contents[int(size) :]
        states[path] = _file_state(head, content)
    return states


def _file_state(head: str, content: bytes) -> FileState:
    """A masked unit is a link to /dev/null: an empty file means the same, but must not have a
    device's mode.

    What rsync or tar brings has the time of its own machine's clock, but cannot be newer than when
    it was put here.
    """
    raw_mode, changed_at, put_at = head.split()
    mode = int(raw_mode, 16)
    return FileState(
        content, S_IMODE(mode) if S_ISREG(mode) else 0o644, min(float(changed_at), float(put_at))
    )


def ask_managed(host: FleetHost, app: str, known: Iterable[str]) -> str:
    """The files in the directories this tool writes to that carry its mark for the application,
    beside `known` ones.
    """
    settings = host.settings
    directories = dict.fromkeys(
        (settings.unit_directory, settings.cron_directory, settings.logrotate_directory)
    )
    return shell(
        "managed", mark_of(app), "\n".join(["", *known, ""]), *directories, using=["marked"]
    )


def parse_managed(answer: Answer) -> dict[str, FileState]:
    lines = answer.out.decode(errors="replace").splitlines()
    threes = zip(lines[0::3], lines[1::3], lines[2::3], strict=True)
    return {path: _file_state(head, base64.b64decode(content)) for path, head, content in threes}


def digests(environ: str) -> dict[str, str] | None:
    """The sha256 of each variable that a process was started with; None where it has written over
    them, as for a title.

    **Source:** proc(5), `/proc/PID/environ`.
    """
    pairs = [item.split("=", 1) for item in environ.strip("\0").split("\0")]
    if any(len(pair) != 2 for pair in pairs):
        return None
    return {name: sha256(value.encode(errors="surrogateescape")) for name, value in pairs}


CRON_DIRECTORY = "/etc/cron.d"
"""**Source:** cron(8). What reads any other directory is not known."""


def ask_cron() -> str:
    return shell("cron")


def parse_cron(answer: Answer) -> bool | None:
    """Whether anything runs the files of `CRON_DIRECTORY`, None where that cannot be told."""
    return {b"yes": True, b"no": False, b"none": False}.get(answer.out.strip())


def parse_lacks_cron(answer: Answer) -> bool:
    """Whether none is installed that could."""
    return answer.out.strip() == b"none"


def ask_unwritable(host: FleetHost) -> str:
    """Where files of ours would go and may not be written, and who may not: answered in pairs."""
    settings = host.settings
    folders = [settings.unit_directory, settings.cron_directory, settings.logrotate_directory]
    folders += [str(PurePosixPath(settings.env_file).parent)] if settings.env_file else []
    return ask_folders(dict.fromkeys(folders))


def ask_folders(folders: Iterable[str]) -> str:
    """The same of these folders."""
    return shell("unwritable", *folders)


def parse_unwritable(answer: Answer) -> dict[str, str]:
    """Folder → the user who may not write there."""
    words = answer.out.decode(errors="replace").split("\0")
    return dict(zip(words[0::2], words[1::2], strict=False))


def ask_places(host: FleetHost) -> str:
    """Which temporary folder has no room, as the script's frame has found; and whether the
    application's is there.
    """
    directory = "/" if host.manager.in_containers else host.settings.directory
    return f'echo "$full"\n{shell("directory", directory)}'


def parse_places(answer: Answer) -> tuple[str, str]:
    """The temporary folder that has no room, and why the application's cannot be there; "" for
    neither.
    """
    full, _, lacking = answer.out.decode(errors="replace").partition("\n")
    return full, lacking.strip()


def ask_loaded(loaded: CameFrom) -> str:
    return shell("loaded", *loaded.folders, "--", *loaded.files)


def parse_loaded(answer: Answer) -> str:
    """The digest of what an application was loaded from, as it is now. **Source:** GNU sha256sum."""
    return answer.out.decode(errors="replace").partition(" ")[0]


def ask_rotated(host: FleetHost) -> str:
    return shell("rotated", host.settings.logrotate_directory)


def parse_rotated(answer: Answer) -> tuple[Rotation, ...]:
    """The patterns of logs that logrotate's files on the host name, ours among them.

    **Source:** logrotate(8): names and patterns stand before a `{`, apart from each other by
    spaces, in quotes or not; files with some endings are not read (`tabooext`).
    """
    found = list[Rotation]()
    for told in answer.out.decode(errors="replace").splitlines():
        path, number, line = told.split(":", 2)
        if path.endswith(_NOT_READ):
            continue
        with suppress(ValueError):  # a quote that is not closed
            patterns = shlex.split(line.partition("{")[0], comments=True)
            found += [
                Rotation(path, int(number), pattern)
                for pattern in patterns
                if pattern.startswith("/")
            ]
    return tuple(found)


_NOT_READ = (
    ",v", ".bak", ".cfsaved", ".disabled", ".dpkg-bak", ".dpkg-del", ".dpkg-dist", ".dpkg-new", ".dpkg-old",
    ".dpkg-tmp", ".rpmnew", ".rpmorig", ".rpmsave", ".swp", ".ucf-dist", ".ucf-new", ".ucf-old", "~",
)  # fmt: skip


def ask_beat(host: FleetHost) -> str:
    return shell("beat", host.settings.beat_schedule)


def parse_beat(answer: Answer) -> tuple[float | None, str]:
    """When beat last sent something, None where there is no schedule; or the file that does not
    tell.

    **Source:** celery 5.7.0 `beat.py: Scheduler.apply_async`: it is synced at the first message
    that is sent three minutes or more after the last time, and at the start. CPython 3.11
    `shelve.py: Shelf.sync` does nothing where the library has no `sync`: `dbm.ndbm`, Debian's
    choice without python3-gdbm, writes `.db` or `.pag` when it is closed.
    """
    at, _, name = answer.out.decode(errors="replace").strip().partition(" ")
    if name.endswith((".db", ".pag")):
        return None, name
    return (float(at) if at else None), ""
