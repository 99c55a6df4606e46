"""Programs of a supervisord that are somebody else's: what keeps one from starting again, and what
would be lost.

The conf file says from then on that the program does not start with supervisord. supervisord is not
told to read it again: what it has read lets the program stay stopped, and an `update` would restart
the program's whole group.
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
    """Whether a program does not run, starts with supervisord, and is neither this tool's nor the
    inventory's.
    """
    program = _program(state, name)
    if not program or program.pids or not state.foreign:
        return False
    if mark_of(fleet.app.app).encode() in state.foreign.conf_files[program.path].content:
        return False
    named = {one if ":" in one else f"{one}:{one}" for one in host.services if host.is_others(one)}
    return not named & set(program.names)


def full_names(state: HostState, name: str) -> tuple[str, ...]:
    """By which supervisord knows the processes of a program; none for what is no program."""
    program = _program(state, name)
    return tuple(program.pids) if program else ()


def environment_of(state: HostState, name: str) -> str:
    """What sets variables of its own."""
    return "environment= in its conf file" if _program(state, name) else "Environment= in its unit"


def why_unmanaged(foreign: Foreign, name: str) -> str:
    """Why supervisord cannot be told to stop it for good; "" where it can."""
    if foreign.no_programs:
        return (
            f"its supervisord cannot be asked ({foreign.no_programs}); does celery_supervisor name"
            " its conf and ctl?"
        )
    if name not in foreign.programs:
        return (
            "it is of another supervisord than the one of celery_supervisor, or its conf file no"
            " longer has it"
        )
    program = foreign.programs[name]
    if not _without_autostart(
        program, foreign.conf_files[program.path].content.decode(errors="replace")
    ):
        return f"{program.path} has no line [{program.section}], or several"
    return ""


def why_lost(host: FleetHost, state: HostState, name: str) -> str:
    """Which variables it sets that the environment file does not, where there is no drop-in to
    carry them over into.
    """
    text = (
        state.foreign.units.get(name) if state.foreign and name in state.foreign.programs else None
    )
    if not text or host.manager.has_drop_ins:
        return ""
    known = host.environment_in(state.files.get(host.settings.env_file)).values
    set_there = (variable_of(value)[0] for key, value in text.settings if key == "Environment")
    if lost := [variable for variable in set_there if variable not in known]:
        return (
            f"{environment_of(state, name)} sets {', '.join(lost)}, and the environment file does"
            f" not: write it into {host.settings.env_file}, then run the same command again"
        )
    return ""


def why_killed(host: FleetHost, state: HostState, name: str, rows: Sequence[Row]) -> str:
    """Why its stop might lose a task: one that does not answer cannot be told before to finish what
    it holds.
    """
    program = _program(state, name)
    silent = [row for row in rows if row.process and not row.process.is_beat and not row.answer]
    if not program or not silent:
        return ""
    if program.as_group:
        return (
            "it does not answer, and stopasgroup lets a stop end its tasks at once (--kill-running"
            " stops it anyway)"
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
    """Its conf file says that it does not start with supervisord, nor do the others there that are
    `taken` over.

    That is one change of one file, whichever of them asks for it.
    """
    program = _program(state, name)
    if not program or not state.foreign:
        return
    file = state.foreign.conf_files[program.path]
    found = {
        one: other
        for one in taken
        if (other := _program(state, one)) and other.path == program.path
    }
    after = file.content.decode(errors="surrogateescape")
    for other in found.values():
        after = _without_autostart(other, after)
    content = after.encode(errors="surrogateescape")
    if content != file.content:
        they_do = "it does" if len(found) == 1 else "they do"
        yield Change(
            host.name,
            STEP,
            f"set autostart=false of {enumerated([*found])} in {program.path}, so that"
            f" {they_do} not start with supervisord",
            WriteFile(program.path, content, file.mode, sha256(file.content)),
            WriteFile(
                program.path, file.content, file.mode, sha256(content), changed_at=file.changed_at
            ),
            detail=diff(program.path, file.content, content),
        )


def _without_autostart(program: Program, text: str) -> str:
    """The conf file with `autostart=false` in the program's section; "" where that is not there
    once.

    **Source:** supervisor 4.3.0 `options.py: process_groups_from_parser, UnhosedConfigParser`: a
    later key wins.
    """
    kind, _, own = program.section.partition(":")
    heads = [
        *re.finditer(rf"^\[{kind}:[ \t]*{re.escape(own.strip())}[ \t]*\].*$", text, re.MULTILINE)
    ]
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
