"""The workers that `celery multi start` starts, each with the command that it comes to.

**Source:** celery 5.7.0 `apps/multi.py: NamespacedOptionParser, MultiParser`: one number N means
celery1 … celeryN; an option of `-Q:NAMES` is that of these nodes alone, of which a number means the
place in the list.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import PurePosixPath

_STARTS = ("start", "restart")


def workers_in(words: Sequence[str]) -> list[list[str]]:
    """The command of each worker, from the words of `celery … multi start …`; none of another
    command.
    """
    names = [PurePosixPath(word).name for word in words]
    if "celery" not in names or "multi" not in words:
        return []
    before, at = names.index("celery"), words.index("multi")
    if words[at + 1 : at + 2] == [] or words[at + 1] not in _STARTS:
        return []
    nodes, options = _parsed(words[at + 2 :])
    of_range = len(nodes) == 1 and nodes[0].isdigit()
    if of_range:
        nodes = [str(n) for n in range(1, int(nodes[0]) + 1)]
    found = []
    for node in nodes:
        own = [
            option
            for option, of in options
            if not of or node in _meant(of, nodes, of_range=of_range)
        ]
        name = _full_name(f"celery{node}" if of_range else node)
        found.append(
            ["celery", *words[before + 1 : at], "worker", "-n", name, *chain.from_iterable(own)]
        )
    return found


def _parsed(words: Sequence[str]) -> tuple[list[str], list[tuple[list[str], str]]]:
    """The names of the nodes, and each option with whose it is, "" for all; those of single nodes
    come last.
    """
    names, options = list[str](), list[tuple[list[str], str]]()
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
            has_value = not after.startswith("-")
            options.append(([name, after] if has_value else [name], of))
            after = next(rest) if has_value else after
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


def _full_name(name: str) -> str:
    return name if "@" in name else f"{name}@%h"
