"""What a host is asked, and what its answer means: pairs of pure functions, `ask_…` → shell, `parse_…` ← its answer."""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files

from runbooks.core.errors import RunbookError
from runbooks.core.model import FileState, ImportProbe, ServiceState
from runbooks.core.settings import FleetHost, mark_of, unit_of
from runbooks.hosts.script import Answer, heredoc, quote

NOT_RUNNING = 3
"""**Source:** LSB Core, "Init Script Actions": `status` exits 3 when the program is not running."""


def ask_clock() -> str:
    return "date +%s.%N"


def parse_clock(answer: Answer) -> float:
    """Epoch seconds of the host's own clock. **Source:** GNU date."""
    return float(answer.out)


def ask_file(path: str) -> str:
    """`-L`: of a link, the file it leads to. `LC_ALL`: seconds with a point. Names come last: they may hold spaces."""
    quoted = quote(path)
    return f"[ -e {quoted} ] || exit 0\nLC_ALL=C stat -L -c '%a %.Y %U:%G' {quoted} && cat {quoted}"


def parse_file(path: str, answer: Answer) -> FileState:
    """A file's state; raises RunbookError when it exists and cannot be read. **Source:** GNU stat."""
    if answer.code != 0:
        raise RunbookError(f"{path} cannot be read: {answer.err.strip()}", "run as a user who may read it")
    if not answer.out:
        return FileState(None)
    head, _, content = answer.out.partition(b"\n")
    return _file_state(head.decode(errors="replace"), content)


def _file_state(head: str, content: bytes) -> FileState:
    mode, changed_at, names = head.split(" ", 2)
    owner, _, group = names.partition(":")
    return FileState(content, int(mode, 8), owner, group, float(changed_at))


def ask_managed(host: FleetHost, app: str) -> str:
    """The files in the directories this tool writes to that carry its mark for the application."""
    settings, state = host.settings, "LC_ALL=C stat -L -c '%a %.Y %U:%G'"
    directories = (settings.unit_directory, settings.cron_directory, settings.logrotate_directory)
    places = " ".join(f"{quote(directory)}/celery*" for directory in dict.fromkeys(directories))
    return (
        f'for path in {places}; do\n[ -f "$path" ] && head -n 1 "$path" | grep -qF {quote(mark_of(app))} || continue\n'
        f'printf \'%s\\n\' "$path"; {state} "$path"; base64 <"$path" | tr -d \'\\n\'; echo\ndone; :'
    )


def parse_managed(answer: Answer) -> dict[str, FileState]:
    lines = answer.out.decode(errors="replace").splitlines()
    threes = zip(lines[0::3], lines[1::3], lines[2::3], strict=True)
    return {path: _file_state(head, base64.b64decode(content)) for path, head, content in threes}


def service_command(host: FleetHost, action: str, service: str) -> str:
    """The shell command for an action on a service: systemd's, or the inventory's `celery_commands`."""
    if host.has_systemd:
        return f"systemctl {action} -- {quote(unit_of(service))}"
    command: str = getattr(host.settings.commands, action)
    return f"cd {quote(host.settings.directory)} && {{ {command.replace('{worker}', quote(service))}\n}}"


def ask_service(host: FleetHost, service: str) -> str:
    return (
        f"answer=$( {service_command(host, 'status', service)} 2>&1 )\ncode=$?\n"
        f"pid=$(printf '%s\\n' \"$answer\" | sed -n '1s/^\\([0-9][0-9]*\\)$/\\1/p')\n"
        '[ -z "$pid" ] || cat "/proc/$pid/stat" || pid=\n[ -n "$pid" ] || echo -\n'
        "cat /proc/uptime; date +%s.%N; getconf CLK_TCK\nprintf '%s\\n' \"$answer\"\nexit $code"
    )


def parse_service(service: str, answer: Answer) -> ServiceState:
    """A service's state; raises RunbookError when the status command answers neither "runs" nor "does not run".

    **Source:** proc(5): field 22 of `/proc/PID/stat`, after the command in parentheses, is the start in clock ticks
    since boot; `/proc/uptime` is in seconds.
    """
    stat, uptime, now, ticks_per_s, *rest = answer.out.decode(errors="replace").split("\n")
    said = "\n".join(rest).strip()
    if answer.code == NOT_RUNNING:
        return ServiceState(None, None, said)
    if answer.code != 0 or stat == "-":
        said = said or answer.err.strip()
        raise RunbookError(
            f"the status command of {service} exited {answer.code} and said: {said[-300:] or 'nothing'}",
            "it must print the main pid and exit 0, or exit 3 when the service does not run (celery_commands.status)",
        )
    fields = stat.rpartition(")")[2].split()
    age_s = float(uptime.split()[0]) - int(fields[19]) / int(ticks_per_s)
    return ServiceState(int(stat.split(" ", 1)[0]), float(now) - age_s, said)


def ask_imports(host: FleetHost, app: str, expected: Iterable[str], overrides: Mapping[str, str]) -> str:
    """Import the application in its own Python, with its environment file and `overrides` on top of it."""
    question = {
        "app": app, "directory": host.settings.directory, "env_file": host.settings.env_file,
        "overrides": dict(overrides), "expected": sorted(expected),
    }  # fmt: skip
    source = files("runbooks.hosts").joinpath("import_probe.py").read_text()
    program = f"QUESTION = {json.dumps(json.dumps(question))}\n{source}"
    return f"{quote(host.settings.python)} - {heredoc(program)}"


def parse_imports(answer: Answer) -> ImportProbe:
    """One line of the probe is its JSON; where it did not come so far, that is the error of every module."""
    out = answer.out.decode(errors="replace").strip()
    line = next((line for line in reversed(out.splitlines()) if line.startswith('{"registered": ')), None)
    if answer.code != 0 or line is None:
        return ImportProbe(frozenset(), {"": (answer.err.strip() or out or "the probe printed nothing")[-3000:]})
    found = json.loads(line)
    return ImportProbe(frozenset(found["registered"]), found["errors"])


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with every known secret of four characters or more replaced, and passwords in URLs hidden."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, "********")
    return re.sub(r"(\b\w+://[^\s:/@]*):[^\s/]+@", r"\1:********@", text)
