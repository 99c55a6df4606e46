"""systemd: what it is asked about all of a host's services at once, what its answer means, and how
it is told.
"""

import base64
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.census import Unit
from runbooks.core.effects import ControlService, sha256
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost, mark_of
from runbooks.core.managers import SYSTEMD_UNITS, is_unit
from runbooks.core.model import DropIn, Process, ServiceState
from runbooks.hosts.census import unit_of
from runbooks.hosts.facts import Clock, digests
from runbooks.hosts.log import Log
from runbooks.hosts.script import Answer, quote, shell
from runbooks.hosts.services.journald import Journal, ask_said, parse_said
from runbooks.hosts.services.manager import ServiceManager
from runbooks.hosts.worker_log import LAST_LINES, Line

_PROPERTIES = (
    "Id,Names,LoadState,ActiveState,SubState,Result,NRestarts,MainPID,UnitFileState,NeedDaemonReload,DropInPaths,"
    "FragmentPath,Type,KillMode,User,InactiveExitTimestampMonotonic,EnvironmentFiles,PIDFile"
)


_NO_PROCESS = {"MainPID": "0", "NRestarts": "0"}
"""What systemd does not say of a timer."""


class Systemd(ServiceManager):
    """See `ServiceManager`."""

    free_text = False
    own_groups = (SYSTEMD_UNITS.name("*"), SYSTEMD_UNITS.beat)
    judge = "judge_systemd"

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        return {"units": ask_units(host, app, services)}

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        found = parse_units(answers["units"], clock)
        return {
            name: state
            for name, state in found.items()
            if name in host.services or not state.alias_of
        }

    def units(self, answers: Mapping[str, Answer]) -> Mapping[str, Unit]:
        """All but the variables that they set: this look does not ask for these."""
        told = _shown(answers["units"].out.decode(errors="replace").partition("---\n")[0])
        return {
            one["Id"]: replace(unit_of(one), names_celery=True, variables=None)
            for one in told
            if not one["Id"].endswith(".timer")
        }

    def ask_said(self, host: FleetHost, services: Sequence[str]) -> Mapping[str, str]:
        return {"journal": ask_said(map(_unit_name, services))}

    def said(self, host: FleetHost, answers: Mapping[str, Answer]) -> Mapping[str, Sequence[Line]]:
        return parse_said(answers["journal"])

    def ask_end(self, service: str, pid: int | None) -> str:
        return f"journalctl --no-pager --output=cat -n {LAST_LINES} -u {_unit(service)} 2>/dev/null"

    def control(self, host: FleetHost, effect: ControlService) -> str:
        """One that failed too often is not started before it is forgiven."""
        unit = _unit(effect.service)
        if effect.action == "start":
            return shell("systemd_start", SYSTEMD_UNITS.name(effect.service))
        forgive = (
            f"systemctl reset-failed -- {unit} 2>/dev/null\n" if effect.action == "restart" else ""
        )
        return f"{forgive}systemctl {effect.action} -- {unit}"

    def reload(self, host: FleetHost) -> str:
        return "systemctl daemon-reload"

    def enable(self, service: str, enabled: bool, *, reload: bool) -> str:
        """A timer is started with that, or stopped: only then does it run what it is for."""
        options = "--quiet" if reload else "--quiet --no-reload"
        now = " --now" if service.endswith(".timer") else ""
        return f"systemctl {options} {'enable' if enabled else 'disable'}{now} -- {_unit(service)}"

    def environment(self, host: FleetHost) -> str:
        units = " ".join(map(_unit, host.services))
        return (
            f"systemctl show --property=Environment --value -- {units} 2>/dev/null | tr '\\n' ' '"
            if units
            else ""
        )

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return (Journal(host, services),)

    def ask_log_files(self, host: FleetHost, services: Sequence[str]) -> str:
        return ""

    def log_files(self, answer: Answer) -> Sequence[str]:
        return ()

    def users(self, unit: str) -> Iterable[str]:
        """It misses a user only at the start. **Source:** systemd.exec(5), `User=`."""
        return dict.fromkeys(re.findall(r"^User=(.+)$", unit, re.MULTILINE))

    def judge_together(self, units: Mapping[str, bytes]) -> str:
        told = (
            text
            for name, content in units.items()
            for text in (name, base64.b64encode(content).decode())
        )
        return f"{shell('judge_systemd_all', *told, using=['judge_systemd'])}\n"


def _unit(service: str) -> str:
    return quote(_unit_name(service))


def _unit_name(service: str) -> str:
    """A timer goes by its own name."""
    return service if service.endswith(".timer") else SYSTEMD_UNITS.name(service)


def _service(unit: str) -> str:
    return unit if unit.endswith(".timer") else SYSTEMD_UNITS.service(unit)


def ask_units(host: FleetHost, app: str, services: Sequence[str]) -> str:
    """systemd's view of these services' units and of those with our mark; their drop-ins; each
    process in their groups.

    Of a process that nobody in the group has started it is told whether it names Celery.

    **Source:** systemctl(1); proc(5): the last field of a line of `/proc/PID/cgroup` is the group's
    path.
    """
    wanted = map(_unit_name, services)
    groups = "\n".join(["/celery-[^/]*[.]service$", *map(_group, filter(is_unit, services))])
    arguments = (host.settings.unit_directory, mark_of(app), _PROPERTIES, groups)
    return shell("systemd_units", *arguments, *wanted, using=["marked", "names"])


def _group(unit: str) -> str:
    """A basic regular expression for the path of its control group."""
    escaped = unit.replace("\\", r"\\").replace(".", "[.]")
    return f"/{escaped}$"


def parse_units(answer: Answer, clock: Clock) -> dict[str, ServiceState]:
    """The state of every service by its name, wanted ones and those whose unit is a left-over of
    ours.

    A unit of somebody else's is a service of its own name; what it is called besides is left out.

    **Source:** systemd.unit(5), "Aliases": a link to a unit of another name; `Id` is that one's,
    `Names` has both.

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
    return {
        _service(name) or name: (
            _state(unit, clock, running, found, environments)
            if name == unit["Id"]
            else _alias(unit["Id"])
        )
        for unit in _shown(units)
        for name in unit["Names"].split()
    }


def _shown(units: str) -> list[dict[str, str]]:
    """The properties of each unit. **Source:** systemctl(1), `show`."""
    return [_NO_PROCESS | _properties(block) for block in units.strip().split("\n\n") if block]


def _properties(block: str) -> dict[str, str]:
    """Those of one; the values of a property that is shown several times follow each other, a line
    each.
    """
    found: dict[str, str] = {}
    for name, _, value in (line.partition("=") for line in block.splitlines()):
        found[name] = f"{found[name]}\n{value}" if name in found else value
    return found


def _alias(unit: str) -> ServiceState:
    return ServiceState(None, None, f"another name of {unit}", alias_of=unit)


def _environments(shown: str) -> dict[str, dict[str, str]]:
    """The digests of the variables that each process was started with, by its pid. **Source:** GNU
    tail -v.
    """
    _, *parts = re.split(r"\n?==> /proc/(\d+)/environ <==\n", shown)
    told = {pid: digests(text) for pid, text in zip(parts[0::2], parts[1::2], strict=True)}
    return {pid: found for pid, found in told.items() if found is not None}


def _drop_ins(lines: Sequence[str]) -> dict[str, DropIn]:
    """Those that are there, by path. As with any file, a time from elsewhere cannot be later than
    when it was put here.

    **Source:** GNU stat; sha256sum: the digest, two characters, the path; grep -H: the path, a
    colon, the line.
    """
    told = [line.split(" ", 2) for line in lines if not line.startswith("/")]
    digests = {
        path: digest
        for digest, path in (line.split("  ", 1) for line in lines if line[64:66] == "  ")
    }
    times = {
        path: min(float(at), float(put_at))
        for at, put_at, path in told
        if put_at and path in digests
    }
    said = {
        path: tuple(line.removeprefix(f"{path}:") for line in lines if line.startswith(f"{path}:"))
        for path in times
    }
    return {path: DropIn(at, digests[path], said[path]) for path, at in times.items()}


class _Running(Struct, frozen=True):
    unit: str
    of_celery: bool
    parent: int
    process: Process


def _process(line: str) -> _Running:
    """**Source:** proc(5), `/proc/PID/stat`: pid, (name), state, ppid, …; field 22 is the start in
    clock ticks.
    """
    unit, what, pid, rest = line.split(" ", 3)
    name, _, fields = rest.rpartition(")")
    values = fields.split()
    return _Running(
        unit, what == "celery", int(values[1]), Process(int(pid), int(values[19]), name.lstrip("("))
    )


# **Source:** systemd 252 `service.c`: NRestarts counts the automatic ones since the last start that
# was asked for.
def _state(
    unit: Mapping[str, str],
    clock: Clock,
    running: Sequence[_Running],
    drop_ins: Mapping[str, DropIn],
    environments: Mapping[str, Mapping[str, str]],
) -> ServiceState:
    mine = [entry for entry in running if entry.unit == unit["Id"]]
    main = next(
        (entry for entry in mine if str(entry.process.pid) == unit["MainPID"]), None
    ) or _guessed(unit, mine)
    begun = (
        _begun(unit, clock)
        if unit.get("Type") in _DAEMONS
        else main.process.start_ticks
        if main
        else math.inf
    )
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
        enabled=_is_enabled(unit),
        needs_reload=unit["NeedDaemonReload"] == "yes",
        drop_ins={
            path: drop_ins.get(path, DropIn(0.0, sha256(None)))
            for path in unit["DropInPaths"].split()
        },
        gave_up=unit["ActiveState"] == "failed"
        or (unit["SubState"].startswith("auto-restart") and restarts > 0),
        leaked=(
            ()
            if starting
            else tuple(one.process for one in mine if _outlived(one, main, mine, begun))
        ),
        pids=(
            {e.process.pid: e.process.pid for e in mine}
            if any(_may_be_celery(e) for e in mine)
            else {}
        ),
        environment=environments.get(unit["MainPID"]),
        masked=unit["LoadState"] == "masked",
        starting=starting and not unit["SubState"].startswith("auto-restart"),
        reads=tuple(
            re.findall(
                r"^(.+) \(ignore_errors=\w+\)$", unit.get("EnvironmentFiles", ""), re.MULTILINE
            )
        ),
        exists=not _is_of_others(unit) or unit["LoadState"] != "not-found",
    )


def _is_idle_timer(unit: Mapping[str, str]) -> bool:
    return unit["Id"].endswith(".timer") and unit["ActiveState"] != "active"


def _is_enabled(unit: Mapping[str, str]) -> bool:
    """Of a unit of somebody else's only that it is not disabled: another unit may start it, or a
    generator made it.
    """
    if _is_of_others(unit):
        return unit["UnitFileState"] != "disabled"
    return unit["UnitFileState"] == "enabled" and not _is_idle_timer(unit)


def _is_of_others(unit: Mapping[str, str]) -> bool:
    return not _service(unit["Id"])


_DAEMONS = ("forking", "oneshot")
"""Types whose start leaves daemons behind and ends: systemd guesses the main one, and the others
are as good.

**Source:** systemd.service(5), `Type=`, `GuessMainPID=`.
"""


def _begun(unit: Mapping[str, str], clock: Clock) -> float:
    """When the unit was last started, in clock ticks. **Source:** org.freedesktop.systemd1(5): µs
    since boot.
    """
    return int(unit["InactiveExitTimestampMonotonic"]) / 1e6 * clock.ticks_per_s - 1


def _guessed(unit: Mapping[str, str], mine: Sequence["_Running"]) -> "_Running | None":
    """The first worker or beat that such a start left, where systemd knows no main process of what
    it calls active.
    """
    daemons = [entry for entry in mine if entry.of_celery]
    if unit.get("Type") not in _DAEMONS or unit["ActiveState"] != "active":
        return None
    return min(daemons, key=lambda entry: entry.process.start_ticks, default=None)


def _may_be_celery(entry: _Running) -> bool:
    """By its short name; where a unit runs a container's client alone, the worker is somewhere
    else.
    """
    return entry.process.name.startswith(("celery", "[celery", "python", "pypy"))


def _outlived(
    entry: _Running, main: _Running | None, mine: Sequence[_Running], begun: float
) -> bool:
    """Whether a process is, or comes from, a worker or beat that was started before the service was
    `begun` (ticks).

    What else lives on without its parent (a helper that a task has started and others use) takes no
    messages.
    """
    parents = {other.process.pid: other for other in mine}
    while entry is not main and entry.parent in parents:
        entry = parents[entry.parent]
    return entry is not main and entry.of_celery and entry.process.start_ticks < begun
