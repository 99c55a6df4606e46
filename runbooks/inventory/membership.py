"""Which hosts belong to the fleet, and which of their `celery_` variables are this tool's.

Other roles may use variables with the same prefix. A variable that is unknown here belongs to them,
unless it looks like a typing error on a host of the fleet. `runbooks_ignore` names variables that
belong to them although they are known here.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from runbooks.core.errors import InventoryError
from runbooks.core.settings import PREFIX, AppSettings, HostSettings
from runbooks.core.wording import did_you_mean
from runbooks.inventory.read import Host, Inventory
from runbooks.inventory.values import Renderer, Values

KNOWN = {
    PREFIX + name: model for model in (AppSettings, HostSettings) for name in model.model_fields
}
"""This tool's variables, each with the record that it is a field of."""
APP = f"{PREFIX}app"
IGNORE = "runbooks_ignore"


def members(
    inventory: Inventory, renderer: Renderer, problems: dict[str, None]
) -> Iterator[tuple[Host, Values]]:
    """Yield the hosts with `celery_app`, in the order of a run, without variables of other roles.

    Typing errors, and hosts with variables of this tool but no application, are added to
    `problems`.
    """
    strays: dict[tuple[str, ...], list[Host]] = {}
    for host_name in inventory.groups["all"]:
        host = inventory.hosts[host_name]
        values = renderer.hosts[host_name]
        theirs = _ignored(host, values, problems)
        ours = []
        for name in host.variables:
            if name in KNOWN and name not in theirs:
                ours.append(name)
        if APP in ours:
            problems.update(dict.fromkeys(_slips(host, theirs)))
            kept = {}
            for name, one in host.variables.items():
                if name in ours or not name.startswith(PREFIX):
                    kept[name] = one
            yield replace(host, variables=kept), values
        elif ours:
            strays.setdefault(tuple(sorted(ours)), []).append(host)
    problems.update({_stray(names, hosts): None for names, hosts in strays.items()})


def like_app(hosts: Iterable[Host]) -> str:
    """Return a hint if one of these hosts has a variable that looks like `celery_app`."""
    names: set[str] = set()
    for host in hosts:
        names.update(host.variables)
    for name in sorted(names):
        if name.startswith(PREFIX) and _meant(name, (APP,)):
            return f"; did you mean '{APP}' by '{name}'?"
    return ""


def _ignored(host: Host, values: Values, problems: dict[str, None]) -> Sequence[str]:
    if IGNORE not in host.variables:
        return ()
    place = f"{host.variables[IGNORE].place}: {IGNORE}"
    try:
        names: Any = values[IGNORE]
    except InventoryError as error:
        problems.update(dict.fromkeys(error.problems))
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        problems[f"{place}: expected a list of variable names"] = None
        return ()
    for name in names:
        if not name.startswith(PREFIX):
            problems[
                f"{place}: '{name}' is not a variable of this tool{did_you_mean(name, KNOWN)}"
            ] = None
    return names


def applications(inventory: Inventory) -> tuple[str, ...]:
    """Return the applications of the inventory whose names can be rendered, each once."""
    values = Renderer(inventory).hosts
    found = []
    for name in inventory.groups["all"]:
        if APP in inventory.hosts[name].variables:
            with suppress(InventoryError):
                found.append(str(values[name][APP]))
    return tuple(dict.fromkeys(found))


@lru_cache
def _meant(name: str, known: tuple[str, ...]) -> str | None:
    """Return the variable that a name differs from by one wrong, missing, added or moved letter."""
    for one in known:
        if _is_slip(name, one):
            return one
    return None


def _is_slip(name: str, known: str) -> bool:
    steps = difflib.SequenceMatcher(None, name, known).get_opcodes()
    changed = sum(max(a2 - a1, b2 - b1) for step, a1, a2, b1, b2 in steps if step != "equal")
    return changed == 1 or (changed == 2 and sorted(name) == sorted(known))


def _slips(host: Host, theirs: Sequence[str]) -> Iterator[str]:
    for name in sorted(host.variables):
        if not name.startswith(PREFIX) or name in KNOWN or name in theirs:
            continue
        meant = _meant(name, tuple(KNOWN))
        if meant:
            what = f"did you mean '{meant}'? If it belongs to a role, name it in {IGNORE}"
            yield f"{host.variables[name].place}: unknown variable '{name}'; {what}"


def _stray(names: Sequence[str], hosts: Sequence[Host]) -> str:
    """Describe hosts that have variables of this tool, but no application."""
    who = ", ".join(host.name for host in hosts[:3])
    more = len(hosts) - 3
    if more > 0:
        who += f" and {more} more"
    have = "have"
    them = "them"
    if len(hosts) == 1:
        have = "has"
        them = "it"
    way = (
        like_app(hosts)
        or f": set it for {them}, or if {', '.join(names)} belongs to a role, name it in {IGNORE}"
    )
    return (
        f"{hosts[0].variables[names[0]].place}: {who} {have} {', '.join(names)} and no {APP}{way}"
    )
