"""What systemd is asked about all of a host's services at once, and what its answer means."""

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from runbooks.core.effects import sha256
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost, service_of, unit_of
from runbooks.core.model import DropIn, Process, ServiceState
from runbooks.hosts.facts import Clock, marked
from runbooks.hosts.script import Answer, quote

_PROPERTIES = "Id,LoadState,ActiveState,SubState,Result,NRestarts,MainPID,UnitFileState,NeedDaemonReload,DropInPaths"


def ask_units(host: FleetHost, app: str, services: Sequence[str]) -> str:
    """systemd's view of these services' units and of those with our mark; their drop-ins; each process in their groups.

    Of a process that nobody in the group has started it is told whether it names Celery.

    **Source:** systemctl(1); proc(5): the last field of a line of `/proc/PID/cgroup` is the group's path.
    """
    wanted = [quote(unit_of(service)) for service in services]
    return (
        f"cd {quote(host.settings.unit_directory)} || exit 1\n"
        "ours=; for path in celery-worker@?*.service celery-beat.service; do\n"
        f"case $path in {'|'.join(wanted)}) continue;; esac\n"  # each that is shown costs systemd half a millisecond
        f'{marked(app)} && ours="$ours $path"; done\n'
        f"shown=$(systemctl show --property={_PROPERTIES} -- {' '.join(wanted)} $ours) || exit 1\n"
        'printf "%s\\n---\\n" "$shown"; set --; dropins= environs=\n'
        "for word in $shown; do\n"
        'case $word in MainPID=0) ;; MainPID=*) environs="$environs /proc/${word#*=}/environ";; esac\n'
        "case $word in DropInPaths=*) dropins=1 word=${word#*=};; *=*) dropins=;; esac\n"
        'case $dropins$word in 1/*) set -- "$@" "$word";; esac; done\n'
        '[ $# -eq 0 ] || { LC_ALL=C stat -L -c \'%.Y %.Z %n\' -- "$@"; sha256sum -- "$@"; }; echo ---\n'
        "grep -sH '/celery-[^/]*[.]service$' /proc/[0-9]*/cgroup | while read -r line; do\n"
        'pid=${line#/proc/}; pid=${pid%%/*}; [ "$pid" != "$last" ] || continue; last=$pid\n'
        'read -r stat <"/proc/$pid/stat" || continue; what=-\n'
        'case ${stat##*) } in ?" 1 "*) ! grep -qsa celery "/proc/$pid/cmdline" || what=celery;; esac\n'
        'printf "%s %s %s\\n" "${line##*/}" "$what" "$stat"; done; echo ---\n'
        '[ -z "$environs" ] || tail -v -c +1 -- $environs 2>/dev/null; :'
    )


def parse_units(answer: Answer, clock: Clock) -> dict[str, ServiceState]:
    """The state of every service by its name, wanted ones and those whose unit is a left-over of ours.

    Raises RunbookError where systemd does not answer.
    """
    if answer.code != 0:
        raise RunbookError(
            f"systemd does not answer: {answer.err.strip()[-300:] or 'systemctl failed'}",
            "is this a host with systemd? (celery_service_manager)",
        )
    units, drop_ins, rest = answer.out.decode(errors="replace").split("---\n", 2)
    processes, _, environs = rest.partition("---\n")
    environments = _environments(environs)
    found = _drop_ins(drop_ins.splitlines())
    running = [_process(line) for line in processes.splitlines()]
    shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in units.strip().split("\n\n") if block]
    return {service_of(unit["Id"]): _state(unit, clock, running, found, environments) for unit in shown}


def _environments(shown: str) -> dict[str, dict[str, str]]:
    """The digests of the variables that each process was started with, by its pid.

    **Source:** proc(5), `/proc/PID/environ`; GNU tail -v. A process that gives itself a title writes over it.
    """
    _, *parts = re.split(r"\n?==> /proc/(\d+)/environ <==\n", shown)
    found = {}
    for pid, text in zip(parts[0::2], parts[1::2], strict=True):
        pairs = [item.split("=", 1) for item in text.strip("\0").split("\0")]
        if all(len(pair) == 2 for pair in pairs):
            found[pid] = {name: sha256(value.encode()) for name, value in pairs}
    return found


def _drop_ins(lines: Sequence[str]) -> dict[str, DropIn]:
    """Those that are there, by path. As with any file, a time from elsewhere cannot be later than when it was put here.

    **Source:** GNU stat, then sha256sum: the digest, two characters, the path.
    """
    told = [line.split(" ", 2) for line in lines]
    digests = {path: digest for digest, path in (line.split("  ", 1) for line in lines if line[64:66] == "  ")}
    times = {path: min(float(at), float(put_at)) for at, put_at, path in told if put_at and path in digests}
    return {path: DropIn(at, digests[path]) for path, at in times.items()}


class _Running(Struct, frozen=True):
    unit: str
    of_celery: bool
    parent: int
    process: Process


def _process(line: str) -> _Running:
    """**Source:** proc(5), `/proc/PID/stat`: pid, (name), state, ppid, …; field 22 is the start in clock ticks."""
    unit, what, pid, rest = line.split(" ", 3)
    name, _, fields = rest.rpartition(")")
    values = fields.split()
    return _Running(unit, what == "celery", int(values[1]), Process(int(pid), int(values[19]), name.lstrip("(")))


# **Source:** systemd 252 `service.c`: NRestarts counts the automatic ones since the last start that was asked for.
def _state(
    unit: Mapping[str, str],
    clock: Clock,
    running: Sequence[_Running],
    drop_ins: Mapping[str, DropIn],
    environments: Mapping[str, Mapping[str, str]],
) -> ServiceState:
    mine = [entry for entry in running if entry.unit == unit["Id"]]
    main = next((entry for entry in mine if str(entry.process.pid) == unit["MainPID"]), None)
    said = f"{unit['LoadState']}, {unit['ActiveState']} ({unit['SubState']})"
    if unit["Result"] != "success":
        said += f", the last run ended with: {unit['Result']}"
    if (restarts := int(unit["NRestarts"])) and not main:
        said += f", automatic restarts: {restarts}"
    starting = unit["ActiveState"] == "activating" and unit["MainPID"] == "0"
    return ServiceState(
        main.process.pid if main else None,
        clock.at(main.process.start_ticks) if main else None,
        said,
        enabled=unit["UnitFileState"] == "enabled",
        needs_reload=unit["NeedDaemonReload"] == "yes",
        drop_ins={path: drop_ins.get(path, DropIn(0.0, sha256(None))) for path in unit["DropInPaths"].split()},
        gave_up=unit["ActiveState"] == "failed" or (unit["SubState"].startswith("auto-restart") and restarts > 0),
        leaked=() if starting else tuple(entry.process for entry in mine if _outlived(entry, main, mine)),
        pids={e.process.pid: e.process.pid for e in mine} if any(_may_be_celery(e) for e in mine) else {},
        environment=environments.get(unit["MainPID"]),
        masked=unit["LoadState"] == "masked",
        starting=starting and not unit["SubState"].startswith("auto-restart"),
    )


def _may_be_celery(entry: _Running) -> bool:
    """By its short name; where a unit runs a container's client alone, the worker is somewhere else."""
    return entry.process.name.startswith(("celery", "[celery", "python", "pypy"))


def _outlived(entry: _Running, main: _Running | None, mine: Sequence[_Running]) -> bool:
    """Whether a process is, or comes from, a worker or beat that was started before the main one.

    What else lives on without its parent (a helper that a task has started and others use) takes no messages.
    """
    parents = {other.process.pid: other for other in mine}
    while entry is not main and entry.parent in parents:
        entry = parents[entry.parent]
    earlier = main is None or entry.process.start_ticks < main.process.start_ticks
    return entry is not main and entry.of_celery and earlier
