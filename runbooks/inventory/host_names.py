"""The names under `hosts:`: one host, or a range of them, perhaps with a port.

**Source:** `ansible/parsing/utils/addresses.py: parse_address` and
`ansible/plugins/inventory/__init__.py: expand_hostname_range` (ansible-core 2.19): ranges are
inclusive, padded with zeros as the start is; several multiply.
"""

import ipaddress
import re
import string
from collections.abc import Iterator

_LETTERS = string.ascii_letters  # a to z, then A to Z


def expand(name: str) -> tuple[list[str], int | None]:
    """Return the hosts of a name, and their port if it has one; raise ValueError if it is wrong."""
    found = re.fullmatch(r"\[([^\[\]]+)\]:(\d+)", name) or re.fullmatch(
        r"((?:[^:\[\]]|\[[^\]]*\])*):(\d+)", name
    )
    pattern = name
    port = None
    if found:
        pattern = found[1]
        port = int(found[2])
    if re.search(r"[\s,\x00-\x1f\x7f]", pattern):
        raise ValueError("a host name cannot contain a space or a comma")
    hosts = list(_expand(pattern))
    for host in hosts:
        if (port or ":" in host) and not _is_address(host):
            raise ValueError("neither a host with a port nor an IPv6 address")
    return hosts, port


def _is_address(name: str) -> bool:
    if ":" not in name:
        return all(re.fullmatch(r"\w[\w-]*(?<![_-])", label) for label in name.split("."))
    try:
        return bool(ipaddress.IPv6Address(name))
    except ValueError:
        return False


def _expand(pattern: str) -> Iterator[str]:
    """Expand the first range of a pattern, then the others."""
    found = re.search(r"\[([^\[\]]*)\]", pattern)
    if not found:
        if "[" in pattern:
            raise ValueError("a [ that does not begin a range")
        yield pattern
        return
    head = pattern[: found.start()]
    tail = pattern[found.end() :]
    for item in _range(found[1]):
        for rest in _expand(tail):
            yield head + item + rest


def _range(text: str) -> Iterator[str]:
    found = re.fullmatch(r"(\d*|[a-zA-Z]):(\d+|[a-zA-Z])(?::(\d*[1-9]\d*))?", text)
    start = ""
    stop = ""
    step = 0
    if found:
        start = found[1] or "0"
        stop = found[2]
        step = int(found[3] or 1)
    if start.isdigit() and stop.isdigit() and int(start) <= int(stop):
        if len(start) > 1 and start.startswith("0") and len(start) != len(stop):
            raise ValueError(f"range [{text}]: a padded start needs an end of the same width")
        width = 0
        if start.startswith("0"):
            width = len(start)
        for number in range(int(start), int(stop) + 1, step):
            yield str(number).zfill(width)
    elif start.isalpha() and stop.isalpha() and _LETTERS.index(start) <= _LETTERS.index(stop):
        yield from _LETTERS[_LETTERS.index(start) : _LETTERS.index(stop) + 1 : step]
    else:
        raise ValueError(
            f"range [{text}] is not START:END or START:END:STEP with START not after END"
        )
