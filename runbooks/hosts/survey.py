"""Asks a host what runs its workers and beats, where no inventory says so, and understands what it answers.

Commands and variables of processes, units and containers may hold secrets: what is asked here is private, and only what
the records of `core/survey.py` have of it is kept.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec
from msgspec import Struct

from runbooks.core.census import Options
from runbooks.core.redaction import redact
from runbooks.core.survey import SeenProcess, SeenService, Supervisord
from runbooks.hosts.celery_argv import command_in, extra_of, is_python, log_of, options_of
from runbooks.hosts.script import Answer, shell
from runbooks.hosts.supervisord import ask_of

_USUAL_CONF = "/etc/supervisor/supervisord.conf"
_LABEL = "com.docker.compose"


def ask_processes(pids: Iterable[int]) -> str:
    """What these processes are, and how each supervisord was started."""
    return shell("survey", " ".join(map(str, pids)))


class Processes(Struct, frozen=True):
    """The host's own name, who asks there, each process by its pid, and each supervisord that may be asked."""

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
    """As its command names it; else that of its packages, as a link of a virtual environment is resolved in `exe`."""
    if "/" in first and is_python(first):
        return str(PurePosixPath(directory, first))
    return found.get("python", found.get("program", [""]))[0]


def _supervisord(found: Mapping[str, Sequence[str]]) -> Supervisord:
    """**Source:** supervisor 4.3.0 `options.py`: `-c FILE`, `--configuration FILE`."""
    words, directory = found.get("words", [""])[0].rstrip("\t").split("\t"), found.get("directory", ["/"])[0]
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


def parse_units(answer: Answer) -> dict[str, SeenService]:
    """Each unit by its name. **Source:** systemctl(1), `show`; systemd.exec(5)."""
    found = {}
    for block in answer.out.decode(errors="replace").strip().split("\n\n"):
        told = dict[str, list[str]]()
        for name, _, value in (line.partition("=") for line in block.splitlines()):
            told.setdefault(name, []).append(value)
        if "Id" in told:
            found[told["Id"][0]] = _unit({name: "\n".join(values) for name, values in told.items()})
    return found


def _unit(told: Mapping[str, str]) -> SeenService:
    started = re.search(r"argv\[\]=(.*?) ; ignore_errors=", told.get("ExecStart", ""), re.DOTALL)
    text = started[1] if started else ""
    words = command_in(text)
    env_files = re.findall(r"^(.+) \(ignore_errors=\w+\)$", told.get("EnvironmentFiles", ""), re.MULTILINE)
    return SeenService(
        told["Id"],
        told.get("FragmentPath", "") or told["Id"],
        options_of(words) or _beat_in(text),
        extra_of(words),
        directory=told.get("WorkingDirectory", "").lstrip("!-"),
        python=_python_of(words),
        user=told.get("User", "") or "root",
        env_files=tuple(path for path in env_files if not re.search(r"[*?\[]", path)),
        wanted=told.get("UnitFileState") != "disabled" or told.get("ActiveState") in ("active", "activating"),
    )


def _beat_in(command: str) -> Options | None:
    """What a command says of a beat that it starts by variables, as far as no variable says it; None: of none.

    **Source:** celery 5.7.0, guide "Daemonization": `${CELERY_BIN} -A ${CELERY_APP} beat --pidfile=${…}`.
    """
    found = re.search(r"\$\S*\s+beat(\s.*)?$", command, re.DOTALL)
    words = (found[1] or "").replace("'", " ").replace('"', " ").split() if found else ()
    return options_of(["celery", "beat", *(word for word in words if "$" not in word)]) if found else None


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
    """The programs, each by its name as `supervisorctl` takes it; and why they are not known, "" where they are."""
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


def parse_containers(answer: Answer) -> list[SeenService]:
    """Those of Compose projects. **Source:** docker-inspect(1); Compose's own labels."""
    if answer.code != 0:
        return []
    found = map(_container, json.loads(answer.out or b"[]"))
    return [one for one in found if one.project]


def _container(one: Mapping[str, Any]) -> SeenService:
    config, labels = one["Config"], one["Config"].get("Labels") or {}
    words = [one.get("Path") or "", *(one.get("Args") or ())]
    if not options_of(words):
        words = list(command_in(" ".join(words)))
    return SeenService(
        labels.get(f"{_LABEL}.service", ""),
        f"container {one['Name'].removeprefix('/')}",
        options_of(words),
        extra_of(words),
        directory=config.get("WorkingDir") or "/",
        python=_python_of(words),
        user=(config.get("User") or "root").partition(":")[0],
        wanted=labels.get(f"{_LABEL}.oneoff") != "True",
        container=one["Id"],
        project=labels.get(f"{_LABEL}.project", ""),
    )
