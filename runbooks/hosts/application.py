"""The application, loaded in its own Python on a host and asked."""

import base64
import json
import re
import time
from collections.abc import Iterable, Mapping
from importlib.resources import files
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
from runbooks.core.survey import Told
from runbooks.hosts.script import Answer
from runbooks.hosts.services.registry import manager_of

BEGAN = b'\n{"began": true}\n'
"""What the probe prints once it runs, in a Python that has Celery."""

ANSWER = '{"answer": '

LOAD_S = 45
"""So long the application is given to be loaded; what is imported by hand gets as long again, all
together.
"""

PATIENCE_S = 3 * LOAD_S
"""So long an answer may take: a load, the imports by hand, and the connection to the broker."""

NOT_TRIED = 3
"""What a service manager exits with where the application cannot be loaded, and that says nothing
of it.
"""

SOURCES = (
    "describe_application.py",
    "result_probe.py",
    "code_probe.py",
    "schedule_probe.py",
    "import_probe.py",
)
"""What is sent to the host, to run in the application's Python; the last uses the others."""


def ask_application(
    host: FleetHost, app: str, environment: Mapping[str, str], **question: Any
) -> str:
    """Load the application in its own Python, with the variables of its `environment`, and ask it.

    As its service manager starts a worker: what services get besides their environment file is set
    before, and the code is run by the application's user, whose it is. `-B`: a look writes nothing.
    Program, question and variables travel on standard input: nothing of them stands in a list of
    processes or on a disk. Nor does the answer where the fragment is private, as a traceback may
    quote a secret: all of it comes on standard output.
    """
    settings = host.settings
    where = {"directory": settings.directory, "python": settings.python}
    question |= {
        "app": app,
        **where,
        "environment": {**host.environment, **environment},
        "limit_s": LOAD_S,
    }
    described, results, code, schedule, probe = (
        files("runbooks.hosts").joinpath(name).read_text() for name in SOURCES
    )
    sources = {"DESCRIBE": described, "RESULTS": results, "CODE": code, "SCHEDULE": schedule}
    modules = "\n".join(f"{name} = {json.dumps(source)}" for name, source in sources.items())
    program = f"QUESTION = {json.dumps(json.dumps(question))}\n{modules}\n{probe}"
    start = (
        "import sys; sys.version_info >= (3, 6) or sys.exit('it is Python %d.%d; 3.6 or newer is"
        f" needed' % sys.version_info[:2]); exec(sys.stdin.buffer.read({len(program.encode())}))"
    )
    return manager_of(host).run(host, program, start, ANSWER)


def parse_application(host: FleetHost, answer: Answer) -> dict[str, Any]:
    """What the application was asked; or `failed`, why there is none to ask; or `error`, what its
    own code raised.

    These two are redacted.
    """
    found = _answered(answer)
    if found is not None:
        return found | {name: redact(found[name]) for name in ("failed", "error") if name in found}
    out = answer.out.decode(errors="replace")
    said = (
        redact((answer.err + out.replace(BEGAN.decode(), "\n")).strip())[-3000:]
        or "it printed nothing"
    )
    if BEGAN in answer.out:
        return {
            "error": f"{said}\nit was not loaded after {LOAD_S} s" if _DUMPED.search(said) else said
        }
    if answer.code != 0:
        return {"failed": said}
    why = f"celery_python is {host.settings.python}, which did not come so far as to load it"
    *before, last = said.splitlines()
    return {"failed": "\n".join((f"{why}: {last}", *before))}


_DUMPED = re.compile(r"^Timeout \(.*\)!$", re.MULTILINE)
"""**Source:** CPython 3.11 `Modules/faulthandler.c: faulthandler_dump_traceback_later`."""


def _answered(answer: Answer) -> dict[str, Any] | None:
    out = answer.out.decode(errors="replace")
    line = next((line for line in reversed(out.splitlines()) if line.startswith(ANSWER)), None)
    found: dict[str, Any] | None = None if line is None else json.loads(line)["answer"]
    return found


_ASKED = {"options": OPTIONS, "settings": [name for names in NAMES.values() for name in names]}
"""What is asked of the settings that a worker tells, too: transport options, and other settings by
their names.
"""


def ask_what_it_says(host: FleetHost, app: str, environment: Mapping[str, str]) -> str:
    """Load the application, and no more than that."""
    return ask_application(host, app, environment, **_ASKED)


def parse_what_it_says(answer: Answer) -> Application | None:
    """What it says of itself, as of now; None where it cannot be loaded, or its answer cannot be
    understood.
    """
    found = _answered(answer)
    return _application(found) if found else None


def ask_told(host: FleetHost, app: str, environment: Mapping[str, str]) -> str:
    """Load the application, and ask for the URLs of its broker and results besides; the answer is
    private.
    """
    return ask_application(host, app, environment, urls=True, **_ASKED)


def parse_told(host: FleetHost, answer: Answer) -> Told:
    """See Told. The passwords in its URLs are never shown from now on."""
    raw = _answered(answer) or {}
    urls = raw.get("urls") or {}
    for name in ("broker", "backend"):
        keep_secrets_in(urls.get(name, ""))
    failed = parse_not_loaded(host, answer)
    if failed:
        return Told(error=failed.failed or failed.errors.get("", "it could not be loaded"))
    return Told(
        _application(raw), urls.get("broker", ""), urls.get("backend", ""), tuple(urls.get("variables", ())),
        urls.get("master", ""),
    )  # fmt: skip


def ask_kept(host: FleetHost, app: str, environment: Mapping[str, str], scheduler: str) -> str:
    """What beat's scheduler keeps; `scheduler` is that of beat's command line, "" where it names
    none.
    """
    return ask_application(
        host, app, environment, kept={"scheduler": scheduler, "path": host.settings.beat_schedule}
    )


def parse_kept(host: FleetHost, answer: Answer) -> KeptSchedule:
    """Where the application cannot be loaded, or its answer cannot be understood, that is the
    error.
    """
    found = parse_application(host, answer)
    if "kept" not in found:
        said = found.get("failed") or found.get("error") or "the application could not be loaded"
        return KeptSchedule(error=said.splitlines()[-1])
    try:
        told = msgspec.convert(found["kept"], KeptSchedule)
    except msgspec.ValidationError as error:
        return KeptSchedule(
            error=f"what the application answered cannot be understood: {redact(str(error))}"
        )
    entries = tuple(
        replace(one, entry=replace(one.entry, **_without_secrets(one.entry)))
        for one in told.entries
    )
    return replace(told, entries=entries, error=redact(told.error))


def ask_imports(
    host: FleetHost,
    app: str,
    expected: Iterable[str],
    environment: Mapping[str, str],
    encodings: Iterable[str] = (),
    overlay: tuple[str, bytes] | None = None,
) -> str:
    """Load the application, import by hand the modules of the expected tasks that are missing then,
    and connect.

    `encodings` are those of which it has to say whether it knows them. `overlay` is a file that is
    to be taken as if it held these bytes.
    """
    queues = sorted({queue for worker in host.settings.workers for queue in worker.queues})
    wanted: dict[str, Any] = {
        "expected": sorted(expected),
        "queues": queues,
        "encodings": sorted(encodings),
        **_ASKED,
    }
    if overlay:
        wanted["overlay"] = {"path": overlay[0], "text": base64.b64encode(overlay[1]).decode()}
    return ask_application(host, app, environment, **wanted)


class NotTriedError(RunbookError):
    """The application was not loaded, so whether it can be is not known."""


class Home(Struct, frozen=True):
    """The file that assigns the application, to which `name`, and its text; `why` there is none to
    edit, "" there is.

    A new line belongs before the line `at`, 0: at the end. `checkout` is the git checkout that it
    is in, or "".
    """

    why: str = ""
    path: str = ""
    name: str = ""
    at: int = 0
    text: bytes = b""
    checkout: str = ""


def ask_home(host: FleetHost, app: str, environment: Mapping[str, str]) -> str:
    """Where the application is made."""
    return ask_application(host, app, environment, home=True)


def parse_home(host: FleetHost, answer: Answer) -> Home:
    """See Home; `why` also where it cannot be loaded any more."""
    found = parse_application(host, answer)
    told = found.get("home") or {"why": "the application could not be loaded again"}
    return msgspec.convert(told | {"why": redact(told["why"])}, Home)


def parse_not_loaded(host: FleetHost, answer: Answer) -> ImportProbe | None:
    """Why the application cannot be loaded: that is the error of every module; None where it was
    loaded.

    Raises NotTriedError.
    """
    if answer.code == NOT_TRIED:
        raise NotTriedError(redact(answer.err.strip())[-300:])
    found = parse_application(host, answer)
    if "registered" in found:
        return None
    own = {"": found["error"]} if "error" in found else {}
    return ImportProbe(
        frozenset(), own, failed=found.get("failed", ""), variables=_variables(found)
    )


def parse_imports(host: FleetHost, answer: Answer) -> ImportProbe:
    """See ImportProbe. Raises NotTriedError."""
    if failed := parse_not_loaded(host, answer):
        return failed
    found = parse_application(host, answer)
    reads = {
        name: found[name] and frozenset(found[name])
        for name in ("accepts", "decodes", "compressions", "encodings")
    }
    errors = {name: redact(error) for name, error in found["errors"].items()}
    told = ImportProbe(
        frozenset(found["registered"]), errors, found["remote"], found["options"],
        broker_at=redact(found["broker"].get("at", "")),
        broker_run_id=str(found["broker"].get("run_id", "")),
        broker_error=redact(found["broker"].get("error", "")),
        application=_application(found), variables=_variables(found),
        twins=tuple((short, long, path) for short, long, path in found["twins"]),
    )  # fmt: skip
    return replace(told, **reads)


def _variables(found: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """By module what a failing line reads of the environment, without secrets."""
    return {module: redact_value(read) for module, read in found.get("variables", {}).items()}


def _application(found: Mapping[str, Any]) -> Application | None:
    """What a host tells may have any shape, and any text in it.

    Names are kept as they are, for they are compared: whoever tells them redacts. The rest is
    redacted here.
    """
    told = found.get("application")
    try:
        said = msgspec.convert(told, Application)
    except msgspec.ValidationError:
        return None
    schedule = tuple(replace(entry, **_without_secrets(entry)) for entry in said.schedule)
    settings = None if said.settings is None else redact_value(settings_of(said.settings))
    return replace(said, loaded_at=time.time(), schedule=schedule, settings=settings)


def _without_secrets(entry: ScheduleEntry) -> dict[str, Any]:
    return {
        "options": redact_value(entry.options),
        "args": None if entry.args is None else tuple(redact_value(entry.args)),
        "kwargs": redact_value(entry.kwargs),
        "schedule": redact(entry.schedule),
        "route": entry.route and replace(entry.route, error=redact(entry.route.error)),
    }
