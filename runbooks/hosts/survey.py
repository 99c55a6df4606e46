"""Ask a host without an inventory what runs its workers and beats, and parse the answers.

Commands and variables of processes, units and containers may hold secrets: these questions are
private, and only the fields of the records in `core/survey.py` are kept.
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
_EVERYWHERE = "0.0.0.0"  # noqa: S104 (Docker reports it; nothing listens here)
_AT_LOOPBACK = ("", _EVERYWHERE, "127.0.0.1")


def ask_processes(pids: Iterable[int]) -> str:
    """Return the fragment that describes these processes, and the start of each supervisord."""
    return shell("survey", " ".join(map(str, pids)))


class Processes(Struct, frozen=True):
    """The processes of a host."""

    hostname: str
    """The host's own name."""
    asking: str
    """The user who asked."""
    details: dict[int, SeenProcess]
    """By pid."""
    supervisords: dict[int, Supervisord]
    """Those that this user may ask, by pid."""


def parse_processes(answer: Answer) -> Processes:
    """Parse the answer. **Source:** uname(1); proc(5): `cwd`, `exe`, `maps`, `fd`, `cmdline`."""
    heads, lines, supervisords = answer.out.decode(errors="replace").split("---\n", 2)
    hostname, asking = heads.splitlines()
    details = {pid: _process(found) for pid, found in _each(lines.splitlines())}
    running = {pid: _supervisord(found) for pid, found in _each(supervisords.splitlines())}
    return Processes(hostname, asking, details, running)


def _each(lines: Sequence[str]) -> Iterator[tuple[int, dict[str, list[str]]]]:
    pid = 0
    found: dict[str, list[str]] = {}
    for line in (*lines, "pid 0"):
        key, _, value = line.partition(" ")
        if key == "pid":
            if pid:
                yield pid, found
            pid = int(value)
            found = {}
        else:
            found.setdefault(key, []).append(value)


def _process(found: Mapping[str, Sequence[str]]) -> SeenProcess:
    directory = found.get("directory", [""])[0]
    words = found.get("words", [""])[0].rstrip("\t").split("\t")
    logs = list(found.get("log", []))
    log = log_of(words)
    if log and "%" not in log:  # otherwise only the worker knows the file
        logs.insert(0, str(PurePosixPath(directory, log)))
    logs = list(dict.fromkeys(filter(None, logs)))
    return SeenProcess(directory, _python(found, directory, words[0]), tuple(logs), extra_of(words))


def _python(found: Mapping[str, Sequence[str]], directory: str, first: str) -> str:
    """Return the Python of a process: from its command, else from its packages.

    `exe` does not show it: there the link of a virtual environment is resolved.
    """
    if "/" in first and is_python(first):
        return str(PurePosixPath(directory, first))
    return found.get("python", found.get("program", [""]))[0]


def _supervisord(found: Mapping[str, Sequence[str]]) -> Supervisord:
    """Parse a supervisord. **Source:** supervisor 4.3.0 `options.py`: `-c`, `--configuration`."""
    words = found.get("words", [""])[0].rstrip("\t").split("\t")
    directory = found.get("directory", ["/"])[0]
    conf = _USUAL_CONF
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word in ("-c", "--configuration"):
            conf = str(PurePosixPath(directory, after))
        elif word.startswith("--configuration="):
            conf = str(PurePosixPath(directory, word.partition("=")[2]))
    return Supervisord(conf, found.get("ctl", ["supervisorctl"])[0])


def ask_units(units: Sequence[str]) -> str:
    """Return the fragment that asks how systemd starts these units."""
    return shell("survey_units", *units)


def parse_units(answer: Answer, files: Mapping[str, bytes | None]) -> list[SeenService]:
    """Return each unit; a unit that starts several nodes with `celery multi` once for each node.

    `files` are the contents of the files of `env_files_of`, None for one that cannot be read.
    **Source:** systemctl(1), `show`; systemd.exec(5).
    """
    services: list[SeenService] = []
    for properties in _shown(answer):
        services += _of_unit(properties, files)
    return services


def env_files_of(answer: Answer) -> list[str]:
    """Return the environment files of units whose commands have variables."""
    paths: list[str] = []
    for properties in _shown(answer):
        if "$" in _started(properties):
            paths += _env_files(properties)
    return list(dict.fromkeys(paths))


def _shown(answer: Answer) -> Iterator[dict[str, str]]:
    for block in answer.out.decode(errors="replace").strip().split("\n\n"):
        properties: dict[str, list[str]] = {}
        for line in block.splitlines():
            name, _, value = line.partition("=")
            properties.setdefault(name, []).append(value)
        if "Id" in properties:
            yield {name: "\n".join(values) for name, values in properties.items()}


def _started(properties: Mapping[str, str]) -> str:
    found = re.search(
        r"argv\[\]=(.*?) ; ignore_errors=", properties.get("ExecStart", ""), re.DOTALL
    )
    if not found:
        return ""
    return found[1]


def _env_files(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Return the environment files of a unit, without patterns, whose files are not known."""
    found = re.findall(
        r"^(.+) \(ignore_errors=\w+\)$", properties.get("EnvironmentFiles", ""), re.MULTILINE
    )
    return tuple(path for path in found if not re.search(r"[*?\[]", path))


def _of_unit(
    properties: Mapping[str, str], files: Mapping[str, bytes | None]
) -> Iterator[SeenService]:
    text = _with_values(_started(properties), properties, files)
    words = command_in(text)
    is_active = properties.get("ActiveState") in ("active", "activating")
    commands: Sequence[Sequence[str]] = workers_in(words) or [words]
    for command in commands:
        yield SeenService(
            properties["Id"],
            properties.get("FragmentPath", "") or properties["Id"],
            options_of(command) or _beat_in(text),
            extra_of(command),
            directory=properties.get("WorkingDirectory", "").lstrip("!-"),
            python=_python_of(words),
            user=properties.get("User", "") or "root",
            env_files=_env_files(properties),
            wanted=is_active or properties.get("UnitFileState") != "disabled",
        )


def _with_values(
    command: str, properties: Mapping[str, str], files: Mapping[str, bytes | None]
) -> str:
    """Return a command with the values of its variables; unchanged if a file cannot be read.

    **Source:** systemd.exec(5): a file overrides `Environment=`, and a later file an earlier one;
    unset variables are empty.
    """
    paths = _env_files(properties)
    if "$" not in command or any(files.get(path) is None for path in paths):
        return command
    values: dict[str, str] = {}
    for pair in _words(properties.get("Environment", "")):
        name, equals, value = pair.partition("=")
        if equals:
            values[name] = value
    for path in paths:
        values |= read(files[path] or b"", "systemd").values

    def value_of(found: re.Match[str]) -> str:
        return values.get(found[1] or found[2], "")

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value_of, command)


def _words(text: str) -> Sequence[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return ()


def _beat_in(command: str) -> Options | None:
    """Return the options of a beat that a command starts with variables, without these options.

    None if it does not start a beat.

    **Source:** celery 5.7.0, guide "Daemonization": `${CELERY_BIN} -A ${CELERY_APP} beat
    --pidfile=${…}`.
    """
    found = re.search(r"\$\S*\s+beat(\s.*)?$", command, re.DOTALL)
    if not found:
        return None
    words = (found[1] or "").replace("'", " ").replace('"', " ").split()
    known = [word for word in words if "$" not in word]
    return options_of(["celery", "beat", *known])


def _python_of(words: Sequence[str]) -> str:
    if words and words[0].startswith("/") and is_python(words[0]):
        return words[0]
    return ""


def ask_programs(supervisord: Supervisord) -> str:
    """Return the fragment that asks for a supervisord's programs whose commands name Celery."""
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
    """Return the programs, by their names for `supervisorctl`; and the error, "" for none."""
    if answer.code != 0:
        return [], redact(answer.err.strip())[-300:] or "supervisorctl failed"
    found = msgspec.json.decode(answer.out, type=_Programs)
    if found.trouble:
        return [], redact(" ".join(found.trouble))
    return [_program(name, one) for name, one in found.programs.items()], ""


def _program(name: str, one: _Program) -> SeenService:
    words = command_in(one.command)
    group, _, process = name.partition(":")
    if group == process:
        name = process
    pids: tuple[int, ...] = ()
    if one.pid:
        pids = (one.pid,)
    return SeenService(
        name,
        f"{one.path}, [{one.section}]",
        options_of(words),
        extra_of(words),
        directory=one.directory or "",
        python=_python_of(words),
        user=one.user or "",
        wanted=one.autostart or one.pid != 0,
        pids=pids,
    )


def ask_containers(socket: str) -> str:
    """Return the fragment that asks for all containers; socket "": the client's default."""
    return shell("survey_docker", socket, using=["docker"])


def parse_containers(answer: Answer) -> tuple[list[SeenService], str]:
    """Return all containers, and the error, "" for none.

    **Source:** docker-inspect(1); Compose's own labels.
    """
    if answer.code != 0:
        return [], redact(answer.err.strip())[-300:] or "docker failed"
    return [_container(one) for one in json.loads(answer.out or b"[]")], ""


def _container(one: Mapping[str, Any]) -> SeenService:
    """Parse a container; the name of its service is Compose's, or else its own.

    A container without a project or restart policy that ended with success is not `wanted`: it may
    have been a single command.
    """
    config = one["Config"]
    state = one["State"]
    labels = config.get("Labels") or {}
    words = [one.get("Path") or "", *(one.get("Args") or ())]
    if not options_of(words):
        words = list(command_in(" ".join(words)))
    folder = labels.get(f"{_LABEL}.project.working_dir", "")
    network = one.get("NetworkSettings") or {}
    addresses: dict[str, str] = {}
    aliases: list[str] = []
    for name, own in (network.get("Networks") or {}).items():
        aliases += own.get("Aliases") or ()
        if own.get("IPAddress"):
            addresses[name] = own["IPAddress"]
    files = filter(None, labels.get(f"{_LABEL}.project.config_files", "").split(","))
    container = SeenContainer(
        one["Id"],
        one["Name"].removeprefix("/"),
        config.get("Image") or "",
        labels.get(f"{_LABEL}.project", ""),
        folder,
        tuple(str(PurePosixPath(folder, file)) for file in files),
        addresses,
        tuple(aliases),
        dict(_published(network.get("Ports") or {})),
    )
    policy = (one.get("HostConfig") or {}).get("RestartPolicy") or {}
    restarts = policy.get("Name") or "no"
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


def _published(ports: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the TCP ports that this machine publishes at its loopback address: inner, outer."""
    for port, places in ports.items():
        for place in places or ():
            if port.endswith("/tcp") and place["HostIp"] in _AT_LOOPBACK:
                yield int(port.partition("/")[0]), int(place["HostPort"])
