"""A supervisord of the sandbox's own, without root: its configuration, its start, and whatever it
has left running.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from runbooks.core.managers import SUPERVISOR_PROGRAMS
from runbooks.inventory.templates import supervisor_value

CONF_FOLDER = "supervisor/conf.d"
_READY_S = 30.0
_READY = re.compile(r"@.* ready\.|beat: Starting")
_SOCKET_PATH_MAX = 90
"""**Source:** unix(7): 107 bytes; supervisord makes its socket under a longer name first."""

_CONF = """\
[unix_http_server]
file={root}/supervisor.sock
chmod=0700

[supervisord]
nodaemon=true
logfile={root}/supervisord.log
pidfile={root}/supervisord.pid
childlogdir={root}/app/logs

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{root}/supervisor.sock

[include]
files=root/etc/{folder}/*.conf
"""


def conf_names(services: Sequence[str]) -> list[str]:
    return [SUPERVISOR_PROGRAMS.name(service) for service in services]


def start(root: Path) -> "subprocess.Popen[bytes]":
    """Raises OSError where the folder's path is too long for a socket."""
    if len(os.fsencode(root / "supervisor.sock")) > _SOCKET_PATH_MAX:
        raise OSError(f"the path of this checkout is too long for supervisord's socket: {root}")
    for folder in ("app/logs", "app/run"):
        (root / folder).mkdir(exist_ok=True)
    conf = root / "supervisord.conf"
    conf.write_text(_CONF.format(root=supervisor_value(root), folder=CONF_FOLDER))
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("supervisord")), "-c", str(conf)],
        cwd=root, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def not_ready(root: Path) -> Path | None:
    """Waits until every program is up; returns the log of one that is not, None where all are."""
    programs = [path.stem for path in (root / "root/etc" / CONF_FOLDER).glob("*.conf")]
    waiting = [root / f"app/logs/{name}.log" for name in programs]
    deadline = time.monotonic() + _READY_S
    while waiting and time.monotonic() < deadline:
        waiting = [
            log
            for log in waiting
            if not (log.exists() and _READY.search(log.read_text(errors="replace")))
        ]
        time.sleep(0.1)
    return waiting[0] if waiting else None


def session_of(pid: int, folder: Path) -> list[psutil.Process]:
    """The processes of a supervisord's session that work in this folder, also where it is gone
    itself.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == pid and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
