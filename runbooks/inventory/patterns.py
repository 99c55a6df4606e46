"""`--limit` patterns: which hosts of an inventory a verb should touch.

**Source:** Ansible's "Patterns: targeting hosts and groups"; `ansible/inventory/manager.py`
(ansible-core 2.19): terms are separated by `,` or, where there is none, by `:`; a plain term adds,
`&` intersects, `!` takes away, in this order. A term is a host, a group, a glob over both, `~` and
a regular expression, or `@` and a file with a term in each line; but for expressions, a subscript
such as `[0]`, `[-1]` or `[1:2]` (inclusive) takes some of a term's hosts, in order. Deviations, on
purpose: an empty pattern or file, a term that matches nothing, a pattern that leaves no host are
errors.
"""

import fnmatch
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

from runbooks.core.command import Command
from runbooks.core.errors import UsageError
from runbooks.core.wording import counted, did_you_mean
from runbooks.inventory.read import Inventory

_SUBSCRIPT = re.compile(r"(.+)\[(?:(-?\d+)|(\d+):(\d*))\]")
_FILE = "each line must name a host or a group"
_ADVICE = f"list hosts and groups: {Command('hosts')}"


def select_hosts(inventory: Inventory, pattern: str | None) -> tuple[str, ...]:
    """The names of the hosts `pattern` selects, in the order of `all`; None selects all.

    Raises UsageError for a pattern, or a term of it, that selects nothing.
    """
    if pattern is None:
        return inventory.groups["all"]
    terms: list[str] = []
    for part in _split(pattern):
        terms += _from_file(part)
    if not terms:
        what = "--limit is empty"
        if pattern.strip(" ,:"):
            what = f"--limit {pattern!r} names nothing"
        raise UsageError(what, "name hosts or groups, or omit --limit for all hosts")
    chosen: set[str] = set()
    for term in [term for term in terms if term[0] not in "&!"] or ["all"]:
        chosen |= _matches(inventory, term)
    for term in terms:
        if term[0] == "&":
            chosen &= _matches(inventory, term[1:])
    for term in terms:
        if term[0] == "!":
            chosen -= _matches(inventory, term[1:])
    if not chosen:
        raise UsageError(f"--limit {pattern!r} selects no host", _ADVICE)
    return tuple(name for name in inventory.groups["all"] if name in chosen)


def _split(pattern: str) -> list[str]:
    if "," in pattern:
        terms = pattern.split(",")
    elif _is_one(pattern):
        terms = [pattern]
    else:
        terms = re.findall(
            r"(?:[^\s:\[\]]|\[[^\]]*\])+", pattern
        )  # a colon in brackets separates nothing
    found = []
    for term in terms:
        if term.strip():
            found.append(term.strip())
    return found


def _is_one(pattern: str) -> bool:
    """Whether the pattern's colons separate nothing: an IPv6 address, or a host with a port."""
    try:
        return bool(ipaddress.IPv6Address(pattern))
    except ValueError:
        return re.fullmatch(r"\[.+\]:\d+|[\w.-]+:\d+", pattern) is not None


def _from_file(term: str) -> Iterator[str]:
    if not term.startswith("@"):
        yield term
        return
    try:
        lines = [line.strip() for line in Path(term[1:]).read_text(encoding="utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        why: object = error
        if isinstance(error, OSError):
            why = error.strerror
        raise UsageError(f"--limit {term}: cannot read the file: {why}", _FILE) from None
    if not any(lines):
        raise UsageError(f"--limit {term}: the file is empty", _FILE)
    yield from filter(None, lines)


def _matches(inventory: Inventory, term: str) -> set[str]:
    found = None
    if not term.startswith("~"):
        found = _SUBSCRIPT.fullmatch(term)
    if not found:
        return set(_named(inventory, term))
    hosts = _named(inventory, found[1])
    if not hosts:
        return set()
    some = _some(hosts, found)
    if not some:
        raise UsageError(
            f"--limit {term!r}: '{found[1]}' has {counted(len(hosts), 'host')}, the first is [0]",
            _ADVICE,
        )
    return set(some)


def _some(hosts: list[str], subscript: re.Match[str]) -> list[str]:
    _, index, first, last = subscript.groups()
    if index:
        at = int(index)
        if -len(hosts) <= at < len(hosts):
            return [hosts[at]]
        return []
    if last:
        return hosts[int(first) : int(last) + 1]
    return hosts[int(first) :]


def _named(inventory: Inventory, term: str) -> list[str]:
    """The hosts of the groups that a term matches, then those it matches itself; as for Ansible,
    some twice.
    """
    text = fnmatch.translate(term)
    if term.startswith("~"):
        text = term[1:]
    try:
        expression = re.compile(text)
    except re.error as error:
        raise UsageError(f"--limit {term!r} is not a regular expression: {error}") from None
    groups = []
    for name in inventory.groups:
        if expression.match(name):
            groups.append(name)
    hosts = []
    for name in inventory.hosts:
        if expression.match(name):
            hosts.append(name)
    if not groups and not hosts:
        hint = did_you_mean(term, (*inventory.hosts, *inventory.groups))
        raise UsageError(
            f"--limit {term!r} matches no host or group of {inventory.name}{hint}", _ADVICE
        )
    found: list[str] = []
    for group in groups:
        found += inventory.groups[group]
    return found + hosts
