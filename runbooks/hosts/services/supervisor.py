"""supervisord: ask and control its programs over its own interface, with its own code."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import msgspec
from msgspec import Struct

from runbooks.core.census import Unit
from runbooks.core.effects import ControlService
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost, mark_of
from runbooks.core.managers import SUPERVISOR_PROGRAMS
from runbooks.core.model import ProgramStop, ServiceState
from runbooks.core.redaction import redact
from runbooks.hosts.facts import Clock, digests
from runbooks.hosts.log import Log
from runbooks.hosts.script import Answer
from runbooks.hosts.services.manager import ServiceManager
from runbooks.hosts.supervisord import ask_control, ask_supervisord
from runbooks.hosts.worker_log import BYTES, FAILURE, NOTABLE, OUTCOME, Line, dated, zone_of

_LOOK = "programs"
_STOPPING = 40
"""It ends after its tasks and does not start again: it counts as a program that does not run."""
_FATAL = 200
_EXITED = 100


class _Process(Struct, frozen=True):
    """**Source:** `supervisor_probe.py: process`."""

    ticks: int
    """Its start, in clock ticks since boot."""
    pids: dict[int, int]
    environment: str
    """In base64, "" if it cannot be read."""


class _Program(Struct, frozen=True):
    """**Source:** supervisor 4.3.0 `rpcinterface.py: getProcessInfo`; our `supervisor_probe.py`."""

    state: int
    statename: str
    pid: int
    exitstatus: int
    description: str
    unread: bool
    process: _Process | None = None
    stop_wait_s: float | None = None
    """See `ProgramStop`, as `as_group`; None if not known."""
    as_group: bool | None = None
    last: list[str] = []
    """The last lines of the log, if it does not run."""
    said: list[str] = []
    """The notable lines of the log, if it runs."""


class _Look(Struct, frozen=True):
    """**Source:** `supervisor_probe.py: look, logs`."""

    asked: list[str] = []
    """The services that were asked for."""
    programs: dict[str, _Program] = {}
    unread: list[str] = []
    """Programs that only the files on the disk have."""
    ours: list[str] = []
    """Files with this tool's mark."""
    logs: dict[str, list[str]] = {}
    """The log files of each program."""
    trouble: tuple[str, str] | None = None
    zone: str = ""
    """The host's offset from UTC."""


class Supervisor(ServiceManager):
    """See `ServiceManager`."""

    free_text = True
    own_groups = ()
    judge = "judge_supervisor"

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        where = {"directory": host.settings.unit_directory, "mark": mark_of(app)}
        logs = {"bytes": BYTES, "notable": NOTABLE, "failure": FAILURE, "outcome": OUTCOME}
        return {_LOOK: ask_supervisord(host, "look", asked=services, **where, **logs)}

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        """Return the services that were asked for, and those in our files."""
        look = _understood(host, answers[_LOOK])
        ours = filter(None, map(SUPERVISOR_PROGRAMS.service, look.ours))
        states = {}
        for service in dict.fromkeys((*look.asked, *ours)):
            states[service] = _state(host, service, look, clock)
        return states

    def units(self, answers: Mapping[str, Answer]) -> Mapping[str, Unit]:
        return {}

    def said(self, host: FleetHost, answers: Mapping[str, Answer]) -> Mapping[str, Sequence[Line]]:
        look = _understood(host, answers[_LOOK])
        zone = zone_of(look.zone)
        found = {}
        for service in look.asked:
            program = look.programs.get(program_of(host, service))
            if program:
                found[service] = dated(program.said, zone)
        return found

    def control(self, host: FleetHost, effect: ControlService) -> str:
        program = program_of(host, effect.service)
        own = _is_own(host, effect.service)
        return ask_control(host, effect.action, [program], own=own)

    def reload(self, host: FleetHost) -> str:
        return ask_supervisord(host, "reread", prefix="celery-")

    def enable(self, service: str, enabled: bool, *, reload: bool) -> str:
        return "echo 'only its conf files say what starts with supervisord' >&2; exit 1"

    def environment(self, host: FleetHost) -> str:
        return ""

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return ()

    def ask_log_files(self, host: FleetHost, services: Sequence[str]) -> str:
        programs = [program_of(host, service) for service in services]
        return ask_supervisord(host, "logs", programs=programs)

    def log_files(self, answer: Answer) -> Sequence[str]:
        """Return the paths; none if supervisord does not answer: a look reports why."""
        look = msgspec.json.decode(answer.out or b"{}", type=_Look)
        return tuple(dict.fromkeys(chain.from_iterable(look.logs.values())))

    def users(self, unit: str) -> Iterable[str]:
        return dict.fromkeys(re.findall(r"^user=(.+)$", unit, re.MULTILINE))

    def judge_together(self, units: Mapping[str, bytes]) -> str:
        return ""


def _is_own(host: FleetHost, service: str) -> bool:
    """Whether its conf file is this tool's, so that its program has its own group.

    A name with a `:` is not a worker's: a run recorded it as a `service` of an older inventory.
    """
    return not (host.is_others(service) or ":" in service)


def program_of(host: FleetHost, service: str) -> str:
    """Return the full name of a service's program.

    **Source:** supervisor 4.3.0 `options.py: split_namespec`.
    """
    if ":" in service:
        return service
    name = service
    if _is_own(host, service):
        name = SUPERVISOR_PROGRAMS.name(service).removesuffix(".conf")
    return f"{name}:{name}"


def _understood(host: FleetHost, answer: Answer) -> _Look:
    """Parse a look. Raises RunbookError, with advice, if supervisord cannot be asked."""
    supervisor = host.settings.supervisor
    if answer.code == 127:
        raise RunbookError(
            f"{answer.err.strip()[-300:]}",
            "install supervisor, or give the path of its supervisorctl (celery_supervisor: ctl)",
        )
    if answer.code != 0:
        raise RunbookError(
            "supervisord cannot be asked:"
            f" {redact(answer.err.strip())[-300:] or 'supervisorctl failed'}",
            f"does `supervisorctl -c {supervisor.conf} status` work there? (celery_supervisor:"
            " conf)",
        )
    look = msgspec.json.decode(answer.out, type=_Look)
    match look.trouble:
        case ("no-conf", path):
            raise RunbookError(
                f"supervisord's configuration does not exist: {path}",
                "give its path (celery_supervisor: conf)",
            )
        case ("denied", what):
            raise RunbookError(
                f"this user may not ask supervisord: {what}",
                "ask as root (ansible_become: true), or allow this user in [unix_http_server]"
                " (chmod, chown)",
            )
        case ("left", pids):
            raise RunbookError(
                "supervisord does not run, but programs that it has started still run: pid"
                f" {', '.join(pids.split())}",
                "a new supervisord would start them a second time, so end them first: sudo"
                f" kill -TERM {pids}; then sudo systemctl start supervisor, or supervisord -c"
                f" {supervisor.conf}",
            )
        case (_, what):
            raise RunbookError(
                f"supervisord does not run: nothing answers at {what}",
                f"start it: sudo systemctl start supervisor, or supervisord -c {supervisor.conf}",
            )
    return look


def _state(host: FleetHost, service: str, look: _Look, clock: Clock) -> ServiceState:
    name = program_of(host, service)
    found = look.programs.get(name)
    if found is None:
        own = _is_own(host, service)
        return ServiceState(
            None,
            None,
            "no such process",
            enabled=False,
            needs_reload=name in look.unread,
            exists=own,
        )
    process = found.process
    pid = None
    started_at = None
    if process and found.state != _STOPPING:
        pid = found.pid
        started_at = clock.at(process.ticks)
    stop = None
    if found.stop_wait_s is not None:
        stop = ProgramStop(found.stop_wait_s, found.as_group)
    return ServiceState(
        pid,
        started_at,
        _answer(found),
        enabled=False,
        needs_reload=found.unread,
        gave_up=found.state == _FATAL,
        pids=process.pids if process else {},
        environment=_environment(process),
        last_lines=tuple(redact(line) for line in found.last),
        program_stop=stop,
    )


def _answer(found: _Program) -> str:
    if found.state == _EXITED:
        return f"{found.statename}, exit status {found.exitstatus}, {found.description}"
    if found.description:
        return f"{found.statename}, {found.description}"
    return found.statename


def _environment(process: _Process | None) -> Mapping[str, str] | None:
    if not process or not process.environment:
        return None
    return digests(base64.b64decode(process.environment).decode(errors="surrogateescape"))
