"""What a host is asked, and what its answer means: pairs of pure functions, `ask_…` → shell, `parse_…` ← its answer."""

import base64
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import takewhile
from stat import S_IMODE, S_ISREG
from typing import Any
from urllib.parse import quote as url_quote

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost, mark_of, unit_of
from runbooks.core.model import FileState, ImportProbe, ScheduledTask, ServiceState
from runbooks.core.settings import OPTIONS, URL_PASSWORD, is_secret_name
from runbooks.hosts.script import Answer, quote, say
from runbooks.hosts.strangers import is_of, is_service, what_runs

NOT_RUNNING = 3
"""**Source:** LSB Core, "Init Script Actions": `status` exits 3 when the program is not running."""


class Clock(Struct, frozen=True):
    """A host's own clock when it was asked, and what turns its processes' starts into the time of day.

    `machine` is the same where two names lead to one machine, and nowhere else; "" where that cannot be told.
    """

    now: float
    uptime_s: float
    ticks_per_s: int
    machine: str = ""

    def at(self, start_ticks: int) -> float:
        """The epoch seconds of a start. **Source:** proc(5), `/proc/PID/stat`: it is in clock ticks since boot."""
        return self.now - self.uptime_s + start_ticks / self.ticks_per_s


def ask_clock() -> str:
    """The machine-id alone does not tell: machines made from one image share it, but neither boot nor processes."""
    return (
        'date +%s.%N; getconf CLK_TCK; read -r uptime </proc/uptime; echo "$uptime"\n'
        "{ read -r id </etc/machine-id; read -r boot </proc/sys/kernel/random/boot_id\n"
        'space=$(readlink /proc/self/ns/pid) && echo "${boot:+$id/$boot/$space}"; } 2>/dev/null; :'
    )


def parse_clock(answer: Answer) -> Clock:
    """Raises RunbookError where one of them is missing.

    **Source:** GNU date; getconf(1); proc(5); machine-id(5); namespaces(7).
    """
    try:
        now, ticks_per_s, uptime_s, _, *machine = answer.out.decode().split()
        return Clock(float(now), float(uptime_s), int(ticks_per_s), "".join(machine))
    except ValueError:
        said = answer.err.strip()[-300:] or "it says something else"
        advice = "GNU date, getconf and /proc are needed there"
        raise RunbookError(f"its clock cannot be read: {said}", advice) from None


def ask_uptime() -> str:
    return "cat /proc/uptime"


def parse_uptime(answer: Answer) -> float:
    """For how many seconds the host is up. Raises RunbookError where it does not say. **Source:** proc(5)."""
    try:
        return float(answer.out.split()[0])
    except (ValueError, IndexError):
        raise RunbookError(f"its uptime cannot be read: {answer.err.strip()[-300:]}", "/proc is needed there") from None


def ask_files(paths: Iterable[str]) -> str:
    """Which of these exist, then the state of each of them, then their bytes: two processes for any number of files.

    `-L`: of a link, the file it leads to. `LC_ALL`: seconds with a point.
    """
    return (
        f"there=; set --; for path in {' '.join(map(quote, paths))}; do\n"
        '[ -e "$path" ] && there=${there}1 && set -- "$@" "$path" || there=${there}0; done\n'
        'echo "$there"; [ $# -gt 0 ] || exit 0\n'
        'LC_ALL=C stat -L -c \'%s %f %.Y %.Z\' -- "$@" && cat -- "$@"'
    )


def parse_files(paths: Sequence[str], answer: Answer) -> dict[str, FileState]:
    """The state of each file; raises RunbookError when one exists and cannot be read. **Source:** GNU stat."""
    if answer.code != 0:
        advice = "mend that there, or run as a user who may read it"
        raise RunbookError(f"a file cannot be read: {answer.err.strip()}", advice)
    there, _, rest = answer.out.partition(b"\n")
    found = [path for path, digit in zip(paths, there.decode(), strict=True) if digit == "1"]
    *lines, contents = rest.split(b"\n", len(found))
    heads = [line.decode(errors="replace").partition(" ") for line in lines]
    if sum(int(size) for size, _, _ in heads) != len(contents):
        raise RunbookError("a file changed while it was read", "run the command again")
    states = dict.fromkeys(paths, FileState(None))
    for path, (size, _, head) in zip(found, heads, strict=True):
        content, contents = contents[: int(size)], contents[int(size) :]
        states[path] = _file_state(head, content)
    return states


def _file_state(head: str, content: bytes) -> FileState:
    """A masked unit is a link to /dev/null: an empty file means the same, but must not have a device's mode.

    What rsync or tar brings has the time of its own machine's clock, but cannot be newer than when it was put here.
    """
    raw_mode, changed_at, put_at = head.split()
    mode = int(raw_mode, 16)
    return FileState(content, S_IMODE(mode) if S_ISREG(mode) else 0o644, min(float(changed_at), float(put_at)))


def marked(app: str) -> str:
    """A shell condition: the first line of the file `$path` carries this tool's mark for the application.

    By the shell's own means: a process for each file would cost more than all else that a look asks.
    """
    first = 'first=; [ ! -f "$path" ] || IFS= read -r first <"$path"'
    return f"{first}; case $first in *{quote(mark_of(app))}*) :;; *) false;; esac"


def ask_managed(host: FleetHost, app: str, known: Iterable[str]) -> str:
    """The files in the directories this tool writes to that carry its mark for the application, beside `known` ones."""
    settings = host.settings
    directories = (settings.unit_directory, settings.cron_directory, settings.logrotate_directory)
    places = " ".join(f"{quote(directory)}/celery*" for directory in dict.fromkeys(directories))
    return (
        f"for path in {places}; do\ncase $path in {'|'.join(map(quote, known))}) continue;; esac\n"
        f"{marked(app)} || continue\n"
        "printf '%s\\n' \"$path\"; LC_ALL=C stat -L -c '%f %.Y %.Z' \"$path\"\n"
        "base64 <\"$path\" | tr -d '\\n'; echo\ndone; :"
    )


def parse_managed(answer: Answer) -> dict[str, FileState]:
    lines = answer.out.decode(errors="replace").splitlines()
    threes = zip(lines[0::3], lines[1::3], lines[2::3], strict=True)
    return {path: _file_state(head, base64.b64decode(content)) for path, head, content in threes}


def ask_beat(host: FleetHost) -> str:
    """When beat's schedule was last written; the libraries that keep it add endings of their own to its name."""
    names = " ".join(quote(host.settings.beat_schedule + end) for end in ("", ".db", ".pag", ".dat", ".dir"))
    return f"LC_ALL=C stat -L -c '%.Y %n' {names} 2>/dev/null | sort -rn | head -n 1"


def parse_beat(answer: Answer) -> tuple[float | None, str]:
    """When beat last sent something, None where there is no schedule; or the file that does not tell.

    **Source:** celery 5.7.0 `beat.py: Scheduler.apply_async`: it is synced at the first message that is sent three
    minutes or more after the last time, and at the start. CPython 3.11 `shelve.py: Shelf.sync` does nothing where the
    library has no `sync`: `dbm.ndbm`, Debian's choice without python3-gdbm, writes `.db` or `.pag` when it is closed.
    """
    at, _, name = answer.out.decode(errors="replace").strip().partition(" ")
    if name.endswith((".db", ".pag")):
        return None, name
    return (float(at) if at else None), ""


def service_command(host: FleetHost, action: str, service: str) -> str:
    """The shell command for an action on a service: systemd's, or the inventory's `celery_commands`.

    By `eval`, so that a mistake in one of these is its own: a quote too few would swallow what follows it.
    """
    if host.has_systemd:
        return f"systemctl {action} -- {quote(unit_of(service))}"
    command: str = getattr(host.settings.commands, action)
    return f"cd {quote(host.settings.directory)} && eval {quote(command.replace('{worker}', quote(service)))}"


def ask_service(host: FleetHost, service: str) -> str:
    """What the status command says; of the process that it names, when it was started and what lies below it.

    Of these: their pids in each namespace, those that work in the application's directory, the commands with Celery.
    **Source:** proc(5): `/proc/PID/task/TID/children`; field NSpid of `/proc/PID/status` is a process's pid in each
    pid namespace that it is in, its own last.
    """
    return (
        f"answer=$( {service_command(host, 'status', service)} 2>&1 )\ncode=$?\n"
        f"pid=$(printf '%s\\n' \"$answer\" | sed -n '/^[0-9][0-9]*$/{{p;q;}}')\n"
        '[ -z "$pid" ] || cat "/proc/$pid/stat" || pid=\n[ -n "$pid" ] || echo -\n'
        "cat /proc/uptime; date +%s.%N; getconf CLK_TCK\n"
        'below() { echo "/proc/$1"; for task in /proc/"$1"/task/*/children; do\n'
        'read -r children <"$task"; for child in $children; do below "$child"; done; done; } 2>/dev/null\n'
        'if [ -n "$pid" ]; then pids= commands= here=; for one in $(below "$pid"); do\n'
        'pids="$pids $one/status" commands="$commands $one/cmdline"\n'
        f'[ ! "$one/cwd" -ef {quote(host.settings.directory)} ] || here="$here ${{one#/proc/}}"; done\n'
        'grep -sH "^NSpid:" $pids; echo "here:$here"; grep -saH "cele[r]y" $commands | tr "\\0" " "; fi; echo\n'
        "printf '%s\\n' \"$answer\"\nexit $code"
    )


def parse_service(host: FleetHost, app: str, service: str, answer: Answer, secrets: Collection[str]) -> ServiceState:
    """A service's state; raises RunbookError when the status command answers neither "runs" nor "does not run".

    A process counts when it is, or holds, a Celery worker or beat of the application and this node: the pid in a file
    that outlived its worker is somebody else's sooner or later.

    **Source:** proc(5): field 22 of `/proc/PID/stat`, after the command in parentheses, is the start in clock ticks
    since boot; `/proc/uptime` is in seconds.
    """
    stat, uptime, now, ticks_per_s, *rest = answer.out.decode(errors="replace").split("\n")
    below = list(takewhile(bool, rest))
    said = redact("\n".join(rest[len(below) + 1 :]).strip(), secrets)
    if answer.code == NOT_RUNNING:
        return ServiceState(None, None, said)
    if answer.code != 0 or stat == "-":
        said = said or redact(answer.err.strip(), secrets)
        raise RunbookError(
            f"the status command of {service} exited {answer.code} and said: {said[-300:] or 'nothing'}",
            "it must print the main pid and exit 0, or exit 3 when the service does not run (celery_commands.status)",
        )
    pid, _, comm = stat.rpartition(")")[0].partition(" (")
    pids, commands = _below(below)
    fields = stat.rpartition(")")[2].split()
    age_s = float(uptime.split()[0]) - int(fields[19]) / int(ticks_per_s)
    state = ServiceState(int(pid), float(now) - age_s, said, pids={int(pid): int(pid)} | pids)
    node = "" if service == "beat" else f"{service}@{host.name}"
    if any(is_of(app, command, here=here) and is_service(command, node) for command, here in commands):
        return state
    found = ", ".join(dict.fromkeys(filter(None, (what_runs(command) for command, _ in commands))))
    return replace(state, pid=None, other_process=f"pid {pid} ({found or comm})")


def _below(lines: Iterable[str]) -> tuple[dict[int, int], list[tuple[str, bool]]]:
    """The processes, each with the pid by which it knows itself; commands, and whether each works in the directory."""
    pids, here, commands = {}, set[str](), []
    for line in lines:
        path, _, rest = line.partition(":")
        if path == "here":
            here = set(rest.split())
        elif path.endswith("/status"):
            pids[int(path.split("/")[2])] = int(rest.split()[-1])
        else:
            commands.append((rest.strip(), path.split("/")[2] in here))
    return pids, commands


BEGAN = b'\n{"began": true}\n'
"""What the probe prints once it runs, in a Python that has Celery."""

ANSWER = '{"answer": '


def ask_application(host: FleetHost, app: str, overrides: Mapping[str, str], **question: Any) -> str:
    """Load the application in its own Python, with its environment file and `overrides` on top of it, and ask it.

    As the unit of a worker does: root reads the environment file, what any of the units sets besides is set, too, and
    the code is run by the application's user, whose it is. `-B`: a look writes nothing. Program, question and file
    travel on standard input: nothing of them stands in a list of processes or on a disk. Nor does the answer where the
    fragment is private, as a traceback may quote a secret: all of it comes on standard output. It ends with its own
    line, whatever the application has started.
    """
    settings = host.settings
    question |= {"app": app, "directory": settings.directory, "python": settings.python, "overrides": dict(overrides)}
    source = files("runbooks.hosts").joinpath("import_probe.py").read_text()
    program = f"QUESTION = {json.dumps(json.dumps(question))}\n{source}"
    env_file, python = quote(settings.env_file), quote(settings.python)
    units = " ".join(quote(unit_of(service)) for service in host.services) if host.has_systemd else ""
    show = f"systemctl show --property=Environment --value -- {units} 2>/dev/null | tr '\\n' ' '; " if units else ""
    start = (
        "import sys; sys.version_info >= (3, 6) or sys.exit('it is Python %d.%d; 3.6 or newer is needed' % "
        f"sys.version_info[:2]); exec(sys.stdin.buffer.read({len(program.encode())}))"
    )
    return (
        f"cannot() {{ printf '%s\\n' \"$*\" >&2; exit 1; }}\nme=$(id -un)\n"
        f'[ ! -e {env_file} ] || ( : <{env_file} ) 2>/dev/null || cannot celery_env_file is {env_file}, which "$me" '
        f"{quote('may not read: connect as a user who may, or as root')}\n"
        f'[ -f {python} ] || cannot celery_python is {python}, which "$me" does not find: {_NAME_PYTHON}\n'
        f'[ -x {python} ] || cannot celery_python is {python}, which "$me" may not execute: {_NAME_PYTHON}\n'
        f"{_become(settings.user, settings.group)}"
        f"{{ {say(program)}; {show}echo; [ ! -e {env_file} ] || cat -- {env_file}; }} |\n"
        f'"$@" {python} -B -c {quote(start)} 2>&1 | sed {quote(f"/^{ANSWER}/q")}'
    )


_NAME_PYTHON = quote("name the Python of the application's environment")


def _become(user: str, group: str | None) -> str:
    """Shell that puts into "$@" what root runs a program through, so that the application's user runs it."""
    user = quote(user)
    own_group = quote(group) if group else '"$group"'
    advice = quote(
        "(setpriv of util-linux is needed for that, which knows --init-groups and --reset-env; busybox's does not; or "
        "connect as the application's user):"
    )
    return (
        "set --; if [ $(id -u) -eq 0 ]; then\n"
        f"group=$(id -g -- {user}) 2>/dev/null || cannot celery_user is {user}, and there is no such user\n"
        f"set -- setpriv --reuid {user} --regid {own_group} --init-groups --reset-env --\n"
        f'said=$("$@" true 2>&1) || cannot root cannot become {user} {advice} "$said"; fi\n'
    )


def parse_application(host: FleetHost, answer: Answer, secrets: Collection[str]) -> dict[str, Any]:
    """What the application was asked; or `failed`, why there is none to ask; or `error`, what its own code raised.

    These two are redacted.
    """
    out = answer.out.decode(errors="replace")
    line = next((line for line in reversed(out.splitlines()) if line.startswith(ANSWER)), None)
    if line is not None:
        found: dict[str, Any] = json.loads(line)["answer"]
        return found | {name: redact(found[name], secrets) for name in ("failed", "error") if name in found}
    said = redact((answer.err + out.replace(BEGAN.decode(), "\n")).strip(), secrets)[-3000:] or "it printed nothing"
    if BEGAN in answer.out:
        return {"error": said}
    if answer.code != 0:
        return {"failed": said}
    why = f"celery_python is {host.settings.python}, which did not come so far as to load it"
    *before, last = said.splitlines()
    return {"failed": "\n".join((f"{why}: {last}", *before))}


def ask_imports(
    host: FleetHost, app: str, expected: Iterable[str], overrides: Mapping[str, str], encodings: Iterable[str] = ()
) -> str:
    """Load the application, import by hand the modules of the expected tasks that are missing then, and connect.

    `encodings` are those of which it has to say whether it knows them.
    """
    queues = sorted({queue for worker in host.settings.workers for queue in worker.queues})
    wanted = {"expected": sorted(expected), "options": OPTIONS, "queues": queues, "encodings": sorted(encodings)}
    return ask_application(host, app, overrides, **wanted)


def parse_imports(host: FleetHost, answer: Answer, secrets: Collection[str]) -> ImportProbe:
    """Where the application cannot be loaded, that is the error of every module."""
    found = parse_application(host, answer, secrets)
    if "registered" not in found:
        own = {"": found["error"]} if "error" in found else {}
        return ImportProbe(frozenset(), own, failed=found.get("failed", ""))
    reads = {
        name: found[name] and frozenset(found[name]) for name in ("accepts", "decodes", "compressions", "encodings")
    }
    errors = {name: redact(error, secrets) for name, error in found["errors"].items()}
    schedule = [{**entry, "error": redact(entry["error"], secrets)} for entry in found["schedule"]]
    told = ImportProbe(
        frozenset(found["registered"]), errors, found["remote"], found["options"],
        broker_at=redact(found["broker"].get("at", ""), secrets),
        broker_error=redact(found["broker"].get("error", ""), secrets),
        routes=found["routes"], schedule=tuple(ScheduledTask(**entry) for entry in schedule),
    )  # fmt: skip
    return replace(told, **reads)


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` with every known secret of four characters or more replaced, and passwords in URLs hidden.

    Also as Python, JSON and a URL write it.
    """
    known = [secret for secret in secrets if len(secret) >= 4]
    written = {form for s in known for form in (s, repr(s)[1:-1], json.dumps(s)[1:-1], url_quote(s, safe=""))}
    for secret in sorted(written, key=len, reverse=True):
        text = text.replace(secret, "********")
    return URL_PASSWORD.sub(r"\1:********@", text)


def redact_value(value: Any, secrets: Collection[str]) -> Any:
    """A JSON value with the secrets in its texts replaced, and what stands under a name that looks like one."""
    if isinstance(value, Mapping):
        hidden = {key: "********" for key in value if isinstance(key, str) and is_secret_name(key)}
        return {redact_value(key, secrets): hidden.get(key, redact_value(item, secrets)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(item, secrets) for item in value]
    return redact(value, secrets) if isinstance(value, str) else value
