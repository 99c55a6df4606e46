"""The verbs that look and change nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.tasks import task

from runbooks.verbs.common import Flags, fleet_of, help_for, on_fleet, run_verb

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter


@task(help=help_for())
def diagnose(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Name every fault of the fleet, with the evidence for it; changes nothing."""
    from runbooks.diagnose import diagnose as page

    on_fleet(Flags("diagnose", inventory, limit, json, state_dir), page)


@task(help=help_for())
def verify(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """Test every expectation of the inventory: hosts, nodes, tasks, queues, files; changes nothing."""
    from runbooks.verify import verify as page

    on_fleet(Flags("verify", inventory, limit, json, state_dir), page)


@task(help=help_for())
def hosts(
    c: Context,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
) -> None:
    """List the hosts of the inventory with their groups, workers and queues; asks nobody."""
    flags = Flags("hosts", inventory, limit, json, state_dir)

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.core.errors import ExitCode

        reporter.table("hosts", [_host_row(host) for host in fleet_of(flags).hosts])
        return ExitCode.OK

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


@task(
    help=help_for(
        grep="only lines that match this regular EXPRESSION",
        lines="how many lines of each file",
        follow="go on as the files grow, until ^C",
    )
)
def tail_logs(
    c: Context,
    grep: str = "",
    follow: bool = False,
    inventory: str = "",
    limit: str | None = None,
    json: bool = False,
    state_dir: str | None = None,
    lines: int = 20,
) -> None:
    """Show the last lines of the workers' logs on every host; changes nothing."""
    from runbooks.tail_logs import tail_logs as page

    flags = Flags("tail-logs", inventory, limit, json, state_dir)
    on_fleet(flags, lambda session: page(session, grep=grep, lines=lines, follow=follow), follow=follow)
