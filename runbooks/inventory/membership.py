"""Which hosts are the fleet's, and which of their `celery_` variables are this tool's.

Others have variables that begin so, too: roles for the same hosts, and settings in
`group_vars/all`. Those that are not known here are theirs, unless one looks like a slip of the pen
on a host of the fleet; `runbooks_ignore` names what is theirs although it is known here.
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
    """The hosts that have `celery_app`, in the order of a run, each without the `celery_` variables
    that are others'.

    What is wrong is added to `problems`: slips of the pen, and the hosts that have variables of
    this tool but no application.
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
    """`; did you mean 'celery_app' by 'celery_ap'?` where one of these hosts, which have no
    `celery_app`, has that.
    """
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
        problems[f"{place}: a list of variables' names is wanted"] = None
        return ()
    for name in names:
        if not name.startswith(PREFIX):
            problems[
                f"{place}: '{name}' is no variable of this tool{did_you_mean(name, KNOWN)}"
            ] = None
    return names


def applications(inventory: Inventory) -> tuple[str, ...]:
    """The applications that hosts of the inventory have, as far as their names can be had; once
    each.
    """
    values = Renderer(inventory).hosts
    found = []
    for name in inventory.groups["all"]:
        if APP in inventory.hosts[name].variables:
            with suppress(InventoryError):
                found.append(str(values[name][APP]))
    return tuple(dict.fromkeys(found))


@lru_cache
def _meant(name: str, known: tuple[str, ...]) -> str | None:
    """The variable that a name looks like a slip of: a letter is wrong, missing, too much, or in
    another place.
    """
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
            what = f"did you mean '{meant}'? If it is a role's, name it in {IGNORE}"
            yield f"{host.variables[name].place}: unknown variable '{name}'; {what}"


def _stray(names: Sequence[str], hosts: Sequence[Host]) -> str:
    """What is said of hosts that have variables of this tool, and no application."""
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
        or f": give {them} one, or, where {', '.join(names)} is a role's, name it in {IGNORE}"
    )
    return (
        f"{hosts[0].variables[names[0]].place}: {who} {have} {', '.join(names)} and no {APP}{way}"
    )
