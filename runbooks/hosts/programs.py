"""Programs of a host's supervisord that others have set up: everything that a takeover needs."""

import base64
import shlex
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.fleet import FleetHost
from runbooks.core.foreign import ConfFile, Foreign, Program, UnitText
from runbooks.core.redaction import keep_secrets_in, redact
from runbooks.hosts.script import Answer
from runbooks.hosts.supervisord import ask_supervisord


class _ProgramSettings(Struct, frozen=True):
    """**Source:** `supervisor_probe.py: settings_of`."""

    section: str
    path: str
    pid: int
    user: str | None
    directory: str | None
    umask: int | None
    environment: dict[str, str]
    stopwaitsecs: float
    stopasgroup: bool
    command: str


class _File(Struct, frozen=True):
    content: str
    mode: int
    changed_at: float


class _Others(Struct, frozen=True):
    programs: dict[str, _ProgramSettings] = {}
    files: dict[str, _File] = {}
    trouble: tuple[str, str] | None = None


def ask_programs(host: FleetHost) -> str:
    return ask_supervisord(host, "others")


def with_programs(foreign: Foreign, answer: Answer) -> Foreign:
    """Add the programs to `foreign`.

    From now on, variables with names of secrets are hidden in every output.
    """
    if answer.code != 0:
        return replace(
            foreign, no_programs=redact(answer.err.strip())[-300:] or "it does not answer"
        )
    others = msgspec.json.decode(answer.out, type=_Others)
    if others.trouble:
        return replace(foreign, no_programs=redact(" ".join(others.trouble)))
    for one in others.programs.values():
        for name, value in one.environment.items():
            keep_secrets_in(value, name)
    files = {}
    for path, file in others.files.items():
        files[path] = ConfFile(base64.b64decode(file.content), file.mode, file.changed_at)
    return replace(
        foreign,
        units={**foreign.units, **dict(_texts(others.programs))},
        programs=_by_section(others.programs),
        conf_files=files,
    )


def name_of(section: str) -> str:
    """Return the name of a section: `program NAME`."""
    return section.replace(":", " ", 1)


def _by_section(programs: Mapping[str, _ProgramSettings]) -> dict[str, Program]:
    found: dict[str, Program] = {}
    for name, one in programs.items():
        pids: dict[str, int] = {}
        names: tuple[str, ...] = (name,)
        before = found.get(name_of(one.section))
        if before:
            pids.update(before.pids)
            names = (*before.names, name)
        if one.pid:
            pids[name] = one.pid
        found[name_of(one.section)] = Program(
            one.section, one.path, pids, one.stopwaitsecs, one.stopasgroup, names
        )
    return found


def _texts(programs: Mapping[str, _ProgramSettings]) -> Iterator[tuple[str, UnitText]]:
    """Yield each program with its settings in a unit's words.

    **Source:** systemd.unit(5), "Specifiers"; systemd.exec(5).
    """
    for one in programs.values():
        settings = [
            ("User", one.user),
            ("WorkingDirectory", one.directory),
            ("ExecStart", _command(one.command)),
        ]
        if one.umask is not None:
            settings.append(("UMask", f"{one.umask:04o}"))
        for name, value in one.environment.items():
            settings.append(("Environment", _word(name, value)))
        given = tuple((key, value.replace("%", "%%")) for key, value in settings if value)
        yield name_of(one.section), UnitText((), (), given)


def _command(command: str) -> str:
    """Quote a command for a unit. **Source:** supervisor 4.3.0 `process.py: get_execv_args`."""
    try:
        return " ".join(f'"{word}"' for word in shlex.split(command))
    except ValueError:
        return ""


def _word(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{name}={escaped}"'
