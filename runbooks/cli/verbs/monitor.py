"""The verb for cron and for Prometheus."""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import (
    Flags,
    fleet_of,
    on_fleet,
    pages_of,
    run_verb,
    state_directory,
    verb,
)
from runbooks.core.shipped import shipped_templates

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter
    from runbooks.engine.context import Session


@verb(
    by_broker=True,
    by_application=True,
    textfile="also write the metrics to this FILE, for node_exporter",
    listen=("keep checking, and serve Prometheus and browsers at this [ADDRESS:]PORT, until ^C"),
    every="with --listen: the time between two looks (default: 1m)",
    history="draw the depths of queues that earlier looks recorded; contacts no host",
    queue="with --history: only this QUEUE",
    since="with --history: how far back, e.g. 2h or 7d (default: 24h)",
    alerts="print alert rules for Prometheus",
    docs="with --alerts: the URL where docs/ is published, for each runbook_url",
    dashboard="print a Grafana dashboard",
)
def monitor(
    flags: Flags,
    textfile: str = "",
    listen: str = "",
    every: str = "",
    history: bool = False,
    queue: str = "",
    since: str = "",
    alerts: bool = False,
    docs: str = "",
    dashboard: bool = False,
) -> None:
    """Compare every queue with the inventory's thresholds, one line each; changes nothing."""
    alone = {
        "--every": every and not listen,
        "--queue": queue and not history,
        "--since": since and not history,
        "--docs": docs and not alerts,
    }
    idle = [flag for flag, is_idle in alone.items() if is_idle]

    def printed(reporter: "Reporter") -> "ExitCode":
        from runbooks.core.errors import ExitCode, UsageError

        if idle:
            advice = (
                "--every needs --listen, --queue and --since need --history, --docs needs --alerts"
            )
            have = "has" if len(idle) == 1 else "have"
            raise UsageError(f"{' and '.join(idle)} {have} no effect here", advice)
        if bool(listen) + history + alerts + dashboard > 1:
            raise UsageError(
                "--listen, --history, --alerts and --dashboard exclude each other", "give only one"
            )
        if history:
            from runbooks.monitor import show_history

            fleet = fleet_of(flags, reporter)
            return show_history(
                reporter, fleet, state_directory(flags, fleet), queue=queue, since=since or "24h"
            )
        if dashboard:
            import json

            from runbooks.monitoring.dashboard import dashboard as document

            reporter.message(*json.dumps(document(), indent=2).split("\n"))
        else:
            from runbooks.monitoring.alerts import alert_rules

            reporter.message(*alert_rules(shipped_templates(), docs))
        return ExitCode.OK

    if idle or history or alerts or dashboard:
        return run_verb(flags, printed)
    if listen:
        from runbooks.monitor import listen as listen_page

        def listened(session: "Session") -> "ExitCode":
            return listen_page(session, pages_of(flags), address=listen, every=every or "1m")

        return on_fleet(flags, listened, follow=True)
    from runbooks.monitor import monitor as page

    on_fleet(flags, lambda session: page(session, textfile=textfile))
