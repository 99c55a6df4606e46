"""Asks and tells a host's supervisord over its own interface, in the Python of its own
`supervisorctl`.

Sent to hosts as source: nothing of this tool is there, and it runs on Python 3.6. Supervisor's own
code knows how to reach supervisord with the login in its configuration, and what the files on the
disk come to.

**Source:** supervisor 4.3.0 `options.py: ClientOptions, ServerOptions`, `rpcinterface.py`,
`states.py`, and `xmlrpc.py: Faults`.
"""

import base64
import json
import os
import pwd
import re
import sys
import time
import xmlrpc.client
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Optional, Tuple

STOPPED, STARTING, RUNNING, BACKOFF, STOPPING = 0, 10, 20, 30, 40
EXITED, FATAL = 100, 200
UP = (STARTING, RUNNING, BACKOFF)
ALREADY_STARTED, NOT_RUNNING = 60, 70
UNAUTHORIZED = 401
TAIL_BYTES, TAIL_LINES = 8192, 15
LINE_CHARACTERS = 500
PAUSE_S = 0.1
NOT_COMPARED = ("inuse", "serverurl")


class Trouble(Exception):
    """Why supervisord cannot be asked: which kind, and about what."""


def connect(conf: str) -> Any:
    """Supervisord's interface, by the address and login that its configuration has for
    `supervisorctl`.
    """
    from supervisor.options import ClientOptions

    if not os.path.exists(conf):
        raise Trouble("no-conf", conf)
    if not os.access(conf, os.R_OK):
        raise Trouble("denied", conf)
    options = ClientOptions()
    options.realize(["-c", conf, "status"])
    rpc = options.getServerProxy().supervisor
    try:
        rpc.getState()
    except PermissionError:
        raise Trouble("denied", options.serverurl) from None
    except OSError as error:
        what = "%s (%s)" % (options.serverurl, error.strerror or error)
        pids = left_by(options.serverurl)
        raise (
            Trouble("left", " ".join(map(str, pids))) if pids else Trouble("down", what)
        ) from None
    except xmlrpc.client.ProtocolError as error:
        kind = "denied" if error.errcode == UNAUTHORIZED else "down"
        raise Trouble(
            kind, "%s (%s %s)" % (options.serverurl, error.errcode, error.errmsg)
        ) from None
    return rpc


def left_by(url: str) -> List[int]:
    """The programs that a supervisord of this address has started and that outlived it, without
    what they started.

    **Source:** supervisor 4.3.0 `process.py: _spawn_as_child`: the variables that a program gets.
    """
    mine = ("SUPERVISOR_SERVER_URL=%s" % url).encode()
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/environ" % pid, "rb") as file:
                if mine in file.read().split(b"\0"):
                    parents[int(pid)] = int(
                        text("/proc/%s/stat" % pid).rpartition(")")[2].split()[1]
                    )
        except (OSError, IndexError):
            continue
    return sorted(pid for pid, parent in parents.items() if parent not in parents)


def full(one: Dict[str, Any]) -> str:
    """The name of a program with its group, from any of supervisord's answers."""
    return "%s:%s" % (one["group"], one["name"])


def on_disk(conf: str) -> Optional[Tuple[Dict[str, Any], Dict[str, bool]]]:
    """What the conf files come to now, as supervisord would tell it, and of each program its
    `stopasgroup`, which it does not tell; None where this process cannot read them.
    """
    from supervisor.options import ServerOptions
    from supervisor.rpcinterface import SupervisorNamespaceRPCInterface

    class AsRead(SupervisorNamespaceRPCInterface):  # type: ignore[misc]
        def _update(self, _: str) -> None:
            pass

    try:
        options = ServerOptions()
        options.here = os.path.dirname(os.path.abspath(conf))
        groups = options.read_config(conf).process_group_configs
        read = SimpleNamespace(process_group_configs=groups)
        told = AsRead(SimpleNamespace(options=read, process_groups={})).getAllConfigInfo()
    except (ValueError, OSError, SystemExit):
        return None
    as_group = {
        "%s:%s" % (group.name, one.name): bool(one.stopasgroup)
        for group in groups
        for one in group.process_configs
    }
    return {full(one): one for one in told}, as_group


def differs(known: Optional[Dict[str, Any]], there: Optional[Dict[str, Any]]) -> bool:
    """Whether supervisord knows a program otherwise than the files have it; None where there is
    none.
    """
    if known is None or there is None:
        return known is not there
    return any(
        known.get(key) != there[key]
        for key in there
        if key not in NOT_COMPARED and there[key] != "auto"
    )


def sections(conf: str) -> Dict[str, Any]:
    """Of each program, by its full name: its section, the file that has it, and what else stands
    there.
    """
    from supervisor.options import ServerOptions

    found = {}

    class Recording(ServerOptions):  # type: ignore[misc]
        def processes_from_section(
            self, parser: Any, section: str, group_name: str, klass: Any = None
        ) -> Any:
            made = ServerOptions.processes_from_section(self, parser, section, group_name, klass)
            path = os.path.abspath(parser.section_to_file.get(section, conf))
            for one in made:
                found["%s:%s" % (group_name, one.name)] = told(section, path, one)
            return made

    options = Recording()
    options.here = os.path.dirname(os.path.abspath(conf))
    options.read_config(conf)
    return found


def configured(conf: str) -> Dict[str, Any]:
    """As `sections`; raises Trouble where the conf files cannot be read."""
    try:
        return sections(conf)
    except (ValueError, OSError, SystemExit) as error:
        raise Trouble("unread", str(error)) from None


def told(section: str, path: str, one: Any) -> Dict[str, Any]:
    user = None if one.uid is None else pwd.getpwuid(one.uid).pw_name
    return {
        "section": section, "path": path, "user": user, "directory": one.directory, "umask": one.umask,
        "environment": one.environment, "stopwaitsecs": one.stopwaitsecs, "stopasgroup": bool(one.stopasgroup),
        "command": one.command, "autostart": bool(one.autostart),
    }  # fmt: skip


def others(question: Dict[str, Any]) -> Dict[str, Any]:
    """Every program that runs, and those that name Celery and only start with supervisord the next
    time (pid 0).

    Each with its section, its pid, and the conf files that have the sections.
    """
    rpc = connect(question["conf"])
    known = configured(question["conf"])
    programs = {}
    for one in rpc.getAllProcessInfo():
        section = known.get(full(one))
        if section and (one["pid"] or comes_back(section, one["state"])):
            programs[full(one)] = dict(section, pid=one["pid"])
    paths = {one["path"] for one in programs.values()}
    return {"programs": programs, "files": {path: file_of(path) for path in sorted(paths)}}


def described(question: Dict[str, Any]) -> Dict[str, Any]:
    """Every program whose command names Celery, whether it runs or not: what the conf files say,
    and its pid.
    """
    rpc = connect(question["conf"])
    known = configured(question["conf"])
    found = {}
    for one in rpc.getAllProcessInfo():
        name = full(one)
        if "celery" in known.get(name, {}).get("command", ""):
            found[name] = dict(known[name], pid=one["pid"])
    return {"programs": found}


def comes_back(section: Dict[str, Any], state: int) -> bool:
    return (
        section["autostart"]
        and "celery" in section["command"]
        and state in (STOPPED, EXITED, FATAL)
    )


def file_of(path: str) -> Dict[str, Any]:
    with open(path, "rb") as file:
        content = base64.b64encode(file.read()).decode()
        state = os.fstat(file.fileno())
    return {
        "content": content,
        "mode": state.st_mode & 0o7777,
        "changed_at": min(state.st_mtime, state.st_ctime),
    }


def below(pid: int) -> Iterator[int]:
    """A process and all below it. **Source:** proc(5), `/proc/PID/task/TID/children`."""
    yield pid
    try:
        threads = os.listdir("/proc/%d/task" % pid)
        children = " ".join(text("/proc/%d/task/%s/children" % (pid, thread)) for thread in threads)
    except OSError:
        return
    for child in children.split():
        yield from below(int(child))


def text(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")


def process(pid: int) -> Optional[Dict[str, Any]]:
    """Its start, and it and those below it, each with the pid by which it knows itself; None where
    it is gone.

    **Source:** proc(5): field 22 of `/proc/PID/stat`; NSpid in `/proc/PID/status`.
    """
    try:
        ticks = int(text("/proc/%d/stat" % pid).rpartition(")")[2].split()[19])
    except OSError:
        return None
    pids = {}
    for one in below(pid):
        try:
            inner = [
                line.split()
                for line in text("/proc/%d/status" % one).splitlines()
                if line.startswith("NSpid:")
            ]
        except OSError:
            continue
        pids[one] = int(inner[0][-1]) if inner else one
    return {"ticks": ticks, "pids": pids, "environment": environment(pid)}


def environment(pid: int) -> str:
    """In base64, "" where it cannot be read."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return base64.b64encode(file.read()).decode()
    except OSError:
        return ""


def tail(path: str) -> List[str]:
    """The last lines of a log file."""
    return end_of(path, TAIL_BYTES).splitlines()[-TAIL_LINES:]


def end_of(path: str, size: int) -> str:
    """So many of the last bytes of a file, as text; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - size))
            return file.read(size).decode(errors="replace")
    except OSError:
        return ""


def logs_of(one: Dict[str, Any], known: Dict[str, Any]) -> List[str]:
    """The log files of a program; what is redirected has none of its own."""
    errors = "" if known.get("redirect_stderr") else one["stderr_logfile"]
    return [path for path in (one["stdout_logfile"], errors) if path]


def look(question: Dict[str, Any]) -> Dict[str, Any]:
    """The state of each program by its full name, and which files have this tool's mark."""
    rpc = connect(question["conf"])
    known = {full(one): one for one in rpc.getAllConfigInfo()}
    disk, as_group = on_disk(question["conf"]) or (None, {})
    found = {}
    for one in rpc.getAllProcessInfo():
        name = full(one)
        state = {
            key: one[key] for key in ("state", "statename", "pid", "exitstatus", "description")
        }
        state["unread"] = disk is not None and differs(known.get(name), disk.get(name))
        state["stop_wait_s"] = known.get(name, {}).get("stopwaitsecs")
        state["as_group"] = None if state["unread"] else as_group.get(name)
        state["process"] = process(one["pid"]) if one["pid"] else None
        failed = one["state"] not in (STOPPED, STARTING, RUNNING, STOPPING)
        logs = logs_of(one, known.get(name, {}))
        state["last"] = (
            [line for path in logs for line in tail(path)][-TAIL_LINES:] if failed else []
        )
        runs = one["state"] in (STARTING, RUNNING)
        state["said"] = [line for path in logs for line in said(path, question)] if runs else []
        found[name] = state
    unread = [name for name in disk or () if name not in known]
    ours = marked(question["directory"], question["mark"])
    zone = time.strftime("%z")
    return {
        "asked": question["asked"],
        "programs": found,
        "unread": unread,
        "ours": ours,
        "zone": zone,
    }


def said(path: str, question: Dict[str, Any]) -> List[str]:
    """The notable lines at the end of a log, and where something failed, how other tasks ended."""
    lines = end_of(path, question["bytes"]).splitlines()
    found = [line for line in lines if re.search(question["notable"], line)]
    if any(re.search(question["failure"], line) for line in found):
        either = "%s|%s" % (question["notable"], question["outcome"])
        found = [line for line in lines if re.search(either, line)]
    return [line[:LINE_CHARACTERS] for line in found]


def marked(directory: str, mark: str) -> List[str]:
    """The names of the files that begin with the mark."""
    found = []
    for name in sorted(os.listdir(directory) if os.path.isdir(directory) else ()):
        try:
            with open(os.path.join(directory, name), errors="replace") as file:
                found += [name] if name.endswith(".conf") and mark in file.readline() else []
        except OSError:
            continue
    return found


def logs(question: Dict[str, Any]) -> Dict[str, Any]:
    """The log files of these programs."""
    rpc = connect(question["conf"])
    known = {full(one): one for one in rpc.getAllConfigInfo()}
    told = {full(one): logs_of(one, known.get(full(one), {})) for one in rpc.getAllProcessInfo()}
    return {"logs": {name: told.get(name, []) for name in question["programs"]}}


def reread(question: Dict[str, Any]) -> None:
    """Supervisord reads its conf files again; what runs is left.

    Groups whose names begin with the prefix, of which nothing runs, and that stand in no file any
    more, are removed.
    """
    rpc = connect(question["conf"])
    _, _, removed = rpc.reloadConfig()[0]
    there = rpc.getAllProcessInfo()
    for group in removed:
        its = [one for one in there if one["group"] == group]
        if group.startswith(question["prefix"]) and not any(
            one["pid"] or one["state"] in UP for one in its
        ):
            rpc.removeProcessGroup(group)


def control(question: Dict[str, Any]) -> None:
    """Start, stop or restart programs, all of them stopped at once.

    `own`: the group of each is its own, so that its conf file, as last read, counts from its start
    on.
    """
    rpc, action = connect(question["conf"]), question["action"]
    until = time.time() + question["seconds"]
    if action != "start":
        stop(rpc, question["programs"], until)
    if action != "stop":
        for name in question["programs"]:
            start(rpc, name, question["own"], until)


def state_of(rpc: Any, name: str) -> Optional[int]:
    """None for a program that supervisord does not have."""
    return next((one["state"] for one in rpc.getAllProcessInfo() if full(one) == name), None)


def stop(rpc: Any, names: List[str], until: float) -> None:
    for name in names:
        if state_of(rpc, name) in UP:
            unless(NOT_RUNNING, rpc.stopProcess, name, False)
    for name in names:
        while state_of(rpc, name) in (*UP, STOPPING):
            if time.time() > until:
                sys.exit(
                    "%s was told to stop and still runs: supervisord waits for its stopwaitsecs,"
                    " and does not start it again after that; run this again then" % name
                )
            time.sleep(PAUSE_S)


def start(rpc: Any, name: str, own: bool, until: float) -> None:
    if state_of(rpc, name) in (BACKOFF, STOPPING):
        stop(rpc, [name], until)
    if state_of(rpc, name) in (STARTING, RUNNING):
        return
    if own:
        renew(rpc, name.partition(":")[0])
    if state_of(rpc, name) is None:
        sys.exit("supervisord has no program %s; do its conf files name it?" % name)
    unless(ALREADY_STARTED, rpc.startProcess, name, False)


def renew(rpc: Any, group: str) -> None:
    """Have supervisord use what it has read last of a stopped group; one that it has not read is
    left as it is.
    """
    if group in [one["group"] for one in rpc.getAllConfigInfo()]:
        if group in [one["group"] for one in rpc.getAllProcessInfo()]:
            rpc.removeProcessGroup(group)
        rpc.addProcessGroup(group)


def unless(code: int, call: Any, *arguments: Any) -> None:
    """Make a call, of which this fault says that it was not needed."""
    try:
        call(*arguments)
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != code:
            raise


def main(question: Dict[str, Any]) -> None:
    asks = {"look": look, "logs": logs, "others": others, "described": described}
    tells = {"reread": reread, "control": control}
    try:
        if question["verb"] in asks:
            print(json.dumps(asks[question["verb"]](question)))
        else:
            tells[question["verb"]](question)
    except Trouble as trouble:
        if question["verb"] in tells:
            sys.exit("supervisord cannot be told: %s" % trouble.args[1])
        print(json.dumps({"trouble": trouble.args}))
    except xmlrpc.client.Fault as fault:
        sys.exit("supervisord refuses: %s" % fault.faultString)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
