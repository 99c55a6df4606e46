"""The verbs that look and change nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runbooks.cli.verbs.common import Flags, fleet_of, on_fleet, run_verb, templates_of, verb

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter


@verb()
def diagnose(flags: Flags) -> None:
    """Name every fault of the fleet, with the evidence for it; changes nothing."""
    from runbooks.diagnose import diagnose as page

    on_fleet(flags, page)


@verb()
def verify(flags: Flags) -> None:
    """Test every expectation of the inventory: hosts, nodes, tasks, queues, files; changes nothing."""
    from runbooks.verify import verify as page

    on_fleet(flags, page)


@verb(hosts=False)
def hosts(flags: Flags) -> None:
    """List the hosts of the inventory with their groups, workers and queues; asks nobody."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.core.errors import ExitCode

        reporter.table("hosts", [_host_row(host) for host in fleet_of(flags).hosts])
        return ExitCode.OK

    run_verb(flags, body)


@verb(hosts=False, only="only files whose path or name matches this GLOB, e.g. 'celery-worker@*'")
def render(flags: Flags, only: str = "") -> None:
    """Show the files that would be installed on each host, from their templates; asks nobody."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.render import render as page

        fleet = fleet_of(flags)
        return page(fleet, templates_of(fleet), reporter, only=only)

    run_verb(flags, body)


def _host_row(host: Any) -> Mapping[str, str]:
    workers = "; ".join(f"{worker.name}: {', '.join(worker.queues)}" for worker in host.settings.workers)
    connection = host.variables.get("ansible_connection", "ssh")
    beat = "yes" if host.settings.beat else "no"
    return {
        "host": host.name,
        "groups": ", ".join(host.groups),
        "connection": connection,
        "workers": workers,
        "beat": beat,
    }


@verb(
    grep="only lines that match this regular EXPRESSION",
    since="only lines since this TIME: how long ago (15m, 2h, 1d), or when (2026-11-21T12:00)",
    lines="the last NUMBER of lines of each log (default: 20; with --since all)",
    follow="go on as the logs grow, until ^C",
)
def tail_logs(flags: Flags, grep: str = "", since: str = "", lines: str = "", follow: bool = False) -> None:
    """Show the logs of every host as one, by time: the units' journals and celery_logs; changes nothing."""
    from runbooks.tail_logs import tail_logs as page

    on_fleet(
        flags,
        lambda session: page(session, grep=grep, since=since, lines=lines, following=follow),
        follow=follow,
        only_read=True,
    )
