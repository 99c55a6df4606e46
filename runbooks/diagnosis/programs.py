"""Take over programs of a supervisord: keep one from starting again, and see what would be lost.

The conf file gets `autostart=false`. supervisord does not have to read it again: the program stays
stopped anyway, and an `update` would restart the program's whole group.
"""

import re
from collections.abc import Iterator, Sequence

from runbooks.core.effects import Change, WriteFile, sha256
from runbooks.core.fleet import Fleet, FleetHost, mark_of
from runbooks.core.foreign import Foreign, Program
from runbooks.core.model import HostState
from runbooks.core.wording import enumerated, span
from runbooks.diagnosis.census import Row
from runbooks.diagnosis.wanted_files import diff
from runbooks.hosts.foreign import variable_of

STEP = "workers"


def _program(state: HostState, name: str) -> Program | None:
    return state.foreign.programs.get(name) if state.foreign else None


def comes_back(fleet: Fleet, host: FleetHost, state: HostState, name: str) -> bool:
    """Return whether a program is down, starts with supervisord, and is not from the inventory."""
    program = _program(state, name)
    if not program or program.pids or not state.foreign:
        return False
    if mark_of(fleet.app.app).encode() in state.foreign.conf_files[program.path].content:
        return False
    for service in host.services:
        full_name = service if ":" in service else f"{service}:{service}"
        if host.is_others(service) and full_name in program.names:
            return False
    return True


def full_names(state: HostState, name: str) -> tuple[str, ...]:
    """Return supervisord's names for the processes of a program; none if it is not a program."""
    program = _program(state, name)
    return tuple(program.pids) if program else ()


def environment_of(state: HostState, name: str) -> str:
    """Return which setting sets its own variables."""
    return "environment= in its conf file" if _program(state, name) else "Environment= in its unit"


def why_unmanaged(foreign: Foreign, name: str) -> str:
    """Return why supervisord cannot stop it for good; "" if it can."""
    if foreign.no_programs:
        return (
            f"its supervisord does not answer ({foreign.no_programs}); does celery_supervisor name"
            " its conf and ctl?"
        )
    if name not in foreign.programs:
        return (
            "it belongs to another supervisord than the one of celery_supervisor, or its conf file"
            " no longer has it"
        )
    program = foreign.programs[name]
    text = foreign.conf_files[program.path].content.decode(errors="replace")
    if not _without_autostart(program, text):
        return f"{program.path} does not have exactly one line [{program.section}]"
    return ""


def why_lost(host: FleetHost, state: HostState, name: str) -> str:
    """Return which of its variables would be lost: no drop-in or environment file has them."""
    if not _program(state, name) or not state.foreign or host.manager.has_drop_ins:
        return ""
    text = state.foreign.units.get(name)
    settings = text.settings if text else ()
    known = host.environment_in(state.files.get(host.settings.env_file)).values
    set_there = [variable_of(value)[0] for key, value in settings if key == "Environment"]
    lost = [variable for variable in set_there if variable not in known]
    if not lost:
        return ""
    return (
        f"{environment_of(state, name)} sets {', '.join(lost)}, and the environment file does not:"
        f" write it into {host.settings.env_file}, then run this command again"
    )


def why_killed(host: FleetHost, state: HostState, name: str, rows: Sequence[Row]) -> str:
    """Return why its stop might lose a task: a worker that does not answer cannot be drained."""
    program = _program(state, name)
    silent = [row for row in rows if row.process and not row.process.is_beat and not row.answer]
    if not program or not silent:
        return ""
    if program.as_group:
        return (
            "it does not answer, and because of stopasgroup a stop ends its tasks at once"
            " (--kill-running stops it anyway)"
        )
    if program.stop_wait_s < host.settings.stop_timeout:
        return (
            f"it does not answer, and a stop kills what runs after {span(program.stop_wait_s)} (its"
            " stopwaitsecs; --kill-running stops it anyway)"
        )
    return ""


def kept_from_starting(
    host: FleetHost, state: HostState, name: str, taken: Sequence[str]
) -> Iterator[Change]:
    """Yield the change that keeps it from starting with supervisord.

    Others in its conf file that are `taken` over are in the same change of that file.
    """
    program = _program(state, name)
    if not program or not state.foreign:
        return
    file = state.foreign.conf_files[program.path]
    found = []
    text = file.content.decode(errors="surrogateescape")
    for one in taken:
        other = _program(state, one)
        if other and other.path == program.path:
            found.append(one)
            text = _without_autostart(other, text)
    content = text.encode(errors="surrogateescape")
    if content != file.content:
        they_do = "it does" if len(found) == 1 else "they do"
        path = program.path
        before = sha256(file.content)
        after = sha256(content)
        yield Change(
            host.name,
            STEP,
            f"set autostart=false of {enumerated(found)} in {path}, so that {they_do} not start"
            " with supervisord",
            WriteFile(path, content, file.mode, before),
            WriteFile(path, file.content, file.mode, after, changed_at=file.changed_at),
            detail=diff(path, file.content, content),
        )


def _without_autostart(program: Program, text: str) -> str:
    """Return the conf file with `autostart=false` in the program's only section; else "".

    **Source:** supervisor 4.3.0 `options.py: process_groups_from_parser, UnhosedConfigParser`: a
    later key wins.
    """
    kind, _, own = program.section.partition(":")
    head = rf"^\[{kind}:[ \t]*{re.escape(own.strip())}[ \t]*\].*$"
    heads = list(re.finditer(head, text, re.MULTILINE))
    if len(heads) != 1:
        return ""
    begin = heads[0].end()
    after = re.search(r"^\[", text[begin:], re.MULTILINE)
    end = begin + after.start() if after else len(text)
    section, found = re.subn(
        r"^autostart[ \t]*[=:].*$", "autostart=false", text[begin:end], flags=re.MULTILINE
    )
    if not found:
        section = "\nautostart=false" + section
    return text[:begin] + section + text[end:]
