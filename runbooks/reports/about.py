"""The first line of an output: the application, the inventory, the broker, and what was checked."""

from collections.abc import Iterator
from pathlib import Path

from runbooks.core.reporter import About
from runbooks.core.wording import counted, going_on, utc


def about_line(about: About) -> str:
    """`shop at 10.0.0.1:6379/0, inventory.yaml: checked 2 hosts, 1 of 4 workers, 3 queues`."""
    if about.records:
        return f"records in {about.records}"
    line = str(about.application)
    if about.broker:
        line += f" at {about.broker}"
    line += f", {_from_here(about.inventory or '')}"
    if checked := ", ".join(_counts(about)):
        line += f": checked {checked}"
    if about.loaded_at:
        line += f"; application as loaded at {utc(about.loaded_at)}"
    if about.other_run:
        line += f"; {going_on(about.other_run)}"
    return line


def _from_here(inventory: str) -> str:
    """Return the inventory's sources, as paths relative to the working folder if below it."""
    sources = inventory.split(" --inventory ")
    return ", ".join(source.removeprefix(f"{Path.cwd()}/") for source in sources)


def _counts(about: About) -> Iterator[str]:
    for name, seen in {"host": about.hosts, "worker": about.workers, "queue": about.queues}.items():
        if seen and seen.looked_at == seen.of:
            yield counted(seen.of, name)
        elif seen:
            yield f"{seen.looked_at} of {counted(seen.of, name)}"
