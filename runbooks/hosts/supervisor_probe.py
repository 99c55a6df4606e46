"""Ask and control a host's supervisord over its own interface, in `supervisorctl`'s Python.

Sent to hosts as source: the host has no other code of this tool, and it runs on Python 3.6.
Supervisor's own code reaches supervisord with the login in its configuration, and reads the files
on the disk.

**Source:** supervisor 4.3.0 `options.py: ClientOptions, ServerOptions`, `rpcinterface.py`,
`states.py`, and `xmlrpc.py: Faults`.
"""

import base64
import contextlib
import json
import os
import pwd
import re
import sys
import time
import xmlrpc.client
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Optional, Tuple

STOPPED = 0
STARTING = 10
RUNNING = 20
BACKOFF = 30
STOPPING = 40
EXITED = 100
FATAL = 200
UP = (STARTING, RUNNING, BACKOFF)
ALREADY_STARTED = 60
NOT_RUNNING = 70
UNAUTHORIZED = 401
TAIL_BYTES = 8192
TAIL_LINES = 15
LINE_CHARACTERS = 500
PAUSE_S = 0.1
NOT_COMPARED = ("inuse", "serverurl")


class Trouble(Exception):
    """Why supervisord cannot be asked: the kind of trouble, and its subject."""


def connect(conf: str) -> Any:
    """Return supervisord's interface, with the address and login of its configuration."""
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
        pids = left_by(options.serverurl)
        if pids:
            raise Trouble("left", " ".join(map(str, pids))) from None
        what = "%s (%s)" % (options.serverurl, error.strerror or error)
        raise Trouble("down", what) from None
    except xmlrpc.client.ProtocolError as error:
        what = "%s (%s %s)" % (options.serverurl, error.errcode, error.errmsg)
        if error.errcode == UNAUTHORIZED:
            raise Trouble("denied", what) from None
        raise Trouble("down", what) from None
    return rpc


def left_by(url: str) -> List[int]:
    """Return the programs that outlived a supervisord of this address, without their children.

    **Source:** supervisor 4.3.0 `process.py: _spawn_as_child`: the variables that a program gets.
    """
    mine = ("SUPERVISOR_SERVER_URL=%s" % url).encode()
    parents = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/environ" % pid, "rb") as file:
                if mine in file.read().split(b"\0"):
                    parents[int(pid)] = int(fields_of(int(pid))[1])
        except (OSError, IndexError):
            continue
    return sorted(pid for pid, parent in parents.items() if parent not in parents)


def full(one: Dict[str, Any]) -> str:
    """Return the full name of a program, GROUP:NAME, from any of supervisord's answers."""
    return "%s:%s" % (one["group"], one["name"])


def on_disk(conf: str) -> Optional[Tuple[Dict[str, Any], Dict[str, bool]]]:
    """Return the programs in the present conf files, as supervisord would report them.

    Also returns the `stopasgroup` of each program, which supervisord does not report. None if this
    process cannot read the files.
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
        configs = AsRead(SimpleNamespace(options=read, process_groups={})).getAllConfigInfo()
    except (ValueError, OSError, SystemExit):
        return None
    as_group = {}
    for group in groups:
        for one in group.process_configs:
            as_group["%s:%s" % (group.name, one.name)] = bool(one.stopasgroup)
    return {full(one): one for one in configs}, as_group


def differs(known: Optional[Dict[str, Any]], there: Optional[Dict[str, Any]]) -> bool:
    """Whether supervisord's configuration of a program differs from the files; None: not there."""
    if known is None or there is None:
        return known is not there
    for key, value in there.items():
        if key not in NOT_COMPARED and value != "auto" and known.get(key) != value:
            return True
    return False


def sections(conf: str) -> Dict[str, Any]:
    """Return each program by its full name, with its section, file and settings."""
    from supervisor.options import ServerOptions

    found = {}

    class Recording(ServerOptions):  # type: ignore[misc]
        def processes_from_section(
            self, parser: Any, section: str, group_name: str, klass: Any = None
        ) -> Any:
            made = ServerOptions.processes_from_section(self, parser, section, group_name, klass)
            path = os.path.abspath(parser.section_to_file.get(section, conf))
            for one in made:
                found["%s:%s" % (group_name, one.name)] = settings_of(section, path, one)
            return made

    options = Recording()
    options.here = os.path.dirname(os.path.abspath(conf))
    options.read_config(conf)
    return found


def configured(conf: str) -> Dict[str, Any]:
    """Return `sections`. Raises Trouble if the conf files cannot be read."""
    try:
        return sections(conf)
    except (ValueError, OSError, SystemExit) as error:
        raise Trouble("unread", str(error)) from None


def settings_of(section: str, path: str, one: Any) -> Dict[str, Any]:
    user = None
    if one.uid is not None:
        user = pwd.getpwuid(one.uid).pw_name
    return {
        "section": section,
        "path": path,
        "user": user,
        "directory": one.directory,
        "umask": one.umask,
        "environment": one.environment,
        "stopwaitsecs": one.stopwaitsecs,
        "stopasgroup": bool(one.stopasgroup),
        "command": one.command,
        "autostart": bool(one.autostart),
    }


def others(question: Dict[str, Any]) -> Dict[str, Any]:
    """Return every running program, and those that name Celery and start with supervisord (pid 0).

    Each has its section and pid; the conf files of these sections follow.
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
    """Return every program whose command names Celery, with its settings and pid (0: none)."""
    rpc = connect(question["conf"])
    known = configured(question["conf"])
    found = {}
    for one in rpc.getAllProcessInfo():
        name = full(one)
        if "celery" in known.get(name, {}).get("command", ""):
            found[name] = dict(known[name], pid=one["pid"])
    return {"programs": found}


def comes_back(section: Dict[str, Any], state: int) -> bool:
    """Whether a stopped program starts with supervisord the next time, and names Celery."""
    if state not in (STOPPED, EXITED, FATAL):
        return False
    return section["autostart"] and "celery" in section["command"]


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
    """Yield a process and all below it. **Source:** proc(5), `/proc/PID/task/TID/children`."""
    yield pid
    try:
        threads = os.listdir("/proc/%d/task" % pid)
        children = []
        for thread in threads:
            children += text("/proc/%d/task/%s/children" % (pid, thread)).split()
    except OSError:
        return
    for child in children:
        yield from below(int(child))


def text(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode(errors="replace")


def fields_of(pid: int) -> List[str]:
    """Return the fields of `/proc/PID/stat` after the name."""
    _, _, fields = text("/proc/%d/stat" % pid).rpartition(")")
    return fields.split()


def inner_pid(pid: int) -> int:
    """Return the pid by which a process knows itself."""
    for line in text("/proc/%d/status" % pid).splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def process(pid: int) -> Optional[Dict[str, Any]]:
    """Return the start of a process, and the inner pids of its whole tree; None if it ended.

    **Source:** proc(5): field 22 of `/proc/PID/stat`; NSpid in `/proc/PID/status`.
    """
    try:
        ticks = int(fields_of(pid)[19])
    except OSError:
        return None
    pids = {}
    for one in below(pid):
        with contextlib.suppress(OSError):
            pids[one] = inner_pid(one)
    return {"ticks": ticks, "pids": pids, "environment": environment(pid)}


def environment(pid: int) -> str:
    """Return the environment in base64, "" if it cannot be read."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return base64.b64encode(file.read()).decode()
    except OSError:
        return ""


def tail(path: str) -> List[str]:
    """Return the last lines of a log file."""
    return end_of(path, TAIL_BYTES).splitlines()[-TAIL_LINES:]


def end_of(path: str, size: int) -> str:
    """Return the last `size` bytes of a file, as text; "" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - size))
            return file.read(size).decode(errors="replace")
    except OSError:
        return ""


def logs_of(one: Dict[str, Any], known: Dict[str, Any]) -> List[str]:
    """Return the log files of a program; redirected output has no file of its own."""
    paths = [one["stdout_logfile"]]
    if not known.get("redirect_stderr"):
        paths.append(one["stderr_logfile"])
    return [path for path in paths if path]


def look(question: Dict[str, Any]) -> Dict[str, Any]:
    """Return the state of each program by its full name, and the files with this tool's mark."""
    rpc = connect(question["conf"])
    known = {full(one): one for one in rpc.getAllConfigInfo()}
    disk, as_group = on_disk(question["conf"]) or (None, {})
    found = {}
    for one in rpc.getAllProcessInfo():
        name = full(one)
        own = known.get(name, {})
        state = state_and_logs(one, own, question)
        state["stop_wait_s"] = own.get("stopwaitsecs")
        state["unread"] = disk is not None and differs(known.get(name), disk.get(name))
        state["as_group"] = None
        if not state["unread"]:
            state["as_group"] = as_group.get(name)
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


def state_and_logs(
    one: Dict[str, Any], known: Dict[str, Any], question: Dict[str, Any]
) -> Dict[str, Any]:
    """Return the state of a program, its process if it runs, and lines of its logs."""
    fields = ("state", "statename", "pid", "exitstatus", "description")
    state = {key: one[key] for key in fields}
    state.update(process=None, last=[], said=[])
    if one["pid"]:
        state["process"] = process(one["pid"])
    for path in logs_of(one, known):
        if one["state"] in (STARTING, RUNNING):
            state["said"] += said(path, question)
        elif one["state"] not in (STOPPED, STOPPING):
            state["last"] += tail(path)
    state["last"] = state["last"][-TAIL_LINES:]
    return state


def said(path: str, question: Dict[str, Any]) -> List[str]:
    """Return the notable lines at the end of a log, and after a failure also the ends of tasks."""
    lines = end_of(path, question["bytes"]).splitlines()
    found = [line for line in lines if re.search(question["notable"], line)]
    if any(re.search(question["failure"], line) for line in found):
        either = "%s|%s" % (question["notable"], question["outcome"])
        found = [line for line in lines if re.search(either, line)]
    return [line[:LINE_CHARACTERS] for line in found]


def marked(directory: str, mark: str) -> List[str]:
    """Return the names of the files that begin with the mark."""
    found = []  # type: List[str]
    if not os.path.isdir(directory):
        return found
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError), open(path, errors="replace") as file:
            if name.endswith(".conf") and mark in file.readline():
                found.append(name)
    return found


def logs(question: Dict[str, Any]) -> Dict[str, Any]:
    """Return the log files of these programs."""
    rpc = connect(question["conf"])
    known = {full(one): one for one in rpc.getAllConfigInfo()}
    by_name = {full(one): logs_of(one, known.get(full(one), {})) for one in rpc.getAllProcessInfo()}
    return {"logs": {name: by_name.get(name, []) for name in question["programs"]}}


def reread(question: Dict[str, Any]) -> None:
    """Have supervisord read its conf files again; running programs are not changed.

    Removes groups whose names begin with the prefix, that are in no file any more, and of which
    nothing runs.
    """
    rpc = connect(question["conf"])
    _, _, removed = rpc.reloadConfig()[0]
    there = rpc.getAllProcessInfo()
    running = [one["group"] for one in there if one["pid"] or one["state"] in UP]
    for group in removed:
        if group.startswith(question["prefix"]) and group not in running:
            rpc.removeProcessGroup(group)


def control(question: Dict[str, Any]) -> None:
    """Start, stop or restart programs; they stop in parallel.

    `own`: each has a group of its own, so a start can use its conf file as last read.
    """
    rpc = connect(question["conf"])
    action = question["action"]
    until = time.time() + question["seconds"]
    if action != "start":
        stop(rpc, question["programs"], until)
    if action != "stop":
        for name in question["programs"]:
            start(rpc, name, question["own"], until)


def state_of(rpc: Any, name: str) -> Optional[int]:
    """Return the state of a program, None if supervisord does not have it."""
    for one in rpc.getAllProcessInfo():
        if full(one) == name:
            return int(one["state"])
    return None


def stop(rpc: Any, names: List[str], until: float) -> None:
    for name in names:
        if state_of(rpc, name) in UP:
            unless(NOT_RUNNING, rpc.stopProcess, name, False)
    for name in names:
        while state_of(rpc, name) in (*UP, STOPPING):
            if time.time() > until:
                sys.exit(
                    "%s is stopping but still runs: supervisord waits for its stopwaitsecs, and"
                    " does not start it again afterwards; run this again then" % name
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
        sys.exit("supervisord does not have a program %s; do its conf files name it?" % name)
    unless(ALREADY_STARTED, rpc.startProcess, name, False)


def renew(rpc: Any, group: str) -> None:
    """Have supervisord apply what it last read of a stopped group; skip groups it has not read."""
    if group in [one["group"] for one in rpc.getAllConfigInfo()]:
        if group in [one["group"] for one in rpc.getAllProcessInfo()]:
            rpc.removeProcessGroup(group)
        rpc.addProcessGroup(group)


def unless(code: int, call: Any, *arguments: Any) -> None:
    """Make a call; ignore the fault that says that it was not needed."""
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
            sys.exit("supervisord cannot be controlled: %s" % trouble.args[1])
        print(json.dumps({"trouble": trouble.args}))
    except xmlrpc.client.Fault as fault:
        sys.exit("supervisord refuses: %s" % fault.faultString)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
