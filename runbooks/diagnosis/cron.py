"""Faults of cron itself: entries that nothing runs."""

from collections.abc import Iterator

from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, Severity, Snapshot
from runbooks.diagnosis.wanted_files import runs_timers


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Of each host that is to have entries in /etc/cron.d."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state and state.runs_cron is False and not runs_timers(host, state):
            yield Finding(
                "cron.not_running",
                host.name,
                f"no cron runs on {host.name}, so nothing runs the entries that the inventory has"
                " for it",
                (
                    (
                        "no process is called cron, crond or bcron-sched, and systemd has no active"
                        " cron.target"
                    ),
                    (
                        f"on {host.name}: sudo systemctl enable --now cron (on Red Hat: crond);"
                        " where there is no such unit, install its package"
                    ),
                ),
                severity=Severity.WARNING,
            )
