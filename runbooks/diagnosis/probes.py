"""Find faults by the inventory's own probes."""

from collections.abc import Iterator

from runbooks.core.fleet import Fleet
from runbooks.core.model import Finding, Snapshot
from runbooks.core.redaction import redact

_LINES = 10


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Yield each probe that failed, with its last lines of output."""
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state is None:
            continue
        commands = {probe.name: probe.command for probe in host.settings.probes}
        for name, result in state.probes.items():
            if result.fault:
                said = tuple(result.output.splitlines()[-_LINES:]) or ("it printed nothing",)
                yield Finding(
                    "probe.failed",
                    f"{name} on {host.name}",
                    f"the probe {name} {result.fault}",
                    (f"$ {redact(commands[name])}", *said),
                )
