"""systemd: ask about all of a host's services at once, parse the answer, and control them."""

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
"""Properties that a timer does not have."""

_DAEMONS = ("forking", "oneshot")
"""Types whose start command ends and leaves daemons: systemd guesses one as the main process.

**Source:** systemd.service(5), `Type=`, `GuessMainPID=`.
"""


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
        found = {}
        for name, state in parse_units(answers["units"], clock).items():
            if name in host.services or not state.alias_of:
                found[name] = state
        return found

    def units(self, answers: Mapping[str, Answer]) -> Mapping[str, Unit]:
        """Return the units, without their variables, which this look does not ask for."""
        shown, _, _ = answers["units"].out.decode(errors="replace").partition("---\n")
        found = {}
        for one in _shown(shown):
            name = one["Id"]
            if not name.endswith(".timer"):
                found[name] = replace(unit_of(one), names_celery=True, variables=None)
        return found

    def ask_said(self, host: FleetHost, services: Sequence[str]) -> Mapping[str, str]:
        return {"journal": ask_said(map(_unit_name, services))}

    def said(self, host: FleetHost, answers: Mapping[str, Answer]) -> Mapping[str, Sequence[Line]]:
        return parse_said(answers["journal"])

    def ask_end(self, service: str, pid: int | None) -> str:
        return f"journalctl --no-pager --output=cat -n {LAST_LINES} -u {_unit(service)} 2>/dev/null"

    def control(self, host: FleetHost, effect: ControlService) -> str:
        """Control a service; one that failed too often needs a reset first."""
        unit = _unit(effect.service)
        if effect.action == "start":
            return shell("systemd_start", SYSTEMD_UNITS.name(effect.service))
        control = f"systemctl {effect.action} -- {unit}"
        if effect.action == "restart":
            return f"systemctl reset-failed -- {unit} 2>/dev/null\n{control}"
        return control

    def reload(self, host: FleetHost) -> str:
        return "systemctl daemon-reload"

    def enable(self, service: str, enabled: bool, *, reload: bool) -> str:
        """Enable or disable a unit; also start or stop a timer, which has no effect otherwise."""
        words = ["systemctl", "--quiet"]
        if not reload:
            words.append("--no-reload")
        words.append("enable" if enabled else "disable")
        if service.endswith(".timer"):
            words.append("--now")
        return " ".join([*words, "--", _unit(service)])

    def environment(self, host: FleetHost) -> str:
        units = " ".join(map(_unit, host.services))
        if not units:
            return ""
        return (
            f"systemctl show --property=Environment --value -- {units} 2>/dev/null | tr '\\n' ' '"
        )

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return (Journal(host, services),)

    def ask_log_files(self, host: FleetHost, services: Sequence[str]) -> str:
        return ""

    def log_files(self, answer: Answer) -> Sequence[str]:
        return ()

    def users(self, unit: str) -> Iterable[str]:
        """Return the users: systemd checks them only at the start.

        **Source:** systemd.exec(5), `User=`.
        """
        return dict.fromkeys(re.findall(r"^User=(.+)$", unit, re.MULTILINE))

    def judge_together(self, units: Mapping[str, bytes]) -> str:
        arguments: list[str] = []
        for name, content in units.items():
            arguments += [name, base64.b64encode(content).decode()]
        judged = shell("judge_systemd_all", *arguments, using=["judge_systemd"])
        return f"{judged}\n"


def _unit(service: str) -> str:
    return quote(_unit_name(service))


def _unit_name(service: str) -> str:
    """Return the unit of a service; a timer is its own."""
    if service.endswith(".timer"):
        return service
    return SYSTEMD_UNITS.name(service)


def _service(unit: str) -> str:
    if unit.endswith(".timer"):
        return unit
    return SYSTEMD_UNITS.service(unit)


def ask_units(host: FleetHost, app: str, services: Sequence[str]) -> str:
    """Ask for these services' units, those with our mark, their drop-ins, and their processes.

    The answer says whether a process without a parent in the group names Celery.

    **Source:** systemctl(1); proc(5): the last field of a line of `/proc/PID/cgroup` is the group's
    path.
    """
    wanted = map(_unit_name, services)
    groups = "\n".join(["/celery-[^/]*[.]service$", *map(_group, filter(is_unit, services))])
    arguments = (host.settings.unit_directory, mark_of(app), _PROPERTIES, groups)
    return shell("systemd_units", *arguments, *wanted, using=["marked", "names"])


def _group(unit: str) -> str:
    """Return a basic regular expression for the path of a unit's control group."""
    escaped = unit.replace("\\", r"\\").replace(".", "[.]")
    return f"/{escaped}$"


def parse_units(answer: Answer, clock: Clock) -> dict[str, ServiceState]:
    """Return the state of every service: wanted ones, and old ones whose units are still there.

    A unit of another owner is a service of the same name.

    **Source:** systemd.unit(5), "Aliases": a link to a unit of another name; `Id` is that unit's
    name, `Names` has both.

    Raises RunbookError if systemd does not answer.
    """
    if answer.code != 0:
        raise RunbookError(
            f"systemd does not answer: {answer.err.strip()[-300:] or 'systemctl failed'}",
            "does this host run systemd? (celery_service_manager)",
        )
    units, drop_ins, rest = answer.out.decode(errors="replace").split("---\n", 2)
    processes, _, environs = rest.partition("---\n")
    environments = _environments(environs)
    found = _drop_ins(drop_ins.splitlines())
    running = [_process(line) for line in processes.splitlines()]
    states = {}
    for unit in _shown(units):
        for name in unit["Names"].split():
            state = _alias(unit["Id"])
            if name == unit["Id"]:
                state = _state(unit, clock, running, found, environments)
            states[_service(name) or name] = state
    return states


def _shown(units: str) -> list[dict[str, str]]:
    """Return the properties of each unit. **Source:** systemctl(1), `show`."""
    return [_NO_PROCESS | _properties(block) for block in units.strip().split("\n\n") if block]


def _properties(block: str) -> dict[str, str]:
    """Return the properties of a unit; repeated ones have a line for each value."""
    found: dict[str, str] = {}
    for line in block.splitlines():
        name, _, value = line.partition("=")
        if name in found:
            value = f"{found[name]}\n{value}"
        found[name] = value
    return found


def _alias(unit: str) -> ServiceState:
    return ServiceState(None, None, f"another name of {unit}", alias_of=unit)


def _environments(shown: str) -> dict[str, dict[str, str]]:
    """Return the digests of each process's variables, by pid. **Source:** GNU tail -v."""
    _, *parts = re.split(r"\n?==> /proc/(\d+)/environ <==\n", shown)
    environments = {}
    for pid, text in zip(parts[0::2], parts[1::2], strict=True):
        found = digests(text)
        if found is not None:
            environments[pid] = found
    return environments


def _drop_ins(lines: Sequence[str]) -> dict[str, DropIn]:
    """Return the drop-ins that exist, by path; the time is not later than the file's creation here.

    **Source:** GNU stat; sha256sum: the digest, two characters, the path; grep -H: the path, a
    colon, the line.
    """
    digests = {}
    for line in lines:
        if line[64:66] == "  ":
            digest, path = line.split("  ", 1)
            digests[path] = digest
    found = {}
    for line in lines:
        if line.startswith("/"):
            continue
        at, put_at, path = line.split(" ", 2)
        if put_at and path in digests:
            changed_at = min(float(at), float(put_at))
            found[path] = DropIn(changed_at, digests[path], _lines_in(path, lines))
    return found


def _lines_in(path: str, lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines of a file, as grep -H prints them, without the path."""
    prefix = f"{path}:"
    return tuple(line.removeprefix(prefix) for line in lines if line.startswith(prefix))


class _Running(Struct, frozen=True):
    unit: str
    of_celery: bool
    parent: int
    process: Process


def _process(line: str) -> _Running:
    """Parse a process.

    **Source:** proc(5), `/proc/PID/stat`: pid, (name), state, ppid, …; field 22 is the start in
    clock ticks.
    """
    unit, what, pid, rest = line.split(" ", 3)
    name, _, fields = rest.rpartition(")")
    values = fields.split()
    return _Running(
        unit, what == "celery", int(values[1]), Process(int(pid), int(values[19]), name.lstrip("("))
    )


def _state(
    unit: Mapping[str, str],
    clock: Clock,
    running: Sequence[_Running],
    drop_ins: Mapping[str, DropIn],
    environments: Mapping[str, Mapping[str, str]],
) -> ServiceState:
    """Return the state of a service by its unit.

    **Source:** systemd 252 `service.c`: NRestarts counts automatic restarts since the last manual
    start.
    """
    mine = [entry for entry in running if entry.unit == unit["Id"]]
    main = _main(unit, mine)
    pid = None
    started_at = None
    if main:
        pid = main.process.pid
        started_at = clock.at(main.process.start_ticks)
    starting = unit["ActiveState"] == "activating" and unit["MainPID"] == "0"
    waits = unit["SubState"].startswith("auto-restart")
    leaked: tuple[Process, ...] = ()
    if not starting:
        begun = _begun(unit, clock, main)
        leaked = tuple(one.process for one in mine if _outlived(one, main, mine, begun))
    pids = {}
    if any(map(_may_be_celery, mine)):
        pids = {entry.process.pid: entry.process.pid for entry in mine}
    absent = DropIn(0.0, sha256(None))
    reads = re.findall(
        r"^(.+) \(ignore_errors=\w+\)$", unit.get("EnvironmentFiles", ""), re.MULTILINE
    )
    return ServiceState(
        pid,
        started_at,
        _said(unit, main),
        enabled=_is_enabled(unit),
        needs_reload=unit["NeedDaemonReload"] == "yes",
        drop_ins={path: drop_ins.get(path, absent) for path in unit["DropInPaths"].split()},
        gave_up=unit["ActiveState"] == "failed" or (waits and int(unit["NRestarts"]) > 0),
        leaked=leaked,
        pids=pids,
        environment=environments.get(unit["MainPID"]),
        masked=unit["LoadState"] == "masked",
        starting=starting and not waits,
        reads=tuple(reads),
        exists=not _is_of_others(unit) or unit["LoadState"] != "not-found",
    )


def _main(unit: Mapping[str, str], mine: Sequence[_Running]) -> _Running | None:
    """Return the main process of a unit, a guess for a unit without one; None if there is none."""
    for entry in mine:
        if str(entry.process.pid) == unit["MainPID"]:
            return entry
    return _guessed(unit, mine)


def _said(unit: Mapping[str, str], main: _Running | None) -> str:
    said = f"{unit['LoadState']}, {unit['ActiveState']} ({unit['SubState']})"
    if unit["Result"] != "success":
        said += f", the last run ended with: {unit['Result']}"
    restarts = int(unit["NRestarts"])
    if restarts and not main:
        said += f", automatic restarts: {restarts}"
    return said


def _is_idle_timer(unit: Mapping[str, str]) -> bool:
    return unit["Id"].endswith(".timer") and unit["ActiveState"] != "active"


def _is_enabled(unit: Mapping[str, str]) -> bool:
    """Whether a unit starts with the host.

    A unit of another owner counts as enabled unless it is disabled: another unit may start it, or a
    generator may have created it.
    """
    if _is_of_others(unit):
        return unit["UnitFileState"] != "disabled"
    return unit["UnitFileState"] == "enabled" and not _is_idle_timer(unit)


def _is_of_others(unit: Mapping[str, str]) -> bool:
    return not _service(unit["Id"])


def _begun(unit: Mapping[str, str], clock: Clock, main: _Running | None) -> float:
    """Return the service's last start, in clock ticks; infinity if it does not run.

    **Source:** org.freedesktop.systemd1(5): µs since boot.
    """
    if unit.get("Type") in _DAEMONS:
        return int(unit["InactiveExitTimestampMonotonic"]) / 1e6 * clock.ticks_per_s - 1
    if main:
        return main.process.start_ticks
    return math.inf


def _guessed(unit: Mapping[str, str], mine: Sequence[_Running]) -> _Running | None:
    """Return the first worker or beat of an active unit without a main process; None otherwise."""
    daemons = [entry for entry in mine if entry.of_celery]
    if unit.get("Type") not in _DAEMONS or unit["ActiveState"] != "active":
        return None
    return min(daemons, key=lambda entry: entry.process.start_ticks, default=None)


def _may_be_celery(entry: _Running) -> bool:
    """Whether a process may be Celery's, by its short name: a unit may run a container's client."""
    return entry.process.name.startswith(("celery", "[celery", "python", "pypy"))


def _outlived(
    entry: _Running, main: _Running | None, mine: Sequence[_Running], begun: float
) -> bool:
    """Whether a process is, or comes from, a worker or beat that is older than the service.

    `begun` is the start of the service in ticks. Other processes without parents, such as a helper
    that a task has started, take no messages.
    """
    parents = {other.process.pid: other for other in mine}
    while entry is not main and entry.parent in parents:
        entry = parents[entry.parent]
    return entry is not main and entry.of_celery and entry.process.start_ticks < begun
