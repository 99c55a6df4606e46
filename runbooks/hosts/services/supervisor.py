"""supervisord: its programs, asked and told over its own interface, by its own code on the host."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence

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
"""It ends with its tasks, and nothing starts it again: it counts as one that does not run."""
_FATAL = 200
_EXITED = 100


class _Process(Struct, frozen=True):
    """`ticks` is its start in clock ticks since boot; `environment` is base64, "" where it cannot
    be read.
    """

    ticks: int
    pids: dict[int, int]
    environment: str


class _Program(Struct, frozen=True):
    """What supervisord tells of a program; `last` are the last lines of one that does not run,
    `said` the notable ones of one that does. `stop_wait_s` and `as_group` are those of ProgramStop;
    None where they are not known.

    **Source:** supervisor 4.3.0 `rpcinterface.py: getProcessInfo`, and what `supervisor_probe.py`
    adds.
    """

    state: int
    statename: str
    pid: int
    exitstatus: int
    description: str
    unread: bool
    process: _Process | None = None
    stop_wait_s: float | None = None
    as_group: bool | None = None
    last: list[str] = []
    said: list[str] = []


class _Look(Struct, frozen=True):
    """`asked` are the services that were asked for, and `logs` the log files of each program.

    `unread` are programs that only the files on the disk have, `ours` files that have this tool's
    mark. `zone` is the host's offset from UTC.
    """

    asked: list[str] = []
    programs: dict[str, _Program] = {}
    unread: list[str] = []
    ours: list[str] = []
    logs: dict[str, list[str]] = {}
    trouble: tuple[str, str] | None = None
    zone: str = ""


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
        """Those that were asked for, and those that files of ours describe."""
        look = _understood(host, answers[_LOOK])
        ours = [service for name in look.ours if (service := SUPERVISOR_PROGRAMS.service(name))]
        return {
            service: _state(host, service, look, clock)
            for service in dict.fromkeys((*look.asked, *ours))
        }

    def units(self, answers: Mapping[str, Answer]) -> Mapping[str, Unit]:
        return {}

    def said(self, host: FleetHost, answers: Mapping[str, Answer]) -> Mapping[str, Sequence[Line]]:
        look = _understood(host, answers[_LOOK])
        programs = {service: look.programs.get(program_of(host, service)) for service in look.asked}
        return {
            service: dated(one.said, zone_of(look.zone)) for service, one in programs.items() if one
        }

    def control(self, host: FleetHost, effect: ControlService) -> str:
        program, own = program_of(host, effect.service), _is_own(host, effect.service)
        return ask_control(host, effect.action, [program], own=own)

    def reload(self, host: FleetHost) -> str:
        return ask_supervisord(host, "reread", prefix="celery-")

    def enable(self, service: str, enabled: bool, *, reload: bool) -> str:
        return "echo 'what starts with supervisord stands in its conf files' >&2; exit 1"

    def environment(self, host: FleetHost) -> str:
        return ""

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return ()

    def ask_log_files(self, host: FleetHost, services: Sequence[str]) -> str:
        return ask_supervisord(
            host, "logs", programs=[program_of(host, service) for service in services]
        )

    def log_files(self, answer: Answer) -> Sequence[str]:
        """None where supervisord cannot be asked: a look says why."""
        look = msgspec.json.decode(answer.out or b"{}", type=_Look)
        return tuple(dict.fromkeys(path for paths in look.logs.values() for path in paths))

    def users(self, unit: str) -> Iterable[str]:
        return dict.fromkeys(re.findall(r"^user=(.+)$", unit, re.MULTILINE))

    def judge_together(self, units: Mapping[str, bytes]) -> str:
        return ""


def _is_own(host: FleetHost, service: str) -> bool:
    """Whether its conf file is this tool's, so that its program is a group of its own.

    A name with a `:` is no worker's: a run knew it as a `service` that the inventory has no more.
    """
    return not (host.is_others(service) or ":" in service)


def program_of(host: FleetHost, service: str) -> str:
    """The full name of a service's program. **Source:** supervisor 4.3.0 `options.py:
    split_namespec`.
    """
    if ":" in service:
        return service
    name = (
        SUPERVISOR_PROGRAMS.name(service).removesuffix(".conf")
        if _is_own(host, service)
        else service
    )
    return f"{name}:{name}"


def _understood(host: FleetHost, answer: Answer) -> _Look:
    """Raises RunbookError where supervisord cannot be asked, with what helps."""
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
                f"supervisord's configuration is not there: {path}",
                "give its path (celery_supervisor: conf)",
            )
        case ("denied", what):
            raise RunbookError(
                f"supervisord may not be asked by this user: {what}",
                "ansible_become: true asks as root; or have [unix_http_server] let this user in"
                " (chmod, chown)",
            )
        case ("left", pids):
            raise RunbookError(
                "supervisord does not run, and programs that it has started still do: pid"
                f" {', '.join(pids.split())}",
                "one that is started now would start them a second time: end them first, with sudo"
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
    runs = process if found.state != _STOPPING else None
    return ServiceState(
        found.pid if runs else None,
        clock.at(runs.ticks) if runs else None,
        _answer(found),
        enabled=False,
        needs_reload=found.unread,
        gave_up=found.state == _FATAL,
        pids=process.pids if process else {},
        environment=_environment(process) if process else None,
        last_lines=tuple(redact(line) for line in found.last),
        program_stop=(
            None if found.stop_wait_s is None else ProgramStop(found.stop_wait_s, found.as_group)
        ),
    )


def _answer(found: _Program) -> str:
    if found.state == _EXITED:
        return f"{found.statename}, exit status {found.exitstatus}, {found.description}"
    return f"{found.statename}, {found.description}" if found.description else found.statename


def _environment(process: _Process) -> Mapping[str, str] | None:
    if not process.environment:
        return None
    return digests(base64.b64decode(process.environment).decode(errors="surrogateescape"))
