"""`--limit` patterns: which hosts of an inventory a verb is to touch.

**Source:** Ansible's "Patterns: targeting hosts and groups": terms are separated by `,` or `:`, a plain term adds, `&`
intersects, `!` takes away, in this order; a term is a host, a group, a glob over both, or `~` and a regular expression.
Deviations, on purpose: an empty pattern, a term that matches nothing, and a pattern that leaves no host are errors.
"""

import fnmatch
import re

from runbooks.core.errors import UsageError
from runbooks.core.inventory import Inventory, did_you_mean


def select_hosts(inventory: Inventory, pattern: str | None) -> tuple[str, ...]:
    """The names of the hosts `pattern` selects, in the inventory's order; None selects all.

    Raises UsageError for a pattern, or a term of it, that selects nothing.
    """
    if pattern is None:
        return tuple(inventory.hosts)
    terms = [term.strip() for term in re.split(r"[,:]", pattern) if term.strip()]
    if not terms:
        raise UsageError("--limit is empty", "name hosts or groups, or leave --limit out for all hosts")
    plain = [term for term in terms if term[0] not in "&!"]
    chosen = set().union(*(_matches(inventory, term) for term in plain)) if plain else set(inventory.hosts)
    for term in terms:
        if term[0] == "&":
            chosen &= _matches(inventory, term[1:])
    for term in terms:
        if term[0] == "!":
            chosen -= _matches(inventory, term[1:])
    if not chosen:
        raise UsageError(f"--limit {pattern!r} leaves no host", "see `inv hosts` for the hosts and groups there are")
    return tuple(name for name in inventory.hosts if name in chosen)


def _matches(inventory: Inventory, term: str) -> set[str]:
    names = (*inventory.hosts, *inventory.groups)
    if term.startswith("~"):
        try:
            expression = re.compile(term[1:])
        except re.error as error:
            raise UsageError(f"--limit {term!r} is not a regular expression: {error}") from None
        hits = [name for name in names if expression.match(name)]
    else:
        hits = [name for name in names if fnmatch.fnmatchcase(name, term)]
    if not hits:
        raise UsageError(
            f"--limit {term!r} matches no host or group of {inventory.path}{did_you_mean(term, list(names))}",
            "see `inv hosts` for the hosts and groups there are",
        )
    return {host for name in hits for host in inventory.groups.get(name, (name,))}
