"""Which inventory a verb uses, and how later commands name it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from runbooks.core.command import Command

DEFAULT = "inventory.yaml"


def sources_of(named: Sequence[str]) -> tuple[str, ...]:
    """Return the sources of `--inventory`, else the nearest `inventory.yaml`, else Ansible's.

    The nearest is that of the working folder or the closest folder above it. Raises UsageError if
    there is none, and for an empty name, which a script passes if its variable is not set: the
    fleet is never guessed.
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
        f"no inventory: there is no {DEFAULT} in {here} or above it",
        f"name yours with --inventory, or create an example with {Command('init')}; without an"
        f" inventory run {Command('diagnose', '-A', 'PROJECT')} in the application's folder, or"
        f" check only the broker: {Command('diagnose', '--broker', 'redis://HOST:PORT/DB')}",
    )


def nearest_with_text() -> tuple[str, ...]:
    """Return the nearest `inventory.yaml`; none if it is empty, as after `> inventory.yaml`."""
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
            "name the inventory, or omit --inventory for inventory.yaml",
        )


def flags_for(sources: Sequence[str]) -> str:
    """Return the flags that name these sources in a command."""
    return "".join(f" --inventory {shlex.quote(source)}" for source in sources)


def recorded(sources: Sequence[str]) -> str:
    """Return the inventory as the record of a run names it, valid in any working folder."""
    from runbooks.inventory.sources import is_host_list

    anywhere = [
        source if is_host_list(source) else str(Path(source).resolve()) for source in sources
    ]
    return flags_for(anywhere).removeprefix(" --inventory ")
