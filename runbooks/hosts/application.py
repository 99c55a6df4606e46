"""Load the application in its own Python on a host, and ask it."""

import base64
import json
import re
import time
from collections.abc import Iterable, Mapping
from importlib.resources import files
from itertools import chain
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.application import Application, KeptSchedule, ScheduleEntry
from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import ImportProbe
from runbooks.core.node_settings import NAMES, settings_of
from runbooks.core.redaction import keep_secrets_in, redact, redact_value
from runbooks.core.settings import OPTIONS
from runbooks.core.survey import AppReport
from runbooks.hosts.script import Answer
from runbooks.hosts.services.registry import manager_of

BEGAN = b'\n{"began": true}\n'
"""The probe prints this when it runs in a Python that has Celery."""

ANSWER = '{"answer": '

LOAD_S = 45
"""The time limit for loading the application; and again for all separate imports together."""

PATIENCE_S = 3 * LOAD_S
"""The time limit for an answer: a load, separate imports, and the connection to the broker."""

NOT_TRIED = 3
"""The exit code of a service manager that could not try to load the application."""

SOURCES = (
    "describe_application.py",
    "result_probe.py",
    "code_probe.py",
    "schedule_probe.py",
    "import_probe.py",
)
"""The sources that run in the application's Python on the host; the last one uses the others."""

_MODULES = ("DESCRIBE", "RESULTS", "CODE", "SCHEDULE")
"""The variables of the last one that hold the sources of the others."""

_DUMPED = re.compile(r"^Timeout \(.*\)!$", re.MULTILINE)
"""**Source:** CPython 3.11 `Modules/faulthandler.c: faulthandler_dump_traceback_later`."""

_ASKED = {"options": OPTIONS, "settings": list(chain.from_iterable(NAMES.values()))}
"""The settings to ask for, as a worker also reports them: transport options, and others."""


def ask_application(
    host: FleetHost, app: str, environment: Mapping[str, str], **question: Any
) -> str:
    """Return the fragment that loads the application, with its `environment`, and asks it.

    It is loaded as its service manager starts a worker: by the application's user, with the other
    variables that services get. `-B`: a look writes nothing. Program, question and variables travel
    on standard input, so that no list of processes and no disk has them. The whole answer comes on
    standard output; if the fragment is private, it is on no disk either, because a traceback may
    quote a secret.
    """
    settings = host.settings
    where = {"directory": settings.directory, "python": settings.python}
    question |= {
        "app": app,
        **where,
        "environment": {**host.environment, **environment},
        "limit_s": LOAD_S,
    }
    program = f"QUESTION = {json.dumps(json.dumps(question))}\n{_program()}"
    start = (
        "import sys; sys.version_info >= (3, 6) or sys.exit('it is Python %d.%d; 3.6 or newer is"
        f" needed' % sys.version_info[:2]); exec(sys.stdin.buffer.read({len(program.encode())}))"
    )
    return manager_of(host).run(host, app, program, start, ANSWER)


def _program() -> str:
    """Return the program, after the sources of its modules."""
    *modules, probe = [files("runbooks.hosts").joinpath(name).read_text() for name in SOURCES]
    lines = []
    for name, source in zip(_MODULES, modules, strict=True):
        lines.append(f"{name} = {json.dumps(source)}")
    return "\n".join([*lines, probe])


def parse_application(host: FleetHost, answer: Answer) -> dict[str, Any]:
    """Return the answer of the application; or `failed`: it was not found; or `error`: it raised.

    Secrets in `failed` and `error` are hidden.
    """
    found = _answered(answer)
    if found is not None:
        for name in ("failed", "error"):
            if name in found:
                found[name] = redact(found[name])
        return found
    out = answer.err + answer.out.decode(errors="replace").replace(BEGAN.decode(), "\n")
    said = redact(out.strip())[-3000:] or "no output"
    if BEGAN in answer.out:
        if _DUMPED.search(said):
            said += f"\nloading did not end within {LOAD_S} s"
        return {"error": said}
    if answer.code != 0:
        return {"failed": said}
    why = f"celery_python is {host.settings.python}, which failed before it could load it"
    *before, last = said.splitlines()
    return {"failed": "\n".join((f"{why}: {last}", *before))}


def _answered(answer: Answer) -> dict[str, Any] | None:
    out = answer.out.decode(errors="replace")
    for line in reversed(out.splitlines()):
        if line.startswith(ANSWER):
            found: dict[str, Any] = json.loads(line)["answer"]
            return found
    return None


def ask_what_it_says(host: FleetHost, app: str, environment: Mapping[str, str]) -> str:
    """Return the fragment that loads the application and describes it."""
    return ask_application(host, app, environment, **_ASKED)


def parse_what_it_says(answer: Answer) -> Application | None:
    """Return the application's description, as of now; None if it was not loaded or is invalid."""
    found = _answered(answer)
    if not found:
        return None
    return _application(found)


def ask_app_report(host: FleetHost, app: str, environment: Mapping[str, str]) -> str:
    """Return the fragment that also asks for the URLs of broker and results; it is private."""
    return ask_application(host, app, environment, urls=True, **_ASKED)


def parse_app_report(host: FleetHost, answer: Answer) -> AppReport:
    """Parse the answer. From now on, the passwords of its URLs are hidden in every output."""
    raw = _answered(answer) or {}
    urls = raw.get("urls") or {}
    for name in ("broker", "backend"):
        keep_secrets_in(urls.get(name, ""))
    failed = parse_not_loaded(host, answer)
    if failed:
        return AppReport(error=failed.failed or failed.errors.get("", "it cannot be loaded"))
    return AppReport(
        _application(raw),
        urls.get("broker", ""),
        urls.get("backend", ""),
        tuple(urls.get("variables", ())),
        urls.get("master", ""),
    )


def ask_kept(host: FleetHost, app: str, environment: Mapping[str, str], scheduler: str) -> str:
    """Return the fragment that asks for the schedule that beat's scheduler keeps.

    `scheduler` is the one on beat's command line, "" for none.
    """
    kept = {"scheduler": scheduler, "path": host.settings.beat_schedule}
    return ask_application(host, app, environment, kept=kept)


def parse_kept(host: FleetHost, answer: Answer) -> KeptSchedule:
    """Parse the answer; if the application was not loaded, or it is invalid, that is the error."""
    found = parse_application(host, answer)
    if "kept" not in found:
        said = found.get("failed") or found.get("error") or "the application cannot be loaded"
        return KeptSchedule(error=said.splitlines()[-1])
    try:
        kept = msgspec.convert(found["kept"], KeptSchedule)
    except msgspec.ValidationError as error:
        return KeptSchedule(
            error=f"the answer of the application cannot be parsed: {redact(str(error))}"
        )
    entries = []
    for one in kept.entries:
        entry = replace(one.entry, **_without_secrets(one.entry))
        entries.append(replace(one, entry=entry))
    return replace(kept, entries=tuple(entries), error=redact(kept.error))


def ask_imports(
    host: FleetHost,
    app: str,
    expected: Iterable[str],
    environment: Mapping[str, str],
    encodings: Iterable[str] = (),
    overlay: tuple[str, bytes] | None = None,
) -> str:
    """Return the fragment that loads the application, imports modules, and connects to its broker.

    It separately imports the modules of expected tasks that are missing. It says which of these
    `encodings` it supports. `overlay` is a file and the bytes to load instead of its contents.
    """
    queues: set[str] = set()
    for worker in host.settings.workers:
        queues.update(worker.queues)
    wanted: dict[str, Any] = {
        "expected": sorted(expected),
        "queues": sorted(queues),
        "encodings": sorted(encodings),
        **_ASKED,
    }
    if overlay:
        path, content = overlay
        wanted["overlay"] = {"path": path, "text": base64.b64encode(content).decode()}
    return ask_application(host, app, environment, **wanted)


class NotTriedError(RunbookError):
    """No attempt was made to load the application, so it is not known whether it can be loaded."""


class Home(Struct, frozen=True):
    """The file that assigns the application."""

    why: str = ""
    """Why no such file can be edited; "" if it can."""
    path: str = ""
    name: str = ""
    """The name that the application is assigned to."""
    at: int = 0
    """The line before which a new line belongs; 0: at the end."""
    text: bytes = b""
    checkout: str = ""
    """The git checkout of the file, "" for none."""


def ask_home(host: FleetHost, app: str, environment: Mapping[str, str]) -> str:
    """Return the fragment that asks for the file that assigns the application."""
    return ask_application(host, app, environment, home=True)


def parse_home(host: FleetHost, answer: Answer) -> Home:
    """Parse the answer; `why` is also set if the application can no longer be loaded."""
    found = parse_application(host, answer)
    home = found.get("home") or {"why": "the application cannot be loaded again"}
    return msgspec.convert(home | {"why": redact(home["why"])}, Home)


def parse_not_loaded(host: FleetHost, answer: Answer) -> ImportProbe | None:
    """Return why the application cannot be loaded, as an error of every module; None if it was.

    Raises NotTriedError.
    """
    if answer.code == NOT_TRIED:
        raise NotTriedError(redact(answer.err.strip())[-300:])
    found = parse_application(host, answer)
    if "registered" in found:
        return None
    errors = {}
    if "error" in found:
        errors[""] = found["error"]
    return ImportProbe(
        frozenset(), errors, failed=found.get("failed", ""), variables=_variables(found)
    )


def parse_imports(host: FleetHost, answer: Answer) -> ImportProbe:
    """Parse the answer. Raises NotTriedError."""
    failed = parse_not_loaded(host, answer)
    if failed:
        return failed
    found = parse_application(host, answer)
    broker = found["broker"]
    reads = {}
    for name in ("accepts", "decodes", "compressions", "encodings"):
        reads[name] = found[name] and frozenset(found[name])
    probe = ImportProbe(
        frozenset(found["registered"]),
        {name: redact(error) for name, error in found["errors"].items()},
        found["remote"],
        found["options"],
        broker_at=redact(broker.get("at", "")),
        broker_run_id=str(broker.get("run_id", "")),
        broker_error=redact(broker.get("error", "")),
        application=_application(found),
        variables=_variables(found),
        twins=tuple((short, long, path) for short, long, path in found["twins"]),
    )
    return replace(probe, **reads)


def _variables(found: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Return the environment variables that failing lines read, by module, without secrets."""
    return {module: redact_value(read) for module, read in found.get("variables", {}).items()}


def _application(found: Mapping[str, Any]) -> Application | None:
    """Convert the description of an application, which may have any shape; None if invalid.

    Names stay exact, because they are compared; they are redacted where they are printed. The
    rest is redacted here.
    """
    description = found.get("application")
    try:
        said = msgspec.convert(description, Application)
    except msgspec.ValidationError:
        return None
    schedule = tuple(replace(entry, **_without_secrets(entry)) for entry in said.schedule)
    settings = None
    if said.settings is not None:
        settings = redact_value(settings_of(said.settings))
    return replace(said, loaded_at=time.time(), schedule=schedule, settings=settings)


def _without_secrets(entry: ScheduleEntry) -> dict[str, Any]:
    args = None
    if entry.args is not None:
        args = tuple(redact_value(entry.args))
    return {
        "options": redact_value(entry.options),
        "args": args,
        "kwargs": redact_value(entry.kwargs),
        "schedule": redact(entry.schedule),
        "route": entry.route and replace(entry.route, error=redact(entry.route.error)),
    }
