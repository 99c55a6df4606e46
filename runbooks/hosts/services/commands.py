"""Services that commands of the inventory control, such as `celery multi` or start scripts."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from msgspec.structs import replace

from runbooks.core.effects import ControlService
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ServiceState
from runbooks.core.redaction import redact
from runbooks.core.settings import filled
from runbooks.hosts.celery_argv import main_options_of
from runbooks.hosts.census import is_of, what_runs
from runbooks.hosts.facts import Clock, digests
from runbooks.hosts.log import Log
from runbooks.hosts.script import Answer, quote, shell
from runbooks.hosts.services.by_processes import is_it
from runbooks.hosts.services.manager import WithoutUnits

NOT_RUNNING = 3
"""**Source:** LSB Core, "Init Script Actions": `status` exits 3 when the program is not running."""


class ByCommands(WithoutUnits):
    """See `ServiceManager`. `eval` runs the commands, so that a missing quote affects only one."""

    free_text = True
    own_groups = ()

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        if host.known_from_processes:
            return {}
        return {service: _ask(host, service) for service in services}

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        states = {}
        for service, answer in answers.items():
            states[service] = _parse(host, app, service, answer, clock)
        return states

    def control(self, host: FleetHost, effect: ControlService) -> str:
        if effect.action not in ("start", "stop"):
            return _restart(host, effect)
        command = _command(host, effect.service, effect.action)
        return f"cd {quote(host.settings.directory)} && eval {quote(command)}"

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return ()


def _command(host: FleetHost, service: str, action: str) -> str:
    assert host.settings.commands
    return filled(host.settings.commands.given[action], host.words_of(service))


def _restart(host: FleetHost, effect: ControlService) -> str:
    """Stop, wait for the end of the old process, then start.

    `celery multi stop` and a plain `kill` do not wait. A new worker beside the old one would find
    its pid file, take it for another worker's, and exit; then the old one ends, too. **Source:**
    proc(5), `ShdPnd` in `/proc/PID/status`: a mask of pending signals; TERM is 0x4000.
    """
    stop = _command(host, effect.service, "stop")
    start = _command(host, effect.service, "start")
    status = []
    if not host.known_from_processes:
        status = [_command(host, service, "status") for service in effect.services]
    processes = " ".join(f"{pid}:{ticks}" for pid, ticks in effect.processes)
    seconds = str(int(host.settings.stop_timeout))
    return shell(
        "commands_restart",
        host.settings.directory,
        stop,
        start,
        seconds,
        processes,
        *status,
        using=["alive"],
    )


def _ask(host: FleetHost, service: str) -> str:
    """Return the fragment that runs the status command, and reads the processes that it names.

    **Source:** proc(5): `/proc/PID/task/TID/children`; field NSpid of `/proc/PID/status` is a
    process's pid in each pid namespace that it is in, its own last.
    """
    return shell("commands_status", host.settings.directory, _command(host, service, "status"))


def _parse(host: FleetHost, app: str, service: str, answer: Answer, clock: Clock) -> ServiceState:
    """Parse a service's state; `why_unknown` if its status command does not say whether it runs.

    A process counts if it, or one below it, is a Celery worker or beat of the application with this
    node: an old pid file may have the pid of another process by now.

    **Source:** proc(5): field 22 of `/proc/PID/stat`, after the command in parentheses, is the
    start in clock ticks since boot.
    """
    stat, *rest = answer.out.decode(errors="replace").split("\n")
    below = list(takewhile(bool, rest))
    said = redact("\n".join(rest[len(below) + 1 :]).strip())
    if answer.code == NOT_RUNNING:
        return ServiceState(None, None, said)
    if answer.code != 0 or stat == "-":
        said = said or redact(answer.err.strip())
        output = said[-300:] or "nothing"
        why_unknown = f"its status command exited with {answer.code} and printed: {output}"
        return ServiceState(None, None, said, why_unknown=why_unknown)
    pid, _, comm = stat.rpartition(")")[0].partition(" (")
    found = _below(below)
    fields = stat.rpartition(")")[2].split()
    pids = {int(pid): int(pid), **found.pids}
    state = ServiceState(int(pid), clock.at(int(fields[19])), said, pids=pids)
    running = []
    for one, command, here in found.commands:
        options = main_options_of(command.split())
        if not options:
            continue
        if is_of(app, options, here=here) and is_it(host, service, options):
            return replace(state, environment=found.environments.get(one))
        running.append(what_runs(options))
    others = ", ".join(dict.fromkeys(running)) or comm
    return replace(state, pid=None, other_process=f"pid {pid} ({others})")


class _Below(NamedTuple):
    """The processes below a process."""

    pids: dict[int, int]
    """Their inner pids."""
    commands: list[tuple[int, str, bool]]
    """Their pids, their commands, and whether they work in the directory."""
    environments: dict[int, Mapping[str, str] | None]
    """The digests of their variables, by pid."""


def _below(lines: Iterable[str]) -> _Below:
    found = _Below({}, [], {})
    here: set[str] = set()
    for line in lines:
        path, _, rest = line.partition(":")
        if path == "here":
            here = set(rest.split())
            continue
        pid = path.split("/")[2]
        if path.endswith("/status"):
            found.pids[int(pid)] = int(rest.split()[-1])
        elif path.endswith("/environ"):
            found.environments[int(pid)] = digests(
                base64.b64decode(rest).decode(errors="surrogateescape")
            )
        else:
            found.commands.append((int(pid), rest.strip(), pid in here))
    return found
