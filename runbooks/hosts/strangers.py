"""Finds workers and beats of the application that none of this tool's services runs, and who does run them.

Such a one, of `celery multi` say, of a unit that somebody wrote by hand, of a shell or a container, takes the same
messages, or starts a second node of the same name. What it is called is not asked: its processes show it.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from msgspec import Struct

from runbooks.core.fleet import FleetHost
from runbooks.core.model import Manager, OtherRunner
from runbooks.hosts.script import Answer, quote

# A process that has told a title of its own is `[celeryd: NODE:MainProcess] … (-A app worker …)`.
_TITLE = re.compile(r"^\[celeryd: ([^\s\]]+):MainProcess\]")
_BEAT_TITLE = re.compile(r"^\[celery beat\]")
# Of any other the place of the words counts: `sh -c "celery …"`, `watch celery …`, `tail celery.log` are no Celery, and
# `celery -A worker beat` is a beat.
_VALUED = r"-A|-b|--(?:app|broker|result-backend|loader|config|workdir)"
_RUNS = re.compile(
    r"^(?:\S*/)?(?:(?:python|pypy)[\w.]*\s+(?:-[WX]\s?\S+\s+|-\w+\s+)*(?:\S*/)?(?:manage\.py\s+)?)?celery\s+"
    rf"(?:(?:{_VALUED})[ =]\s*\S+\s+|(?!(?:{_VALUED})\s)-\S+\s+)*(worker|beat)(?:\s|$)"
)
_APP = re.compile(r"\s\(?(?:-A\s?|--app[ =])([\w.]+)")
_WITH_BEAT = re.compile(r"\s\(?(?:-[DE]*B|--beat)")
_NODE = re.compile(r"\s\(?(?:-n\s?|--hostname[ =])([^\s)]+)")
_CONTAINER = re.compile(r"([0-9a-f]{64})(?:\.scope)?$")


class CeleryProcess(Struct, frozen=True):
    """A process whose command names Celery.

    `group` is its control group's path. `here`: it works in the application's directory; `inside`: in a pid namespace
    of its own, as in a container; `supervised`: below a supervisord.
    """

    pid: int
    parent: int
    command: str
    group: str = ""
    here: bool = False
    inside: bool = False
    supervised: bool = False

    @property
    def unit(self) -> str:
        """The unit or scope of systemd's that it is in, "" where that is none."""
        last = self.group.rpartition("/")[2]
        return last if last.endswith((".service", ".scope")) else ""

    def of(self, app: str) -> bool:
        return is_of(app, self.command, here=self.here)

    @property
    def container(self) -> str:
        """The id of the container that it is in, "" where it is in none."""
        found = _CONTAINER.search(self.group) if self.inside else None
        return found[1] if found else ""


def ask_strangers(host: FleetHost) -> str:
    """The processes that name Celery, but for those in units named as ours are; what systemd says of their units.

    Without systemd one user may have two installations on a host, each in its own directory: there only what works in
    the application's, or in a container. Of a process: what else is known of it and its `stat`; its control group;
    then, together, the command lines.

    **Source:** proc(5); test(1), `-ef`; systemctl(1); pid_namespaces(7); GNU tail. The last line of `/proc/PID/cgroup`
    is systemd's own hierarchy.
    """
    skip = "case $unit in celery-worker@*.service | celery-beat.service) continue ;; esac"
    if not host.has_systemd:
        skip = '[ "$here$inside" != -- ] || continue'
    return (
        'kept() { up=$1; while [ "$up" -gt 1 ] && read -r seen <"/proc/$up/stat"; do\n'
        "case $seen in *'(supervisord)'*) return 0 ;; esac; set -- ${seen##*) }; up=$2; done; return 1; } 2>/dev/null\n"
        "supervised=$(grep -slx supervisord /proc/[0-9]*/comm)\n"
        "set --; units=; for path in $(grep -lsa 'cele[r]y' /proc/[0-9]*/cmdline); do\n"
        "pid=${path#/proc/}; pid=${pid%/*}\n"
        f'here=-; [ ! "/proc/$pid/cwd" -ef {quote(host.settings.directory)} ] || here=here\n'
        'inside=-; [ ! -e "/proc/$pid/ns/pid" ] || [ "/proc/$pid/ns/pid" -ef /proc/self/ns/pid ] || inside=inside\n'
        'group=; while read -r line; do group=$line; done <"/proc/$pid/cgroup"; unit=${group##*/}\n'
        f'{skip}; read -r stat <"/proc/$pid/stat" || continue\n'
        'by=-; [ -z "$supervised" ] || ! kept "$pid" || by=supervisord\n'
        'printf "%s %s %s %s\\n%s\\n" "$here" "$inside" "$by" "$stat" "$group"; set -- "$@" "$path"\n'
        'case $unit in *.service | *.scope) units="$units $unit" ;; esac; done 2>/dev/null\n'
        'echo ---; [ $# -eq 0 ] || tail -v -c +1 -- "$@" 2>/dev/null; echo; echo ---\n'
        '[ -z "$units" ] || systemctl show --property=Id,Type,FragmentPath,ExecStart -- $units 2>/dev/null; :'
    )


def parse_strangers(answer: Answer) -> tuple[list[CeleryProcess], dict[str, Mapping[str, str]]]:
    """The processes, and systemd's properties of their units by name."""
    told, _, shown = answer.out.decode(errors="replace").rpartition("\n---\n")
    heads, _, commands = told.partition("---\n")
    blocks = (block.splitlines() for block in shown.split("\n\n"))
    known = [dict(line.split("=", 1) for line in block if "=" in line) for block in blocks]
    _, *parts = re.split(r"\n?==> /proc/(\d+)/cmdline <==\n", commands)
    said = dict(zip(map(int, parts[0::2]), parts[1::2], strict=True))
    return list(_processes(heads, said)), {unit["Id"]: unit for unit in known if "Id" in unit}


def _processes(heads: str, said: Mapping[int, str]) -> Iterator[CeleryProcess]:
    lines = heads.splitlines()
    for head, group in zip(lines[0::2], lines[1::2], strict=True):
        here, inside, by, pid, rest = head.split(" ", 4)
        parent = int(rest.rpartition(")")[2].split()[1])
        command = said.get(int(pid), "").translate({0: " ", 10: " "}).strip()
        yield CeleryProcess(int(pid), parent, command, group, here == "here", inside == "inside", by == "supervisord")


def others(
    app: str,
    processes: Sequence[CeleryProcess],
    units: Mapping[str, Mapping[str, str]],
    ours: Collection[int],
) -> tuple[OtherRunner, ...]:
    """Who else runs workers or beats of the application, in the order of their names; `ours` are our services' pids.

    What lies in a pid namespace that is no container's, as that of systemd-nspawn, is on another host.
    """
    its = [one for one in processes if one.of(app) and (one.container or not one.inside)]
    inner = {one.pid for one in its} | set(ours)
    mains = [one for one in its if one.pid not in ours and one.parent not in inner]
    found: dict[str, list[CeleryProcess]] = {}
    for one in mains:
        found.setdefault(_name(one), []).append(one)
    return tuple(_runner(name, found[name], units.get(found[name][0].unit, {})) for name in sorted(found))


def _name(one: CeleryProcess) -> str:
    if one.container:
        return f"container {one.container[:12]}"
    return "supervisord" if one.supervised else one.unit or f"process {one.pid}"


def _runner(name: str, mains: Sequence[CeleryProcess], shown: Mapping[str, str]) -> OtherRunner:
    one, runs = mains[0], {one.pid: what_runs(one.command) for one in mains}
    if one.container:
        engine = Manager.PODMAN if "libpod" in one.group else Manager.DOCKER if "docker" in one.group else None
        return OtherRunner(name, runs, engine or Manager.CONTAINER)
    if one.supervised:
        return OtherRunner(name, runs, Manager.SUPERVISORD)
    if "celery" in shown.get("ExecStart", "").lower():
        return OtherRunner(name, runs, Manager.SYSTEMD, shown["FragmentPath"], shown.get("Type") == "forking")
    return OtherRunner(name, runs)


def is_of(app: str, command: str, *, here: bool) -> bool:
    """Whether it is a worker or beat of the application: by the name it was started with, else by its place.

    `here` says that it works in the application's directory.
    """
    named = _APP.search(command)
    is_its = named[1].split(".")[0] == app.split(".")[0] if named else here
    return is_its and what_runs(command) != ""


def what_runs(command: str) -> str:
    """`beat`, or `worker` with its node's name as far as it was given one, and `-B` where it is a beat, too; else "".

    Nothing else of the command is told: it may hold secrets.
    """
    kind = _kind(command)
    if kind != "worker":
        return kind
    node = _TITLE.search(command) or _NODE.search(command)
    words = [kind, *([node[1]] if node else []), *(["-B"] if _WITH_BEAT.search(command) else [])]
    return " ".join(words)


def _kind(command: str) -> str:
    if _BEAT_TITLE.search(command):
        return "beat"
    found = _RUNS.search(command)
    return "worker" if _TITLE.search(command) else found[1] if found else ""


def is_service(command: str, node: str) -> bool:
    """Whether what runs is the worker `node`, or beat where that is "". Only what contradicts it counts against it.

    **Source:** celery 5.7.0 `utils/nodenames.py`: a name without `@` is the host of the node `celery`; `%h` and the
    like stand for what only the worker knows. `bin/celery.py`: options may come from the environment, too.
    """
    kind = _kind(command)
    if not kind:
        return False
    if not node:
        return kind == "beat" or _WITH_BEAT.search(command) is not None
    given = _TITLE.search(command) or _NODE.search(command)
    if kind != "worker" or not given:
        return kind == "worker"
    text = given[1].strip("'\"")
    parts = text.split("@", 1) if "@" in text else ["celery", text]
    return all("%" in part or part == wanted for part, wanted in zip(parts, node.split("@", 1), strict=True))
