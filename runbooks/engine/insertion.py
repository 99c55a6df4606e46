"""Find lines that import the tasks that nothing imports, and try them on the host."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import ImportProbe, Insertion
from runbooks.core.redaction import holds_secret
from runbooks.diagnosis.imports import never_imported
from runbooks.hosts.application import Home, ask_home, ask_imports, parse_home, parse_imports
from runbooks.hosts.facts import ask_files, ask_folders, parse_files, parse_unwritable
from runbooks.hosts.script import run_fragments
from runbooks.hosts.transport import Transport

_WHY = "# Nothing else imports these tasks, so workers did not know them."


def tried_insertion(
    fleet: Fleet,
    host: FleetHost,
    transport: Transport,
    environment: Mapping[str, str],
    now: ImportProbe,
    timeout_s: float,
) -> Insertion | None:
    """Find the lines that would import the missing expected tasks.

    Returns None if no task is missing because of a missing import, or if an import fails: that has
    to be fixed first.
    """
    tasks = never_imported(fleet, now)
    modules = sorted({task.rpartition(".")[0] for task in tasks} - {""})
    if not modules or any(now.errors.values()):
        return None
    twins = _twins(now, tasks)
    if twins:
        return Insertion(twins)
    asked = {"home": ask_home(host, fleet.app.app, environment)}
    answers = run_fragments(transport, asked, timeout_s=timeout_s, private=asked)
    home = parse_home(host, answers["home"])
    if home.why:
        return Insertion(home.why)
    if holds_secret(home.text.decode(errors="replace")):
        return Insertion(
            f"{home.path} holds a secret, and the record of a change would contain the whole file"
        )
    texts = [_inserted(home, lines) for lines in _ways(home, modules)]
    asked = _questions(fleet, host, environment, home, texts)
    answers = run_fragments(transport, asked, timeout_s=timeout_s, private=asked)
    before = parse_files([home.path], answers["files"])[home.path]
    unwritable = parse_unwritable(answers["unwritable"])
    if unwritable:
        folder, user = next(iter(unwritable.items()))
        return Insertion(f"{user} may not write in {folder}")
    if before.content != home.text:
        return Insertion(f"{home.path} changed while it was checked")
    for n, text in enumerate(texts):
        tried = parse_imports(host, answers[str(n)])
        if _is_enough(tried, now, tasks):
            line = home.at or len(home.text.splitlines()) + 1
            return Insertion("", home.path, line, before, text, home.checkout)
    return Insertion(f"tried on the host: an import in {home.path} does not register them")


def _twins(now: ImportProbe, tasks: Collection[str]) -> str:
    """Say which of these tasks is registered under another module's name; "" if none is."""
    for short, long, path in now.twins:
        names = {short, long}
        if not names.isdisjoint(tasks) and not names.isdisjoint(now.registered):
            return f"{path} is already imported under another name: {short} and {long} are one task"
    return ""


def _questions(
    fleet: Fleet,
    host: FleetHost,
    environment: Mapping[str, str],
    home: Home,
    texts: Sequence[bytes],
) -> dict[str, str]:
    """Return the questions: the file, its folder, and what is registered with each of these texts.

    The latter are named by the number of their text.
    """
    wanted = fleet.app.expected_tasks
    asked = {
        "files": ask_files([home.path]),
        "unwritable": ask_folders([str(PurePosixPath(home.path).parent)]),
    }
    for n, text in enumerate(texts):
        instead = (home.path, text)
        asked[str(n)] = ask_imports(host, fleet.app.app, wanted, environment, (), instead)
    return asked


def _is_enough(tried: ImportProbe, now: ImportProbe, tasks: Collection[str]) -> bool:
    return tried.loaded and tried.registered >= now.registered | frozenset(tasks)


def _ways(home: Home, modules: Sequence[str]) -> Iterator[list[str]]:
    """Yield two ways: a plain import, and one that runs later, once the application is set up.

    Modules such as Django's models need the latter.

    **Source:** celery 5.7.0 `app/base.py: Celery.autodiscover_tasks`.
    """
    yield [f"import {module}  # noqa: E402, F401" for module in modules]
    lines = []
    for module in modules:
        package, _, last = module.rpartition(".")
        if package:
            lines.append(f"{home.name}.autodiscover_tasks([{package!r}], related_name={last!r})")
        else:
            lines.append(f"{home.name}.autodiscover_tasks([{last!r}], related_name=None)")
    yield lines


def _inserted(home: Home, lines: Sequence[str]) -> bytes:
    """Return the file with these lines inserted, with the file's own line ends."""
    end = b"\n"
    if b"\r\n" in home.text:
        end = b"\r\n"
    old = home.text.splitlines(keepends=True)
    at = len(old)
    if home.at:
        at = home.at - 1
    head = b"".join(old[:at])
    tail = b"".join(old[at:])
    if head and not head.endswith(b"\n"):
        head += end
    if head and not head.endswith((b"\n\n", b"\r\n\r\n")):
        head += end
    new = b"".join(line.encode() + end for line in (_WHY, *lines))
    if tail:
        new += end + end
    return head + new + tail
