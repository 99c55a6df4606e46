"""Questions to a host, and the parsers of their answers: `ask_…` → shell, `parse_…` ← answer."""

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

CRON_DIRECTORY = "/etc/cron.d"
"""**Source:** cron(8). It is not known which program reads another directory."""

_NOT_READ = (
    *(",v", ".bak", ".cfsaved", ".disabled", ".swp", "~"),
    *(".dpkg-bak", ".dpkg-del", ".dpkg-dist", ".dpkg-new", ".dpkg-old", ".dpkg-tmp"),
    *(".rpmnew", ".rpmorig", ".rpmsave"),
    *(".ucf-dist", ".ucf-new", ".ucf-old"),
)
"""Endings of files that logrotate does not read."""


class Clock(Struct, frozen=True):
    """A host's clock when it was asked; it converts the starts of processes to Unix time."""

    now: float
    uptime_s: float
    ticks_per_s: int
    machine: str = ""
    """The same for two names of one machine, and unique otherwise; "" if not known."""

    def at(self, start_ticks: int) -> float:
        """Return the Unix time of a start in clock ticks since boot.

        **Source:** proc(5), `/proc/PID/stat`.
        """
        return self.now - self.uptime_s + start_ticks / self.ticks_per_s


def ask_clock() -> str:
    return shell("clock")


def parse_clock(answer: Answer) -> Clock:
    """Parse the answer. Raises RunbookError if a part is missing.

    **Source:** GNU date; getconf(1); proc(5); machine-id(5); namespaces(7).
    """
    try:
        now, ticks_per_s, uptime_s, _, *machine = answer.out.decode().split()
        return Clock(float(now), float(uptime_s), int(ticks_per_s), "".join(machine))
    except ValueError:
        said = answer.err.strip()[-300:] or "unexpected output"
        advice = "the host needs GNU date, getconf and /proc"
        raise RunbookError(f"its clock cannot be read: {said}", advice) from None


def ask_uptime() -> str:
    return "cat /proc/uptime"


def parse_uptime(answer: Answer) -> float:
    """Return the uptime in seconds. Raises RunbookError if it is missing. **Source:** proc(5)."""
    try:
        return float(answer.out.split()[0])
    except (ValueError, IndexError):
        raise RunbookError(
            f"its uptime cannot be read: {answer.err.strip()[-300:]}", "the host needs /proc"
        ) from None


def ask_files(paths: Iterable[str]) -> str:
    return shell("files", *paths)


def parse_files(paths: Sequence[str], answer: Answer) -> dict[str, FileState]:
    """Return the state of each file. Raises RunbookError if one exists but cannot be read.

    **Source:** GNU stat.
    """
    if answer.code != 0:
        advice = "fix that there, or run as a user who may read it"
        raise RunbookError(f"a file cannot be read: {answer.err.strip()}", advice)
    there, _, rest = answer.out.partition(b"\n")
    states = {}
    found = []
    for path, digit in zip(paths, there.decode(), strict=True):
        states[path] = FileState(None, is_folder=digit == "2")
        if digit == "1":
            found.append(path)
    *lines, contents = rest.split(b"\n", len(found))
    heads = [line.decode(errors="replace").partition(" ") for line in lines]
    if sum(int(size) for size, _, _ in heads) != len(contents):
        raise RunbookError("a file changed while it was read", "run the command again")
    begin = 0
    for path, (size, _, head) in zip(found, heads, strict=True):
        end = begin + int(size)
        states[path] = _file_state(head, contents[begin:end])
        begin = end
    return states


def _file_state(head: str, content: bytes) -> FileState:
    """Parse the state of a file.

    A masked unit, a link to /dev/null, counts as an empty file with a usual mode, not a device's.
    The time of the last change is not later than the file's creation here: rsync and tar keep the
    time of another machine's clock.
    """
    raw_mode, changed_at, put_at = head.split()
    mode = 0o644
    if S_ISREG(int(raw_mode, 16)):
        mode = S_IMODE(int(raw_mode, 16))
    return FileState(content, mode, min(float(changed_at), float(put_at)))


def ask_managed(host: FleetHost, app: str, known: Iterable[str]) -> str:
    """Return the fragment that finds this tool's files for the application, except `known` ones."""
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
    """Return the sha256 of each variable that a process was started with; None if overwritten.

    **Source:** proc(5), `/proc/PID/environ`.
    """
    pairs = [item.split("=", 1) for item in environ.strip("\0").split("\0")]
    if any(len(pair) != 2 for pair in pairs):
        return None
    return {name: sha256(value.encode(errors="surrogateescape")) for name, value in pairs}


def ask_cron() -> str:
    return shell("cron")


def parse_cron(answer: Answer) -> bool | None:
    """Whether a process runs the files of `CRON_DIRECTORY`, None if not known."""
    return {b"yes": True, b"no": False, b"none": False}.get(answer.out.strip())


def parse_lacks_cron(answer: Answer) -> bool:
    """Whether no program for that is installed."""
    return answer.out.strip() == b"none"


def ask_unwritable(host: FleetHost) -> str:
    """Return the fragment that finds folders for our files that the user may not write to."""
    settings = host.settings
    folders = [settings.unit_directory, settings.cron_directory, settings.logrotate_directory]
    if settings.env_file:
        folders.append(str(PurePosixPath(settings.env_file).parent))
    return ask_folders(dict.fromkeys(folders))


def ask_folders(folders: Iterable[str]) -> str:
    """Return the same fragment for these folders."""
    return shell("unwritable", *folders)


def parse_unwritable(answer: Answer) -> dict[str, str]:
    """Return the user who may not write, by folder."""
    words = answer.out.decode(errors="replace").split("\0")
    return dict(zip(words[0::2], words[1::2], strict=False))


def ask_places(host: FleetHost) -> str:
    """Return the fragment that prints the full temporary folder, and checks the application's."""
    directory = host.settings.directory
    if host.manager.in_containers:
        directory = "/"
    return f'echo "$full"\n{shell("directory", directory)}'


def parse_places(answer: Answer) -> tuple[str, str]:
    """Return the full temporary folder, and the fault of the application's folder; "" for none."""
    full, _, lacking = answer.out.decode(errors="replace").partition("\n")
    return full, lacking.strip()


def ask_loaded(loaded: CameFrom) -> str:
    return shell("loaded", *loaded.folders, "--", *loaded.files)


def parse_loaded(answer: Answer) -> str:
    """Return the present digest of the application's files. **Source:** GNU sha256sum."""
    return answer.out.decode(errors="replace").partition(" ")[0]


def ask_rotated(host: FleetHost) -> str:
    return shell("rotated", host.settings.logrotate_directory)


def parse_rotated(answer: Answer) -> tuple[Rotation, ...]:
    """Return the log patterns in logrotate's files on the host, ours among them.

    **Source:** logrotate(8): names and patterns precede a `{`, separated by spaces, with or without
    quotes; files with some endings are not read (`tabooext`).
    """
    found: list[Rotation] = []
    for found_line in answer.out.decode(errors="replace").splitlines():
        path, number, line = found_line.split(":", 2)
        if path.endswith(_NOT_READ):
            continue
        with suppress(ValueError):  # a quote that is not closed
            names, _, _ = line.partition("{")
            for pattern in shlex.split(names, comments=True):
                if pattern.startswith("/"):
                    found.append(Rotation(path, int(number), pattern))
    return tuple(found)


def ask_beat(host: FleetHost) -> str:
    return shell("beat", host.settings.beat_schedule)


def parse_beat(answer: Answer) -> tuple[float | None, str]:
    """Return when beat last sent something (None: no schedule), or a file that does not show it.

    **Source:** celery 5.7.0 `beat.py: Scheduler.apply_async`: beat syncs at the start, and at the
    first message that it sends three minutes or more after the last sync. CPython 3.11 `shelve.py:
    Shelf.sync` does nothing if the library has no `sync`: `dbm.ndbm`, Debian's choice without
    python3-gdbm, writes `.db` or `.pag` only when closed.
    """
    at, _, name = answer.out.decode(errors="replace").strip().partition(" ")
    if name.endswith((".db", ".pag")):
        return None, name
    if not at:
        return None, ""
    return float(at), ""
