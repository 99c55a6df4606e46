"""Which lines would import tasks that nothing imports: tried on the host, as if they stood there
already.
"""

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
    """None where no expected task is missing for want of an import, or where one fails: that has to
    be mended first.
    """
    tasks = never_imported(fleet, now)
    modules = sorted({task.rpartition(".")[0] for task in tasks} - {""})
    if not modules or any(now.errors.values()):
        return None
    for short, long, path in now.twins:
        if {short, long} & set(tasks) and {short, long} & now.registered:
            return Insertion(
                f"{path} is imported already, as another module: {short} and {long} are one task"
            )
    app, asked = fleet.app.app, {"home": ask_home(host, fleet.app.app, environment)}
    home = parse_home(
        host, run_fragments(transport, asked, timeout_s=timeout_s, private=asked)["home"]
    )
    if home.why:
        return Insertion(home.why)
    if holds_secret(home.text.decode(errors="replace")):
        return Insertion(
            f"{home.path} holds a secret, and the record of a change has the file as it was"
        )
    texts = [_inserted(home, lines) for lines in _ways(home, modules)]
    wanted = fleet.app.expected_tasks
    asked = {
        "files": ask_files([home.path]),
        "unwritable": ask_folders([str(PurePosixPath(home.path).parent)]),
        **{
            str(n): ask_imports(host, app, wanted, environment, (), (home.path, text))
            for n, text in enumerate(texts)
        },
    }
    answers = run_fragments(transport, asked, timeout_s=timeout_s, private=asked)
    before = parse_files([home.path], answers["files"])[home.path]
    if unwritable := parse_unwritable(answers["unwritable"]):
        folder, user = next(iter(unwritable.items()))
        return Insertion(f"{user} may not write in {folder}")
    if before.content != home.text:
        return Insertion(f"{home.path} changes while it is looked at")
    for n, text in enumerate(texts):
        if _mends(parse_imports(host, answers[str(n)]), now, tasks):
            line = home.at or len(home.text.splitlines()) + 1
            return Insertion("", home.path, line, before, text, home.checkout)
    return Insertion(
        f"tried on the host: with an import in {home.path} they are not registered either"
    )


def _mends(tried: ImportProbe, now: ImportProbe, tasks: Collection[str]) -> bool:
    return tried.loaded and tried.registered >= now.registered | frozenset(tasks)


def _ways(home: Home, modules: Sequence[str]) -> Iterator[list[str]]:
    """A plain import; or, where the modules need what is not set up yet then, as Django's models
    do, once that is done.

    **Source:** celery 5.7.0 `app/base.py: Celery.autodiscover_tasks`.
    """
    yield [f"import {module}  # noqa: E402, F401" for module in modules]
    parts = [module.rpartition(".") for module in modules]
    yield [
        (
            f"{home.name}.autodiscover_tasks([{package!r}], related_name={last!r})"
            if package
            else f"{home.name}.autodiscover_tasks([{last!r}], related_name=None)"
        )
        for package, _, last in parts
    ]


def _inserted(home: Home, lines: Sequence[str]) -> bytes:
    """The file with these lines, ended as its own are."""
    end = b"\r\n" if b"\r\n" in home.text else b"\n"
    old = home.text.splitlines(keepends=True)
    at = home.at - 1 if home.at else len(old)
    head, tail = b"".join(old[:at]), b"".join(old[at:])
    if head and not head.endswith(b"\n"):
        head += end
    new = b"".join(line.encode() + end for line in (_WHY, *lines))
    gap = b"" if not head or head.endswith((b"\n\n", b"\r\n\r\n")) else end
    return head + gap + new + (end + end if tail else b"") + tail
