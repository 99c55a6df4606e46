"""Find units that do not suit Celery, restart in a loop, or start besides the inventory's."""

from collections.abc import Iterable, Iterator, Sequence

from runbooks.core.census import Manager, Unit
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.managers import SYSTEMD_UNITS, is_unit
from runbooks.core.model import Finding, HostState, Severity, Snapshot
from runbooks.core.wording import counted
from runbooks.diagnosis.census import Row

_A_LOOP = 3
_NOT_LONG_S = 300.0
"""A unit loops if systemd has restarted it that often, the last time not longer ago."""


def faults(fleet: Fleet, snapshot: Snapshot, rows: Iterable[Row]) -> Iterator[Finding]:
    """Yield the faults of the units that run the application's workers or beat, or would."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state is None or state.census is None:
            continue
        for unit in state.census.units.values():
            its = [row for row in rows if row.host == host.name and _runs(unit, row)]
            if _is_the_applications(host, unit, its):
                yield from _of(fleet, host, state, unit, its)


def _runs(unit: Unit, row: Row) -> bool:
    if not row.of_app or not row.by:
        return False
    return row.by.manager is Manager.SYSTEMD and row.by.name == unit.name


def _services(host: FleetHost) -> dict[str, str]:
    """Return the services of a host by the names of their units; none if systemd runs none."""
    names = host.services if host.manager.has_drop_ins else ()
    return {SYSTEMD_UNITS.name(service): service for service in names}


def _is_the_applications(host: FleetHost, unit: Unit, its: Sequence[Row]) -> bool:
    """Return whether a unit is the application's and in use."""
    if not unit.names_celery:
        return False
    in_use = unit.active != "inactive" or unit.enabled.startswith("enabled")
    here = unit.directory.rstrip("/") == host.settings.directory
    return bool(its) or unit.name in _services(host) or (here and in_use)


def _of(
    fleet: Fleet, host: FleetHost, state: HostState, unit: Unit, its: Sequence[Row]
) -> Iterator[Finding]:
    service = _services(host).get(unit.name, "")
    loops = _loops(state, unit, its)
    is_ours = bool(service) and not is_unit(service)
    guessed = unit.type == "forking" and (not unit.pid_file or unit.multi)
    down = unit.active != "active" and unit.enabled.startswith("enabled")
    if unit.kill_mode in ("process", "none"):
        yield _kill_mode(host, state, unit, its)
    if guessed and (is_ours or loops):
        yield _forking(host, unit, service, loops)
    elif loops and not service:
        yield Finding(
            "unit.restarting",
            f"{unit.name} on {host.name}",
            fleet.worded(
                f"{unit.name} is not from this inventory, and {loops}", f"{unit.name}: {loops}"
            ),
            (f"why it ends, on {host.name}: journalctl -u {unit.name} -n 50", *_file(unit)),
            severity=Severity.WARNING,
        )
    if down and not service and not its and not loops:
        yield _comes_back(fleet, host, unit)


def _kill_mode(host: FleetHost, state: HostState, unit: Unit, its: Sequence[Row]) -> Finding:
    service = _services(host).get(unit.name, "")
    left = {row.process.pid for row in its if row.process and row.process.leftover}
    if service in state.all_services:
        left |= {process.pid for process in state.all_services[service].leaked}
    summary = (
        f"{unit.name} has KillMode={unit.kill_mode}, so a stop or restart may leave its processes"
        " running"
    )
    if left:
        number = counted(len(left), "process is", "processes are")
        summary += f"; {number} left of earlier starts"
    return Finding(
        "unit.kill_mode",
        f"{service or unit.name} on {host.name}",
        summary,
        (*_where(unit, "KillMode"), *_instead(host, unit, service, "KillMode=mixed")),
        severity=Severity.ERROR if left else Severity.WARNING,
    )


def _forking(host: FleetHost, unit: Unit, service: str, loops: str) -> Finding:
    multi = ", and celery multi" if unit.multi else ""
    no_file = "" if unit.pid_file else ", because it has no PIDFile="
    summary = f"{unit.name} has Type=forking{multi}, so systemd guesses its main process{no_file}"
    if loops:
        summary += f"; {loops}"
    advice = "Type=exec and celery worker, without multi"
    return Finding(
        "unit.forking",
        f"{service or unit.name} on {host.name}",
        summary,
        (*_where(unit, "Type"), *_instead(host, unit, service, advice)),
        severity=Severity.ERROR if loops else Severity.WARNING,
    )


def _comes_back(fleet: Fleet, host: FleetHost, unit: Unit) -> Finding:
    start = f"if it should run: sudo systemctl start {unit.name}; otherwise: "
    also = fleet.worded(", in addition to the inventory's services", "")
    return Finding(
        "unit.comes_back",
        f"{unit.name} on {host.name}",
        f"{unit.name} does not run, but starts when {host.name} boots{also}",
        (
            f"systemctl show: {unit.enabled}, {unit.active}",
            *_file(unit),
            f"{fleet.worded('', start)}sudo systemctl disable {unit.name}",
        ),
        severity=Severity.WARNING,
    )


def _loops(state: HostState, unit: Unit, its: Sequence[Row]) -> str:
    """Return how often systemd has restarted it, if that goes on; "" if not, or not known."""
    ages = [state.clock_at - row.process.started_at for row in its if row.process]
    young = any(age_s < _NOT_LONG_S for age_s in ages)
    if unit.restarts and (unit.sub == "auto-restart" or (unit.restarts >= _A_LOOP and young)):
        return f"systemd has restarted it {counted(unit.restarts, 'time')} since its last start"
    return ""


def _where(unit: Unit, key: str) -> Iterator[str]:
    """Yield the lines with that setting, or the unit's file if it was not searched."""
    lines = [line for line in unit.lines if line.partition(": ")[2].startswith(key)]
    yield from lines or _file(unit)


def _file(unit: Unit) -> Iterator[str]:
    if unit.path:
        yield f"its file is {unit.path}"


def _instead(host: FleetHost, unit: Unit, service: str, advice: str) -> Iterator[str]:
    """**Source:** systemd.kill(5), KillMode=; systemd.service(5), Type=."""
    is_installed = service and not is_unit(service) and unit.path == host.unit_path(service)
    if is_installed and not any(".d/" in line for line in unit.lines):
        yield "the unit of this tool does not have this setting: install it with install-units"
    else:
        yield f"a worker needs {advice}; after a change: sudo systemctl daemon-reload"
