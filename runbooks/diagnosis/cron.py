"""Find hosts on which no cron runs the entries."""

from collections.abc import Iterator

from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, Severity, Snapshot
from runbooks.diagnosis.wanted_files import runs_timers


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the hosts with entries in /etc/cron.d and no cron."""
    states = snapshot.reachable()
    for host in fleet.hosts:
        state = states.get(host.name)
        if state and state.runs_cron is False and not runs_timers(host, state):
            yield Finding(
                "cron.not_running",
                host.name,
                f"no cron runs on {host.name}, so nothing runs the inventory's entries for it",
                (
                    "no process is named cron, crond or bcron-sched, and systemd has no active"
                    " cron.target",
                    f"on {host.name}: sudo systemctl enable --now cron (on Red Hat: crond);"
                    " if there is no such unit, install its package",
                ),
                severity=Severity.WARNING,
            )
