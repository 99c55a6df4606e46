"""`inv adopt`: an inventory of what is there, or how an inventory differs from it; then what is
wrong there.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Severity, Snapshot
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


def adopt(
    session: Session,
    draft: Draft,
    loaded: Surveyed | None,
    secrets_file: Path | None,
    known: Fleet | None,
) -> ExitCode:
    """Print the inventory of the `session` on a draft's fleet, or how the `known` one differs; then
    diagnose.

    `loaded` is the host whose application says where its broker is, None where none does. The
    broker's URL is written into a new `secrets_file`. Exit code 1 where an error or a warning was
    found, or the inventory differs. Raises UsageError where the file is there already, or cannot be
    written.
    """
    snapshot = session.observe(Needs.EVERYTHING | Needs.SCHEDULE, without_broker=True)
    if secrets_file:
        _write_secret(secrets_file, session.fleet.app.broker_url.get_secret_value())
    draft = _whole(session.fleet, draft, snapshot, loaded, secrets_file)
    differs = False
    if known:
        lines = list(_difference(known, draft, session.options.inventory))
        differs = bool(lines)
        session.reporter.document(
            "difference", "\n".join(lines) or "The inventory says what is there."
        )
    else:
        session.reporter.document("adopted", text_of(draft, _BEGINS))
    findings = session.diagnose(snapshot)
    if not known:
        session.reporter.next_step(
            "Write the inventory into inventory.yaml, read it through, then",
            Command("remediate", "--dry-run"),
        )
    faults = differs or any(finding.severity is not Severity.INFO for finding in findings)
    return ExitCode.FINDINGS if faults else ExitCode.OK


_BEGINS = (
    (
        "What was seen of a fleet, as an inventory: where each value was seen stands behind it."
        " Read it through: what runs"
    ),
    (
        "now is taken for what is to run. A line in comments could not be found; docs/inventory.md"
        " lists every variable."
    ),
)


def _whole(
    fleet: Fleet,
    draft: Draft,
    snapshot: Snapshot,
    loaded: Surveyed | None,
    secrets_file: Path | None,
) -> Draft:
    """The draft with the broker, the results, and the nodes that no host of it runs."""
    values = [*draft.values, _broker(fleet, loaded, secrets_file)]
    lacking = list(draft.lacking)
    if backend := fleet.app.result_backend:
        url = backend.get_secret_value()
        if url == fleet.app.broker_url.get_secret_value():
            values.append(
                Value(
                    "result_backend",
                    Lookup(f"{{{{ {PREFIX}broker_url }}}}"),
                    "the application's own",
                )
            )
        elif not url_secrets(url):
            values.append(
                _url(
                    "result_backend",
                    url,
                    loaded.backend if loaded else None,
                    "the application's own",
                )
            )
        else:
            how = (
                "the application has one, and its password stays out of here; look it up where that"
                " is kept"
            )
            lacking.append(Lacking("result_backend", "\"{{ lookup('env', 'NAME') }}\"", how))
    broker = snapshot.broker
    elsewhere = (
        sorted(fleet.nodes_by_pattern(broker.nodes).values(), key=lambda one: one.name)
        if broker
        else []
    )
    if elsewhere:
        source = "nodes that answer, and that no host of this inventory runs"
        values.append(Value("nodes", list(dict.fromkeys(one.name for one in elsewhere)), source))
        queues = sorted({queue for one in elsewhere for queue in one.queues})
        values.append(Value("queues", queues, "what these nodes consume"))
    hosts = draft.hosts or (HostDraft("nowhere", {}),)
    return Draft(tuple(values), hosts, tuple(lacking))


def _url(name: str, url: str, leads: FromHere | None, source: str) -> Value:
    """A URL without a password."""
    if not leads or leads.url != url:
        return Value(name, url, source)
    return Value(name, Lookup(leads.looked_up) if leads.looked_up else url, leads.source)


def _broker(fleet: Fleet, loaded: Surveyed | None, secrets_file: Path | None) -> Value:
    """The URL itself where it has no password; else where it is looked up."""
    url = fleet.app.broker_url.get_secret_value()
    if secrets_file:
        lookup = Lookup(f"{{{{ lookup('file', {str(secrets_file)!r}) }}}}")
        return Value("broker_url", lookup, "written there, for you alone")
    if not url_secrets(url):
        return _url(
            "broker_url", url, loaded.broker if loaded else None, "what was asked, and answers"
        )
    variables = loaded.told.variables if loaded else ()
    name = variables[0] if variables else _USUAL_VARIABLE
    source = (
        "a variable of the application's environment"
        if variables
        else "it has a password, which stays out of here"
    )
    where = ""
    if loaded and loaded.broker and loaded.broker.url == url:
        where = f", as it is reached from here: at {place_of(url)}"
        source += f"; {loaded.broker.source}"
    hint = f"export {name}, with the URL of the broker{where}"
    return Value(
        "broker_url", Lookup(f"{{{{ lookup('env', '{name}') or undef(hint='{hint}') }}}}"), source
    )


def _write_secret(path: Path, url: str) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{url}\n")
    except FileExistsError:
        raise UsageError(
            f"{path} is there already, and is left as it is", "name another --secrets-file"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}", "name another --secrets-file"
        ) from None


def _difference(known: Fleet, draft: Draft, inventory: str) -> Iterator[str]:
    """What an inventory says of the hosts that were looked at, against what is there."""
    seen = fleet_of(draft, "redis://", "", None)
    names = {
        host.name: [one.name for one in of.values]
        for host, of in zip(seen.hosts, draft.hosts, strict=True)
    }
    there = {host.name: host for host in known.hosts}
    before = [line for name in names if name in there for line in _lines(there[name], names[name])]
    after = [line for host in seen.hosts for line in _lines(host, names[host.name])]
    yield from difflib.unified_diff(before, after, inventory, "what is there", n=0, lineterm="")


def _lines(host: FleetHost, names: Sequence[str]) -> Iterator[str]:
    settings = host.settings.model_dump(mode="json", exclude_defaults=True)
    for name in sorted({*names} & settings.keys()):
        yield f"{host.name}: {line_of(Value(name, settings[name], ''))}"
    for worker in sorted(settings.get("workers", ()), key=lambda one: str(one["name"])):
        yield f"{host.name}: {line_of(Value('workers', _plain(worker), ''))}"


def _plain(worker: Mapping[str, Any]) -> dict[str, Any]:
    """A worker with its options as far as they say which pool it has, and whether it is a beat,
    too.
    """
    told = options_of(["celery", "worker", *" ".join(worker.get("options", ())).split()])
    rest = {name: value for name, value in worker.items() if name != "options"}
    if told and (
        words := [*filter(None, [told.pool, told.autoscale]), *(["-B"] if told.with_beat else [])]
    ):
        rest["options"] = words
    return rest
