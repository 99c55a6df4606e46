"""Services that the inventory's commands start, stop and ask for, as `celery multi` or a script of
the operator's.
"""

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
    """See `ServiceManager`. Commands are run by `eval`, so that a mistake in one is its own: a
    quote too few would swallow what follows it.
    """

    free_text = True
    own_groups = ()

    def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
        return (
            {} if host.told_by_processes else {service: _ask(host, service) for service in services}
        )

    def parse(
        self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
    ) -> Mapping[str, ServiceState]:
        return {
            service: _parse(host, app, service, answer, clock)
            for service, answer in answers.items()
        }

    def control(self, host: FleetHost, effect: ControlService) -> str:
        if effect.action == "start" or effect.action == "stop":
            return (
                f"cd {quote(host.settings.directory)} && eval"
                f" {quote(_command(host, effect.service, effect.action))}"
            )
        return _restart(host, effect)

    def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
        return ()


def _command(host: FleetHost, service: str, action: str) -> str:
    assert host.settings.commands
    return filled(host.settings.commands.given[action], host.words_of(service))


def _restart(host: FleetHost, effect: ControlService) -> str:
    """Stop, then start once what ran is gone: `celery multi stop` and a plain `kill` do not wait
    for it.

    Started beside it, the new one would take its pid file for another worker's and end, and then so
    would the old one. **Source:** proc(5), `ShdPnd` in `/proc/PID/status`: a mask of the signals
    that wait; TERM is 0x4000.
    """
    stop, start = (_command(host, effect.service, action) for action in ("stop", "start"))
    asked = () if host.told_by_processes else effect.services
    status = [_command(host, service, "status") for service in asked]
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
    """What the status command says, and what there is of the process that it names and of those
    below it.

    **Source:** proc(5): `/proc/PID/task/TID/children`; field NSpid of `/proc/PID/status` is a
    process's pid in each pid namespace that it is in, its own last.
    """
    return shell("commands_status", host.settings.directory, _command(host, service, "status"))


def _parse(host: FleetHost, app: str, service: str, answer: Answer, clock: Clock) -> ServiceState:
    """A service's state, `untold` where the status command answers neither "runs" nor "does not
    run".

    A process counts when it is, or holds, a Celery worker or beat of the application and this node:
    the pid in a file that outlived its worker is somebody else's sooner or later.

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
        untold = f"its status command exited {answer.code} and said: {said[-300:] or 'nothing'}"
        return ServiceState(None, None, said, untold=untold)
    pid, _, comm = stat.rpartition(")")[0].partition(" (")
    pids, commands, environments = _below(below)
    fields = stat.rpartition(")")[2].split()
    state = ServiceState(
        int(pid), clock.at(int(fields[19])), said, pids={int(pid): int(pid)} | pids
    )
    running = [
        (one, options, here)
        for one, command, here in commands
        if (options := main_options_of(command.split()))
    ]
    for one, options, here in running:
        if is_of(app, options, here=here) and is_it(host, service, options):
            return replace(state, environment=environments.get(one))
    found = ", ".join(dict.fromkeys(what_runs(options) for _, options, _ in running))
    return replace(state, pid=None, other_process=f"pid {pid} ({found or comm})")


class _Below(NamedTuple):
    """What lies below a process, by pid: how each knows itself; commands, and whether they work in
    the directory.
    """

    pids: dict[int, int]
    commands: list[tuple[int, str, bool]]
    environments: dict[int, Mapping[str, str] | None]


def _below(lines: Iterable[str]) -> _Below:
    found, here = _Below({}, [], {}), set[str]()
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
