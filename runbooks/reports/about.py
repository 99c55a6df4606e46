"""The first line of an output: which application, inventory and broker it is about, and how much
was looked at.
"""

from collections.abc import Iterator
from pathlib import Path

from runbooks.core.reporter import About
from runbooks.core.wording import counted, going_on, utc


def about_line(about: About) -> str:
    """`shop at 10.0.0.1:6379/0, inventory.yaml: checked 2 hosts, 1 of 4 workers, 3 queues`."""
    if about.records:
        return f"records in {about.records}"
    broker = f" at {about.broker}" if about.broker else ""
    line = f"{about.application}{broker}, {_from_here(about.inventory or '')}"
    seen = ", ".join(_counts(about))
    line += f": checked {seen}" if seen else ""
    line += f"; application as loaded at {utc(about.loaded_at)}" if about.loaded_at else ""
    return f"{line}; {going_on(about.other_run)}" if about.other_run else line


def _from_here(inventory: str) -> str:
    """The inventory's sources, those below the working folder as they are seen from there."""
    sources = inventory.split(" --inventory ")
    return ", ".join(source.removeprefix(f"{Path.cwd()}/") for source in sources)


def _counts(about: About) -> Iterator[str]:
    for name, seen in {"host": about.hosts, "worker": about.workers, "queue": about.queues}.items():
        if seen:
            some = "" if seen.looked_at == seen.of else f"{seen.looked_at} of "
            yield f"{some}{counted(seen.of, name)}"
