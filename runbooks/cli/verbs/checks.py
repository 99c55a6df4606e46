"""The verbs that read and change nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runbooks.cli.verbs.common import (
    FRESH,
    WORKER,
    Flags,
    asking,
    fleet_of,
    on_each_fleet,
    on_fleet,
    pages_of,
    run_verb,
    templates_of,
    verb,
)
from runbooks.cli.verbs.inventories import DEFAULT
from runbooks.core.shipped import shipped_templates

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter


_BUDGET = (
    "how long to read messages (default: 10s); of what remains only a sample of each queue is read,"
    " and the output says so"
)


@verb(
    by_broker=True,
    by_application=True,
    positional=("host",),
    optional=("host",),
    fresh=FRESH,
    worker=WORKER,
    budget=_BUDGET,
    html="also write the findings to this FILE, as one self-contained page",
)
def diagnose(
    flags: Flags,
    fresh: bool = False,
    worker: str | None = None,
    budget: str = "10s",
    html: str = "",
) -> None:
    """Report the faults of the fleet with their evidence, causes first; changes nothing."""
    from pathlib import Path

    from runbooks.diagnose import PageFile
    from runbooks.diagnose import diagnose as page

    file = PageFile(Path(html), pages_of(flags)) if html else None
    on = on_fleet if file else on_each_fleet
    on(flags, lambda session: page(asking(session, fresh=fresh), worker, budget=budget, file=file))


@verb(
    by_broker=True,
    by_application=True,
    fresh=FRESH,
    worker=WORKER,
    budget=_BUDGET,
    junit="also write the results to this FILE, in JUnit format, for CI",
)
def verify(
    flags: Flags,
    fresh: bool = False,
    worker: str | None = None,
    budget: str = "10s",
    junit: str = "",
) -> None:
    """Test the expectations of the inventory: hosts, nodes, tasks, queues; changes nothing."""
    from pathlib import Path

    from runbooks.verify import verify as page

    file = Path(junit) if junit else None
    on_fleet(
        flags, lambda session: page(asking(session, fresh=fresh), worker, budget=budget, file=file)
    )


@verb(
    hosts=False,
    positional=("code",),
    optional=("code",),
    code="the CODE of a finding; without it, list all codes",
)
def explain(flags: Flags, code: str | None = None) -> None:
    """Explain a finding: its meaning, its evidence, and what to do; contacts no host."""
    from runbooks.explain import explain as page

    run_verb(flags, lambda reporter: page(reporter, code))


@verb(
    hosts=False,
    positional=("file",),
    optional=("file",),
    file=f"the FILE to create; it must not exist yet (default: {DEFAULT})",
)
def init(flags: Flags, file: str | None = None) -> None:
    """Write a commented example of an inventory to a new file; contacts no host."""
    from pathlib import Path

    from runbooks.init import init as page

    new = Path(file or DEFAULT)
    run_verb(
        flags,
        lambda reporter: page(
            reporter, shipped_templates() / DEFAULT, new, is_default=str(new) == DEFAULT
        ),
    )


@verb(hosts=False)
def hosts(flags: Flags) -> None:
    """List the hosts of the inventory with groups, workers and queues; contacts no host."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.core.errors import ExitCode

        reporter.table("hosts", [_host_row(host) for host in fleet_of(flags, reporter).hosts])
        return ExitCode.OK

    run_verb(flags, body)


@verb(hosts=False, only="only files whose path or name matches this GLOB, e.g. 'celery-worker@*'")
def render(flags: Flags, only: str = "") -> None:
    """Show the files that would be installed on each host; contacts no host."""

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.render import render as page

        fleet = fleet_of(flags, reporter)
        return page(fleet, templates_of(fleet), reporter, only=only)

    run_verb(flags, body)


def _host_row(host: Any) -> Mapping[str, str]:
    workers = "; ".join(
        f"{worker.name}: {', '.join(worker.queues)}" for worker in host.settings.workers
    )
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
    positional=("worker",),
    optional=("worker",),
    worker=WORKER,
    grep="only lines that match this regular EXPRESSION",
    since="only lines since this TIME: an age (15m, 2h, 1d) or a date (2026-11-21T12:00)",
    lines="the last NUMBER of lines of each log (default: 20; with --since: all)",
    follow="print new lines as they are written, until ^C",
)
def tail_logs(
    flags: Flags,
    worker: str | None = None,
    grep: str = "",
    since: str = "",
    lines: str = "",
    follow: bool = False,
) -> None:
    """Show the workers' logs of all hosts, merged by time; changes nothing."""
    from runbooks.tail_logs import tail_logs as page

    on_fleet(
        flags,
        lambda session: page(
            session, worker, grep=grep, since=since, lines=lines, following=follow
        ),
        follow=follow,
        only_read=True,
    )
