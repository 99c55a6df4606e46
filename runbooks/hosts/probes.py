"""Health probes: run the operator's own commands on a host, and judge their results."""

import re

from runbooks.core.fleet import FleetHost
from runbooks.core.model import ProbeResult
from runbooks.core.settings import Probe
from runbooks.core.wording import span
from runbooks.hosts.script import Answer
from runbooks.hosts.services.registry import manager_of

KILL_AFTER_S = 5
_TIMED_OUT = (124, 137)
"""**Source:** GNU timeout: 124 after SIGTERM, 128 + 9 after SIGKILL."""


def ask_probe(host: FleetHost, probe: Probe) -> str:
    """Return the fragment that runs the command in the application's directory, with a timeout."""
    times = (f"{probe.timeout:g}", str(KILL_AFTER_S))
    return manager_of(host).probe(host, probe.command, times, probe.user or "")


def parse_probe(probe: Probe, answer: Answer) -> ProbeResult:
    output = (answer.out.decode(errors="replace") + answer.err).strip()
    if answer.code in _TIMED_OUT and probe.exit_code != answer.code:
        return ProbeResult(f"did not end within {span(probe.timeout)}", output)
    if answer.code != probe.exit_code:
        return ProbeResult(f"exited with {answer.code}, not {probe.exit_code}", output)
    if probe.output is not None and not re.search(probe.output, output, re.MULTILINE):
        return ProbeResult(f"printed nothing that matches {probe.output!r}", output)
    return ProbeResult("", output)
