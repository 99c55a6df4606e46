"""`inv adopt`: print the inventory of a running fleet, or how yours differs; then diagnose."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import NodeState, Severity, Snapshot
from runbooks.core.needs import Needs
from runbooks.core.redaction import url_secrets
from runbooks.core.settings import PREFIX
from runbooks.engine.context import Session
from runbooks.engine.survey import Surveyed
from runbooks.engine.survey_containers import FromHere
from runbooks.hosts.celery_argv import options_of, place_of
from runbooks.inventory.draft import (
    Draft,
    HostDraft,
    Lacking,
    Lookup,
    Value,
    fleet_of,
    line_of,
    text_of,
)

_USUAL_VARIABLE = "CELERY_BROKER_URL"
_BEGINS = (
    "The inventory of a running fleet. The comment after each value says where it was found. Check",
    "it: everything that runs now counts as expected. Variables that were not found are comments;",
    "docs/inventory.md lists every variable.",
)
"""Comments at the beginning of the inventory."""


def adopt(
    session: Session,
    draft: Draft,
    loaded: Surveyed | None,
    secrets_file: Path | None,
    known: Fleet | None,
) -> ExitCode:
    """Print the inventory of a draft's fleet, or how the `known` one differs; then diagnose.

    `loaded` is the host whose application names its broker, None if there is none. The broker's URL
    is written to a new `secrets_file`. Return 1 if an error or a warning was found, or if the
    inventory differs. Raises UsageError if the file already exists or cannot be written.
    """
    snapshot = session.observe(Needs.EVERYTHING | Needs.SCHEDULE, without_broker=True)
    if secrets_file:
        _write_secret(secrets_file, session.fleet.app.broker_url.get_secret_value())
    draft = _whole(session.fleet, draft, snapshot, loaded, secrets_file)
    differs = False
    if known:
        lines = list(_difference(known, draft, session.options.inventory))
        differs = bool(lines)
        text = "\n".join(lines) or "The inventory matches the fleet."
        session.reporter.document("difference", text)
    else:
        session.reporter.document("adopted", text_of(draft, _BEGINS))
    findings = session.diagnose(snapshot)
    if not known:
        what = "Save the inventory as inventory.yaml, check it, then"
        session.reporter.next_step(what, Command("remediate", "--dry-run"))
    faults = differs or any(finding.severity is not Severity.INFO for finding in findings)
    return ExitCode.FINDINGS if faults else ExitCode.OK


def _whole(
    fleet: Fleet,
    draft: Draft,
    snapshot: Snapshot,
    loaded: Surveyed | None,
    secrets_file: Path | None,
) -> Draft:
    """Return the draft with the broker, the results, and the nodes that none of its hosts runs."""
    values = [*draft.values, _broker(fleet, loaded, secrets_file)]
    lacking = list(draft.lacking)
    match _results(fleet, loaded):
        case Value() as found:
            values.append(found)
        case Lacking() as missing:
            lacking.append(missing)
    elsewhere: list[NodeState] = []
    if snapshot.broker:
        elsewhere += fleet.nodes_by_pattern(snapshot.broker.nodes).values()
    if elsewhere:
        names = sorted({node.name for node in elsewhere})
        values.append(Value("nodes", names, "nodes that answer, of no host of this inventory"))
        queues = sorted({queue for node in elsewhere for queue in node.queues})
        values.append(Value("queues", queues, "what these nodes consume"))
    hosts = draft.hosts or (HostDraft("nowhere", {}),)
    return Draft(tuple(values), hosts, tuple(lacking))


def _results(fleet: Fleet, loaded: Surveyed | None) -> Value | Lacking | None:
    """Return the result backend, or how to find it; None if the application has none."""
    name = "result_backend"
    if not fleet.app.result_backend:
        return None
    url = fleet.app.result_backend.get_secret_value()
    if url == fleet.app.broker_url.get_secret_value():
        return Value(name, Lookup(f"{{{{ {PREFIX}broker_url }}}}"), "the application's own")
    if url_secrets(url):
        how = "the application has one, with a password, which is not shown; look it up"
        return Lacking(name, "\"{{ lookup('env', 'NAME') }}\"", how)
    return _url(name, url, loaded.backend if loaded else None, "the application's own")


def _url(name: str, url: str, leads: FromHere | None, source: str) -> Value:
    """Return the value of a URL that has no password."""
    if not leads or leads.url != url:
        return Value(name, url, source)
    return Value(name, Lookup(leads.looked_up) if leads.looked_up else url, leads.source)


def _broker(fleet: Fleet, loaded: Surveyed | None, secrets_file: Path | None) -> Value:
    """Return the broker's URL if it has no password, else a lookup of it."""
    url = fleet.app.broker_url.get_secret_value()
    if secrets_file:
        lookup = Lookup(f"{{{{ lookup('file', {str(secrets_file)!r}) }}}}")
        return Value("broker_url", lookup, "written there, readable for you only")
    if not url_secrets(url):
        return _url("broker_url", url, loaded.broker if loaded else None, "it answers")
    name = _USUAL_VARIABLE
    source = "it has a password, which is not shown"
    if loaded and loaded.report.variables:
        name = loaded.report.variables[0]
        source = "a variable of the application's environment"
    where = ""
    if loaded and loaded.broker and loaded.broker.url == url:
        where = f", as reached from here: at {place_of(url)}"
        source += f"; {loaded.broker.source}"
    hint = f"export {name}, with the URL of the broker{where}"
    lookup = Lookup(f"{{{{ lookup('env', '{name}') or undef(hint='{hint}') }}}}")
    return Value("broker_url", lookup, source)


def _write_secret(path: Path, url: str) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{url}\n")
    except FileExistsError:
        problem = f"{path} already exists; not changed"
        raise UsageError(problem, "name another --secrets-file") from None
    except OSError as error:
        problem = f"cannot write {path}: {error.strerror}"
        raise UsageError(problem, "name another --secrets-file") from None


def _difference(known: Fleet, draft: Draft, inventory: str) -> Iterator[str]:
    """Yield how an inventory differs from the hosts that were checked."""
    seen = fleet_of(draft, "redis://", "", None)
    there = {host.name: host for host in known.hosts}
    before: list[str] = []
    after: list[str] = []
    for host, of in zip(seen.hosts, draft.hosts, strict=True):
        names = [one.name for one in of.values]
        if host.name in there:
            before += _lines(there[host.name], names)
        after += _lines(host, names)
    yield from difflib.unified_diff(before, after, inventory, "what is there", n=0, lineterm="")


def _lines(host: FleetHost, names: Sequence[str]) -> Iterator[str]:
    settings = host.settings.model_dump(mode="json", exclude_defaults=True)
    for name in sorted({*names} & settings.keys()):
        yield f"{host.name}: {line_of(Value(name, settings[name], ''))}"
    for worker in sorted(settings.get("workers", ()), key=lambda one: str(one["name"])):
        yield f"{host.name}: {line_of(Value('workers', _plain(worker), ''))}"


def _plain(worker: Mapping[str, Any]) -> dict[str, Any]:
    """Return a worker with only those of its options that set its pool, or make it a beat."""
    given = " ".join(worker.get("options", ())).split()
    options = options_of(["celery", "worker", *given])
    plain = {name: value for name, value in worker.items() if name != "options"}
    words = []
    if options:
        words = [word for word in (options.pool, options.autoscale) if word]
        if options.with_beat:
            words.append("-B")
    if words:
        plain["options"] = words
    return plain
