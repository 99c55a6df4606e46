"""The workers that `celery multi start` starts, each with its command.

**Source:** celery 5.7.0 `apps/multi.py: NamespacedOptionParser, MultiParser`: a single number N
means celery1 … celeryN; an option `-Q:NAMES` applies only to these nodes, and a number among the
names is a position in the list of nodes.
"""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

_STARTS = ("start", "restart")


def workers_in(words: Sequence[str]) -> list[list[str]]:
    """Return the command of each worker of `celery … multi start …`; empty for other commands."""
    names = [PurePosixPath(word).name for word in words]
    if "celery" not in names or "multi" not in words:
        return []
    before = names.index("celery")
    at = words.index("multi")
    if words[at + 1 : at + 2] == [] or words[at + 1] not in _STARTS:
        return []
    nodes, options = _parsed(words[at + 2 :])
    of_range = len(nodes) == 1 and nodes[0].isdigit()
    if of_range:
        nodes = [str(n) for n in range(1, int(nodes[0]) + 1)]
    found = []
    for node in nodes:
        name = _full_name(node, of_range=of_range)
        command = ["celery", *words[before + 1 : at], "worker", "-n", name]
        for option, of in options:
            if not of or node in _meant(of, nodes, of_range=of_range):
                command += option
        found.append(command)
    return found


def _parsed(words: Sequence[str]) -> tuple[list[str], list[tuple[list[str], str]]]:
    """Return the names of the nodes, and each option with its nodes ("": all), these last."""
    names: list[str] = []
    options: list[tuple[list[str], str]] = []
    rest = iter([*words, "--"])
    word = next(rest)
    while word != "--":
        after = next(rest)
        if not word.startswith("-"):
            names.append(word)
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            name, _, of = name.partition(":")
            options.append(([f"{name}{equals}{value}"], of))
        else:
            name, _, of = word.partition(":")
            option = [name]
            if not after.startswith("-"):
                option.append(after)
                after = next(rest)
            options.append((option, of))
        word = after
    return names, sorted(options, key=lambda option: bool(option[1]))


def _meant(of: str, nodes: Sequence[str], *, of_range: bool) -> Iterator[str]:
    for one in of.split(","):
        first, dash, last = one.partition("-")
        if of_range and dash and first.isdigit() and last.isdigit():
            yield from map(str, range(int(first), int(last) + 1))
        elif one.isdigit() and not of_range:
            yield from nodes[int(one) - 1 : int(one)]
        else:
            yield one


def _full_name(name: str, *, of_range: bool) -> str:
    if of_range:
        name = f"celery{name}"
    if "@" in name:
        return name
    return f"{name}@%h"
