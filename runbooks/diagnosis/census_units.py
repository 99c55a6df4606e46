"""Units that systemd does not run as Celery needs it, or that come back beside the inventory's."""

from collections.abc import Iterable, Iterator, Sequence

from runbooks.core.census import Manager, Unit
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.managers import SYSTEMD_UNITS, is_unit
from runbooks.core.model import Finding, HostState, Severity, Snapshot
from runbooks.core.wording import counted
from runbooks.diagnosis.census import Row

_A_LOOP = 3
"""So many restarts by systemd, with the last not long ago, are more than a crash."""
_NOT_LONG_S = 300.0


def faults(fleet: Fleet, snapshot: Snapshot, rows: Iterable[Row]) -> Iterator[Finding]:
    """Of the units of each host that run the application's workers or beat, or would."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        for unit in state.census.units.values() if state and state.census else ():
            assert state
            its = [row for row in rows if row.host == host.name and _runs(unit, row)]
            if _is_the_applications(host, unit, its):
                yield from _of(fleet, host, state, unit, its)


def _runs(unit: Unit, row: Row) -> bool:
    return bool(
        row.of_app and row.by and row.by.manager is Manager.SYSTEMD and row.by.name == unit.name
    )


def _services(host: FleetHost) -> dict[str, str]:
    """The services of a host by the names of their units; none where systemd does not run them."""
    names = host.services if host.manager.has_drop_ins else ()
    return {SYSTEMD_UNITS.name(service): service for service in names}


def _is_the_applications(host: FleetHost, unit: Unit, its: Sequence[Row]) -> bool:
    """Not one that neither runs nor starts with the host, and of which nothing is left: nobody uses
    it any more.
    """
    if not unit.names_celery:
        return False
    in_use = unit.active != "inactive" or unit.enabled.startswith("enabled")
    here = unit.directory.rstrip("/") == host.settings.directory
    return bool(its) or unit.name in _services(host) or (here and in_use)


def _of(
    fleet: Fleet, host: FleetHost, state: HostState, unit: Unit, its: Sequence[Row]
) -> Iterator[Finding]:
    service = _services(host).get(unit.name, "")
    subject = f"{service or unit.name} on {host.name}"
    left = [row for row in its if row.process and row.process.leftover]
    leaked = state.all_services[service].leaked if service in state.all_services else ()
    if unit.kill_mode in ("process", "none"):
        number = len(
            {row.process.pid for row in left if row.process} | {process.pid for process in leaked}
        )
        now = (
            f"; {counted(number, 'process is', 'processes are')} left of earlier starts"
            if number
            else ""
        )
        yield Finding(
            "unit.kill_mode",
            subject,
            f"{unit.name} has KillMode={unit.kill_mode}, so a stop or restart may leave processes"
            f" of it running{now}",
            (*_where(unit, "KillMode"), *_mended(host, unit, service, "KillMode=mixed")),
            severity=Severity.ERROR if number else Severity.WARNING,
        )
    loops = _loops(state, unit, its)
    is_ours = bool(service) and not is_unit(service)
    if unit.type == "forking" and (is_ours or loops) and (not unit.pid_file or unit.multi):
        yield Finding(
            "unit.forking",
            subject,
            f"{unit.name} has Type=forking{', and celery multi' if unit.multi else ''}, so systemd"
            f" guesses its main process{'' if unit.pid_file else ', for it has no PIDFile='}"
            + (f"; {loops}" if loops else ""),
            (
                *_where(unit, "Type"),
                *_mended(host, unit, service, "Type=exec and celery worker, without multi"),
            ),
            severity=Severity.ERROR if loops else Severity.WARNING,
        )
    elif loops and not service:
        yield Finding(
            "unit.restarting",
            subject,
            fleet.worded(
                f"{unit.name} is not the inventory's, and {loops}", f"{unit.name}: {loops}"
            ),
            (f"why it ends, on {host.name}: journalctl -u {unit.name} -n 50", *_file(unit)),
            severity=Severity.WARNING,
        )
    if (
        not service
        and not its
        and not loops
        and unit.active != "active"
        and unit.enabled.startswith("enabled")
    ):
        yield Finding(
            "unit.comes_back",
            subject,
            f"{unit.name} does not run, but starts with {host.name}"
            + fleet.worded(", and then runs beside the inventory's services", ""),
            (
                f"systemctl show: {unit.enabled}, {unit.active}",
                *_file(unit),
                fleet.worded("", f"if it is to run: sudo systemctl start {unit.name}; else: ")
                + f"sudo systemctl disable {unit.name}",
            ),
            severity=Severity.WARNING,
        )


def _loops(state: HostState, unit: Unit, its: Sequence[Row]) -> str:
    """How often systemd has restarted it, where that goes on; "" where it does not, or that is not
    known.
    """
    young = any(
        row.process and state.clock_at - row.process.started_at < _NOT_LONG_S for row in its
    )
    if unit.restarts and (unit.sub == "auto-restart" or (unit.restarts >= _A_LOOP and young)):
        return (
            f"systemd has restarted it {counted(unit.restarts, 'time')} since it was told to start"
        )
    return ""


def _where(unit: Unit, key: str) -> Iterator[str]:
    """The lines that say so; of a file that was not searched the unit's own is named."""
    lines = [line for line in unit.lines if line.partition(": ")[2].startswith(key)]
    yield from lines or _file(unit)


def _file(unit: Unit) -> Iterator[str]:
    if unit.path:
        yield f"its file is {unit.path}"


def _mended(host: FleetHost, unit: Unit, service: str, instead: str) -> Iterator[str]:
    """**Source:** systemd.kill(5), KillMode=; systemd.service(5), Type=."""
    is_installed = service and not is_unit(service) and unit.path == host.unit_path(service)
    if is_installed and not any(".d/" in line for line in unit.lines):
        yield "the unit that this tool installs does not say so: install-units puts it there"
    else:
        yield f"a worker needs {instead}; after a change: sudo systemctl daemon-reload"
