"""Which inventory a verb works with, and how it is named where it has to be named again."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from runbooks.core.command import Command

DEFAULT = "inventory.yaml"


def sources_of(named: Sequence[str]) -> tuple[str, ...]:
    """The sources that `--inventory` names, else the nearest `inventory.yaml` upwards from here,
    else Ansible's own.

    Raises UsageError where there is none of these, and for an empty name, as of a variable that a
    script has not set: which fleet is meant is never guessed.
    """
    from runbooks.core.errors import UsageError

    if named:
        _require_names(named)
        return tuple(named)
    from runbooks.inventory.sources import default_sources

    here = Path.cwd()
    if nearest := _nearest():
        return (str(nearest),)
    if sources := default_sources():
        return tuple(sources)
    raise UsageError(
        f"there is no {DEFAULT} in {here} or above it, so it is not known which fleet is meant",
        f"name yours with --inventory, or write {here / DEFAULT}, with an example from"
        f" {Command('init')}; {Command('diagnose', '-A', 'PROJECT')} in the application's folder,"
        f" and of the broker alone {Command('diagnose', '--broker', 'redis://HOST:PORT/DB')}, need"
        " none",
    )


def nearest_with_text() -> tuple[str, ...]:
    """The nearest `inventory.yaml` upwards from here; none where it is empty, as `> inventory.yaml`
    makes it.
    """
    nearest = _nearest()
    return (str(nearest),) if nearest and nearest.stat().st_size else ()


def _nearest() -> Path | None:
    here = Path.cwd()
    return next(
        (path for folder in (here, *here.parents) if (path := folder / DEFAULT).exists()), None
    )


def _require_names(named: Sequence[str]) -> None:
    from runbooks.core.errors import UsageError

    if not all(named):
        raise UsageError(
            "--inventory is empty",
            "name the inventory, or leave --inventory out for inventory.yaml",
        )


def flags_for(sources: Sequence[str]) -> str:
    """The flags that name these sources again, as they have to be typed."""
    return "".join(f" --inventory {shlex.quote(source)}" for source in sources)


def recorded(sources: Sequence[str]) -> str:
    """The inventory as the record of a run names it: what stands behind `--inventory` in any
    folder.
    """
    from runbooks.inventory.sources import is_host_list

    anywhere = [
        source if is_host_list(source) else str(Path(source).resolve()) for source in sources
    ]
    return flags_for(anywhere).removeprefix(" --inventory ")
