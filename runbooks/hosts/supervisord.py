"""Fragments that ask or control a host's supervisord."""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from runbooks.core.fleet import FleetHost
from runbooks.hosts.script import shell

PATIENCE_S = 5
"""How long supervisord may take to notice that a process has ended."""


def ask_control(host: FleetHost, action: str, programs: Sequence[str], *, own: bool) -> str:
    """Return the fragment that starts, stops or restarts programs.

    `own`: their conf files are this tool's, each with one program.
    """
    seconds = int(host.settings.stop_timeout) + PATIENCE_S
    return ask_supervisord(
        host, "control", programs=programs, action=action, own=own, seconds=seconds
    )


def ask_supervisord(host: FleetHost, verb: str, **question: Any) -> str:
    """Return the fragment that runs a verb of `supervisor_probe.py` on the host."""
    return ask_of(host.settings.supervisor.conf, host.settings.supervisor.ctl, verb, **question)


def ask_of(conf: str, ctl: str, verb: str, **question: Any) -> str:
    """Return the same fragment for this configuration file and this `supervisorctl`."""
    asked = json.dumps({"verb": verb, "conf": conf, **question})
    source = files("runbooks.hosts").joinpath("supervisor_probe.py").read_text()
    return shell("supervisor", ctl, source, asked)
