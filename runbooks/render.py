"""`inv render`: the files that this tool would install, without a look at any host."""

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.fleet import Fleet
from runbooks.core.reporter import Reporter
from runbooks.diagnosis.wanted_files import all_files
from runbooks.inventory.templates import Templates


def render(fleet: Fleet, templates: Templates, reporter: Reporter, *, only: str) -> ExitCode:
    """Show the files of every host, or those whose path or name matches `only`. Raises UsageError
    when none does.
    """
    kinds = all_files(fleet, templates).values()
    files = [
        (host.name, *file)
        for host in fleet.hosts
        for wanted in kinds
        for file in wanted[host.name].items()
    ]
    chosen = [file for file in files if not only or _matches(file[1], only)]
    if only and not chosen:
        names = sorted({PurePosixPath(path).name for _, path, _ in files})
        raise UsageError(
            f"--only {only!r} matches none of the files", f"there are: {', '.join(names) or 'none'}"
        )
    for host, path, content in chosen:
        reporter.file(host, path, content)
    return ExitCode.OK


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(PurePosixPath(path).name, pattern)
