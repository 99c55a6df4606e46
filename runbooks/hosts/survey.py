"""Asks a host what runs its workers and beats, where no inventory says so, and understands what it
answers.

Commands and variables of processes, units and containers may hold secrets: what is asked here is
private, and only what the records of `core/survey.py` have of it is kept.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec
from msgspec import Struct

from runbooks.core.census import Options
from runbooks.core.envfile.edit import read
from runbooks.core.redaction import redact
from runbooks.core.survey import SeenContainer, SeenProcess, SeenService, Supervisord
from runbooks.hosts.celery_argv import command_in, extra_of, is_python, log_of, options_of
from runbooks.hosts.celery_multi import workers_in
from runbooks.hosts.script import Answer, shell
from runbooks.hosts.supervisord import ask_of

_USUAL_CONF = "/etc/supervisor/supervisord.conf"
_LABEL = "com.docker.compose"


def ask_processes(pids: Iterable[int]) -> str:
    """What these processes are, and how each supervisord was started."""
    return shell("survey", " ".join(map(str, pids)))


class Processes(Struct, frozen=True):
    """The host's own name, who asks there, each process by its pid, and each supervisord that may
    be asked.
    """

    hostname: str
    asking: str
    details: dict[int, SeenProcess]
    supervisords: dict[int, Supervisord]


def parse_processes(answer: Answer) -> Processes:
    """**Source:** uname(1); proc(5): `cwd`, `exe`, `maps`, `fd`, `cmdline`."""
    heads, told, supervisords = answer.out.decode(errors="replace").split("---\n", 2)
    hostname, asking = heads.splitlines()
    details = {pid: _process(found) for pid, found in _each(told.splitlines())}
    running = {pid: _supervisord(found) for pid, found in _each(supervisords.splitlines())}
    return Processes(hostname, asking, details, running)


def _each(lines: Sequence[str]) -> Iterator[tuple[int, dict[str, list[str]]]]:
    pid, found = 0, dict[str, list[str]]()
    for line in (*lines, "pid 0"):
        key, _, value = line.partition(" ")
        if key == "pid":
            if pid:
                yield pid, found
            pid, found = int(value), {}
        else:
            found.setdefault(key, []).append(value)


def _process(found: Mapping[str, Sequence[str]]) -> SeenProcess:
    directory = found.get("directory", [""])[0]
    words = found.get("words", [""])[0].rstrip("\t").split("\t")
    log = log_of(words)
    if "%" in log:
        log = ""  # which file that is, only the worker knows
    named = str(PurePosixPath(directory, log)) if log else ""
    logs = dict.fromkeys(filter(None, [named, *found.get("log", [])]))
    return SeenProcess(directory, _python(found, directory, words[0]), tuple(logs), extra_of(words))


def _python(found: Mapping[str, Sequence[str]], directory: str, first: str) -> str:
    """As its command names it; else that of its packages, as a link of a virtual environment is
    resolved in `exe`.
    """
    if "/" in first and is_python(first):
        return str(PurePosixPath(directory, first))
    return found.get("python", found.get("program", [""]))[0]


def _supervisord(found: Mapping[str, Sequence[str]]) -> Supervisord:
    """**Source:** supervisor 4.3.0 `options.py`: `-c FILE`, `--configuration FILE`."""
    words, directory = (
        found.get("words", [""])[0].rstrip("\t").split("\t"),
        found.get("directory", ["/"])[0],
    )
    conf = _USUAL_CONF
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word in ("-c", "--configuration"):
            conf = str(PurePosixPath(directory, after))
        elif word.startswith("--configuration="):
            conf = str(PurePosixPath(directory, word.partition("=")[2]))
    return Supervisord(conf, found.get("ctl", ["supervisorctl"])[0])


def ask_units(units: Sequence[str]) -> str:
    """How these units start what they start."""
    return shell("survey_units", *units)


def parse_units(answer: Answer, files: Mapping[str, bytes | None]) -> list[SeenService]:
    """Each unit; one that starts several nodes by `celery multi` once for each.

    `files` are the contents of those that `env_files_of` names, None where one could not be read.
    **Source:** systemctl(1), `show`; systemd.exec(5).
    """
    return [service for told in _shown(answer) for service in _of_unit(told, files)]


def env_files_of(answer: Answer) -> list[str]:
    """The environment files of the units whose command has variables."""
    return list(
        dict.fromkeys(
            path for told in _shown(answer) if "$" in _started(told) for path in _env_files(told)
        )
    )


def _shown(answer: Answer) -> Iterator[dict[str, str]]:
    for block in answer.out.decode(errors="replace").strip().split("\n\n"):
        told = dict[str, list[str]]()
        for name, _, value in (line.partition("=") for line in block.splitlines()):
            told.setdefault(name, []).append(value)
        if "Id" in told:
            yield {name: "\n".join(values) for name, values in told.items()}


def _started(told: Mapping[str, str]) -> str:
    found = re.search(r"argv\[\]=(.*?) ; ignore_errors=", told.get("ExecStart", ""), re.DOTALL)
    return found[1] if found else ""


def _env_files(told: Mapping[str, str]) -> tuple[str, ...]:
    """A pattern names none that is known."""
    found = re.findall(
        r"^(.+) \(ignore_errors=\w+\)$", told.get("EnvironmentFiles", ""), re.MULTILINE
    )
    return tuple(path for path in found if not re.search(r"[*?\[]", path))


def _of_unit(told: Mapping[str, str], files: Mapping[str, bytes | None]) -> Iterator[SeenService]:
    text = _with_values(_started(told), told, files)
    words = command_in(text)
    commands: Sequence[Sequence[str]] = workers_in(words) or [words]
    for command in commands:
        yield SeenService(
            told["Id"],
            told.get("FragmentPath", "") or told["Id"],
            options_of(command) or _beat_in(text),
            extra_of(command),
            directory=told.get("WorkingDirectory", "").lstrip("!-"),
            python=_python_of(words),
            user=told.get("User", "") or "root",
            env_files=_env_files(told),
            wanted=told.get("UnitFileState") != "disabled"
            or told.get("ActiveState") in ("active", "activating"),
        )


def _with_values(command: str, told: Mapping[str, str], files: Mapping[str, bytes | None]) -> str:
    """A command with the values of its variables, as it is where they are not all known.

    **Source:** systemd.exec(5): a file outranks `Environment=`, a later file an earlier one; what
    is not set is empty.
    """
    paths = _env_files(told)
    if "$" not in command or any(files.get(path) is None for path in paths):
        return command
    values = dict(pair.split("=", 1) for pair in _words(told.get("Environment", "")) if "=" in pair)
    for path in paths:
        values |= read(files[path] or b"", "systemd").values
    return re.sub(
        r"\$(?:\{(\w+)\}|(\w+))", lambda found: values.get(found[1] or found[2], ""), command
    )


def _words(text: str) -> Sequence[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return ()


def _beat_in(command: str) -> Options | None:
    """What a command says of a beat that it starts by variables, as far as no variable says it;
    None: of none.

    **Source:** celery 5.7.0, guide "Daemonization": `${CELERY_BIN} -A ${CELERY_APP} beat
    --pidfile=${…}`.
    """
    found = re.search(r"\$\S*\s+beat(\s.*)?$", command, re.DOTALL)
    words = (found[1] or "").replace("'", " ").replace('"', " ").split() if found else ()
    return (
        options_of(["celery", "beat", *(word for word in words if "$" not in word)])
        if found
        else None
    )


def _python_of(words: Sequence[str]) -> str:
    return words[0] if words and words[0].startswith("/") and is_python(words[0]) else ""


def ask_programs(supervisord: Supervisord) -> str:
    """The programs of a supervisord whose commands name Celery."""
    return ask_of(supervisord.conf, supervisord.ctl, "described")


class _Program(Struct, frozen=True):
    """**Source:** `supervisor_probe.py: described`."""

    section: str
    path: str
    command: str
    pid: int
    autostart: bool
    user: str | None = None
    directory: str | None = None


class _Programs(Struct, frozen=True):
    programs: dict[str, _Program] = {}
    trouble: tuple[str, str] | None = None


def parse_programs(answer: Answer) -> tuple[list[SeenService], str]:
    """The programs, each by its name as `supervisorctl` takes it; and why they are not known, ""
    where they are.
    """
    if answer.code != 0:
        return [], redact(answer.err.strip())[-300:] or "supervisorctl failed"
    told = msgspec.json.decode(answer.out, type=_Programs)
    if told.trouble:
        return [], redact(" ".join(told.trouble))
    return [_program(name, one) for name, one in told.programs.items()], ""


def _program(name: str, one: _Program) -> SeenService:
    words = command_in(one.command)
    group, _, process = name.partition(":")
    return SeenService(
        process if group == process else name,
        f"{one.path}, [{one.section}]",
        options_of(words),
        extra_of(words),
        directory=one.directory or "",
        python=_python_of(words),
        user=one.user or "",
        wanted=one.autostart or one.pid != 0,
        pids=(one.pid,) if one.pid else (),
    )


def ask_containers(socket: str) -> str:
    """All containers of the engine behind a socket, "": where Docker's client looks."""
    return shell("survey_docker", socket, using=["docker"])


def parse_containers(answer: Answer) -> tuple[list[SeenService], str]:
    """All of them, and why they are not known, "" where they are.

    **Source:** docker-inspect(1); Compose's own labels.
    """
    if answer.code != 0:
        return [], redact(answer.err.strip())[-300:] or "docker failed"
    return [_container(one) for one in json.loads(answer.out or b"[]")], ""


def _container(one: Mapping[str, Any]) -> SeenService:
    """A container of no project is called by its own name.

    One that was stopped with success, and that nothing starts again, is not to run: it may be one
    of a kind.
    """
    config, state, labels = one["Config"], one["State"], one["Config"].get("Labels") or {}
    words = [one.get("Path") or "", *(one.get("Args") or ())]
    if not options_of(words):
        words = list(command_in(" ".join(words)))
    folder = labels.get(f"{_LABEL}.project.working_dir", "")
    networks = (one.get("NetworkSettings") or {}).get("Networks") or {}
    files = filter(None, labels.get(f"{_LABEL}.project.config_files", "").split(","))
    container = SeenContainer(
        one["Id"],
        one["Name"].removeprefix("/"),
        config.get("Image") or "",
        labels.get(f"{_LABEL}.project", ""),
        folder,
        tuple(str(PurePosixPath(folder, file)) for file in files),
        {name: net["IPAddress"] for name, net in networks.items() if net.get("IPAddress")},
        tuple(alias for net in networks.values() for alias in net.get("Aliases") or ()),
        dict(_published((one.get("NetworkSettings") or {}).get("Ports") or {})),
    )
    restarts = ((one.get("HostConfig") or {}).get("RestartPolicy") or {}).get("Name") or "no"
    kept = container.project or restarts != "no" or state.get("Running") or state.get("ExitCode")
    return SeenService(
        labels.get(f"{_LABEL}.service", "") or container.name,
        f"container {container.name}",
        options_of(words),
        extra_of(words),
        directory=config.get("WorkingDir") or "/",
        python=_python_of(words),
        user=(config.get("User") or "root").partition(":")[0],
        wanted=bool(kept) and labels.get(f"{_LABEL}.oneoff") != "True",
        pids=tuple(filter(None, [state.get("Pid")])),
        container=container,
    )


_EVERYWHERE = "0.0.0.0"  # noqa: S104 (Docker reports it; nothing listens here)
_AT_LOOPBACK = ("", _EVERYWHERE, "127.0.0.1")


def _published(ports: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Those that this machine has at its loopback address."""
    for port, places in ports.items():
        for place in places or ():
            if port.endswith("/tcp") and place["HostIp"] in _AT_LOOPBACK:
                yield int(port.partition("/")[0]), int(place["HostPort"])
