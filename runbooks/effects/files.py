"""Write files, whole or not at all; the host checks their contents first."""

import base64
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from runbooks.core.effects import LostContents, WriteFile, sha256
from runbooks.core.errors import StalePlan
from runbooks.core.fleet import FleetHost
from runbooks.core.managers import service_of_unit
from runbooks.core.model import FileState, HostState
from runbooks.core.reporter import Outcome
from runbooks.effects.base import CHANGED_BY_OTHERS, Rank, ReverseOnHost
from runbooks.hosts.script import quote, shell
from runbooks.hosts.services.registry import manager_of

_WITHOUT_COMMAND = re.compile(r"\s*(#|$|[A-Za-z_]+\s*=)")
"""A line of a cron file that runs nothing: a comment, an empty line, a variable."""


class WriteFileHandler(ReverseOnHost[WriteFile]):
    """Writes or removes a file. A failed write leaves no trace."""

    rank = Rank.CHANGE
    leaves_nothing_after = Outcome.FAILED
    reads = ""
    stops = False
    starts = False
    waits = False

    @property
    def service(self) -> str:
        """The service of a unit to remove: only once it is stopped."""
        if self.effect.content is not None:
            return ""
        return service_of_unit(PurePosixPath(self.effect.path).name)

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        if self.effect.content is None:
            return f"remove {self.effect.path}"
        return f"restore {self.effect.path}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        text = (self.effect.content or b"").decode(errors="replace")
        match self.effect.check:
            case "unit":
                manager = manager_of(host)
                return write(self.effect, manager.judge, manager.users(text))
            case "cron":
                return write(
                    self.effect,
                    "judge_cron",
                    dict.fromkeys(_cron_users(text)),
                )
            case "logrotate":
                return write(self.effect, "judge_logrotate")
            case "":
                return write(self.effect)

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        now = state.files[self.effect.path]
        if now.is_folder:
            return Outcome.CANNOT, "a folder is in its place now"
        ours = sha256(now.content) == self.effect.replaces
        only_mode = ours and now.content is not None and now.mode != self.effect.mode
        if now.content == self.effect.content and not only_mode:
            return Outcome.ALREADY, "nothing to undo"
        if not ours:
            return CHANGED_BY_OTHERS
        return Outcome.CHANGED, ""


class LostContentsHandler(ReverseOnHost[LostContents]):
    """It only reports why the contents are lost; it is never performed."""

    rank = Rank.CHANGE
    leaves_nothing_after = Outcome.FAILED
    service = ""
    reads = ""
    stops = False
    starts = False
    waits = False

    @property
    def summary(self) -> str:
        """See ReverseOnHost."""
        return f"restore {self.effect.path}"

    def fragment(self, host: FleetHost, read: FileState | None) -> str:
        """See OnHost."""
        raise StalePlan(self.effect.why, "restore it from a backup")

    def judge(self, state: HostState) -> tuple[Outcome, str]:
        """See ReverseOnHost."""
        return Outcome.CANNOT, f"the old contents are lost: {self.effect.why}"


def write(
    effect: WriteFile,
    judge: str = "",
    users: Iterable[str] = (),
) -> str:
    """Return the fragment that writes or removes the file, whole or not at all.

    The script `judge` of `sh/`, if given, has to accept the contents first, and each of the `users`
    has to exist. A folder of drop-ins is created with the first one, and removed with the last.
    """
    folder = quote(str(PurePosixPath(effect.path).parent))
    of_drop_ins = folder.rstrip("'").endswith(".service.d")
    if effect.content is None:
        removed = _removed(effect)
        if not of_drop_ins:
            return removed
        rmdir = f"rmdir --ignore-fail-on-non-empty -- {folder}"
        return f"[ -d {folder} ] || exit 0\n(\n{removed}\n) && {rmdir}"
    made = ""
    if of_drop_ins:
        made = f"mkdir -p -- {folder} || exit 1\n"
    return made + _written(effect, effect.content, judge, users)


def _removed(effect: WriteFile) -> str:
    gone = sha256(effect.content)
    return shell("remove", effect.path, effect.replaces, gone, using=["enter"])


def _written(
    effect: WriteFile,
    content: bytes,
    judge: str,
    users: Iterable[str],
) -> str:
    changed_at = ""
    if effect.changed_at is not None:
        changed_at = repr(effect.changed_at)
    using = ["enter"]
    if judge:
        using.append(judge)
    return shell(
        "write",
        effect.path,
        effect.replaces,
        sha256(content),
        base64.b64encode(content).decode(),
        f"{effect.mode:o}",
        changed_at,
        judge,
        *users,
        using=using,
    )


def judge_together(host: FleetHost, units: Iterable[WriteFile]) -> str:
    """Return the fragment that judges several new units at once."""
    contents: dict[str, bytes] = {}
    for unit in units:
        name = PurePosixPath(unit.path).name
        contents[name] = unit.content or b""
    return manager_of(host).judge_together(contents)


def _cron_users(content: str) -> Iterator[str]:
    """Return the users of a cron file's lines: cron does not report that a user does not exist.

    **Source:** crontab(5): the sixth field in a system's table, the second after `@daily`.
    """
    for line in content.splitlines():
        if _WITHOUT_COMMAND.match(line):
            continue
        at = 5
        if line.lstrip().startswith("@"):
            at = 1
        yield from line.split()[at:][:1]
