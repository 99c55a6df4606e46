"""`inv render`: show the files that this tool would install; contact no host."""

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from runbooks.core.errors import ExitCode, UsageError
from runbooks.core.fleet import Fleet
from runbooks.core.reporter import Reporter
from runbooks.diagnosis.wanted_files import all_files
from runbooks.inventory.templates import Templates


def render(fleet: Fleet, templates: Templates, reporter: Reporter, *, only: str) -> ExitCode:
    """Show the files of every host, or those whose path or name matches `only`.

    Raises UsageError if no file matches.
    """
    kinds = all_files(fleet, templates).values()
    files = []
    for host in fleet.hosts:
        for by_host in kinds:
            files += [(host.name, path, content) for path, content in by_host[host.name].items()]
    chosen = [file for file in files if not only or _matches(file[1], only)]
    if only and not chosen:
        names = sorted({PurePosixPath(path).name for _, path, _ in files})
        listed = ", ".join(names) or "none"
        raise UsageError(f"--only {only!r} matches no file", f"the files are: {listed}")
    for host_name, path, content in chosen:
        reporter.file(host_name, path, content)
    return ExitCode.OK


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(PurePosixPath(path).name, pattern)
