"""Finds workers and beats of the application that no unit of this tool's runs, and the unit that does.

Such a unit, of `celery multi` say or one that somebody wrote by hand, takes the same messages, or starts a second node
of the same name. What it is called is not asked: its processes show it.
"""

import re
from collections.abc import Iterator, Mapping

from msgspec import Struct

from runbooks.core.fleet import FleetHost
from runbooks.core.model import OtherUnit
from runbooks.hosts.script import Answer, quote

# A process that has told a title of its own is `[celeryd: NODE:MainProcess] … (-A app worker …)`.
_RUNS = re.compile(r"(?:^|[\s/\[])celeryd?:?\s.*?(?<=[\s(])(worker|beat)(?=[\s)]|$)")
_APP = re.compile(r"\s\(?(?:-A\s?|--app[ =])([\w.]+)")
_WITH_BEAT = re.compile(r"\s\(?(?:-B|--beat)(?=[\s)]|$)")
_NODE = re.compile(r"\s(?:-n\s?|--hostname[ =])([^\s)]+)")
_TITLE = re.compile(r"^\[celeryd: ([^\s\]]+):")


def ask_strangers(host: FleetHost) -> str:
    """The processes that name Celery in units that are not named as ours are, then what systemd says of these units.

    Of a process: whether it works in the application's directory, its unit and its `stat`; then its command line.

    **Source:** proc(5); test(1), `-ef`; systemctl(1). The last line of `/proc/PID/cgroup` is systemd's own hierarchy.
    """
    return (
        "set --; for path in $(grep -lsa 'cele[r]y' /proc/[0-9]*/cmdline); do\n"
        'pid=${path#/proc/}; pid=${pid%/*}; unit=; while read -r line; do unit=${line##*/}; done <"/proc/$pid/cgroup"\n'
        "case $unit in celery-worker@*.service | celery-beat.service) continue ;; *.service | *.scope) ;;\n"
        '*) continue ;; esac; read -r stat <"/proc/$pid/stat" || continue; set -- "$@" "$unit"\n'
        f'here=; [ "/proc/$pid/cwd" -ef {quote(host.settings.directory)} ] && here=here\n'
        'printf "%s %s %s\\n" "$here" "$unit" "$stat"; tr "\\0\\n" "  " <"/proc/$pid/cmdline"; echo; done 2>/dev/null\n'
        'echo ---; [ $# -eq 0 ] || systemctl show --property=Id,Type,FragmentPath,ExecStart -- "$@"'
    )


def parse_strangers(answer: Answer, app: str) -> tuple[OtherUnit, ...]:
    """The units that run workers or beats of the application, in the order of their names."""
    told, _, shown = answer.out.decode(errors="replace").rpartition("---\n")
    found = [process for process in _processes(told) if process.of(app)]
    pids = {process.pid for process in found}
    mains = [process for process in found if process.parent not in pids]
    blocks = (block.splitlines() for block in shown.split("\n\n"))
    known = [dict(line.split("=", 1) for line in block if "=" in line) for block in blocks]
    units = {unit["Id"]: unit for unit in known if "Id" in unit}
    return tuple(
        _unit(name, units.get(name, {}), {one.pid: one.runs for one in mains if one.unit == name})
        for name in sorted({process.unit for process in mains})
    )


def _unit(name: str, shown: Mapping[str, str], runs: Mapping[int, str]) -> OtherUnit:
    of_celery = "celery" in shown.get("ExecStart", "").lower()
    return OtherUnit(name, shown["FragmentPath"] if of_celery else "", shown.get("Type") == "forking", runs)


class _Process(Struct, frozen=True):
    unit: str
    pid: int
    parent: int
    here: bool
    command: str

    def of(self, app: str) -> bool:
        return is_of(app, self.command, here=self.here)

    @property
    def runs(self) -> str:
        return what_runs(self.command)


def is_of(app: str, command: str, *, here: bool) -> bool:
    """Whether it is a worker or beat of the application: by the name it was started with, else by its place.

    `here` says that it works in the application's directory.
    """
    named = _APP.search(command)
    is_its = named[1].split(".")[0] == app.split(".")[0] if named else here
    return is_its and _RUNS.search(command) is not None


def what_runs(command: str) -> str:
    """`beat`, or `worker` with its node's name as far as it was given one, and `-B` where it is a beat, too.

    Nothing else of the command is told: it may hold secrets.
    """
    kind, node = _RUNS.search(command), _NODE.search(command)
    if not kind or kind[1] == "beat":
        return kind[1] if kind else ""
    words = [kind[1], *([node[1]] if node else []), *(["-B"] if _WITH_BEAT.search(command) else [])]
    return " ".join(words)


def is_service(command: str, node: str) -> bool:
    """Whether what runs is the worker `node`, or beat where that is "". Only what contradicts it counts against it.

    **Source:** celery 5.7.0 `utils/nodenames.py`: a name without `@` is the host of the node `celery`; `%h` and the
    like stand for what only the worker knows. `bin/celery.py`: options may come from the environment, too.
    """
    kind = _RUNS.search(command)
    if not kind:
        return False
    if not node:
        return kind[1] == "beat" or _WITH_BEAT.search(command) is not None
    given = _TITLE.search(command) or _NODE.search(command)
    if kind[1] != "worker" or not given:
        return kind[1] == "worker"
    text = given[1].strip("'\"")
    parts = text.split("@", 1) if "@" in text else ["celery", text]
    return all("%" in part or part == wanted for part, wanted in zip(parts, node.split("@", 1), strict=True))


def _processes(told: str) -> Iterator[_Process]:
    lines = told.split("\n")
    for head, command in zip(lines[0::2], lines[1::2], strict=False):
        here, unit, pid, rest = head.split(" ", 3)
        yield _Process(unit, int(pid), int(rest.rpartition(")")[2].split()[1]), here == "here", command)
