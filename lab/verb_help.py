"""What the verbs say of themselves, as the pages made from it need it: purposes, arguments and
flags.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from inspect import cleandoc

from invoke.collection import Collection
from invoke.parser.argument import Argument
from msgspec import Struct

from runbooks.cli import verbs
from runbooks.cli.overview import grouped

_MANY = 10
"""A flag that so many verbs have with the same meaning is explained once for all."""


class Flag(Struct, frozen=True):
    """A flag, or a positional argument: how it is typed, and what it means."""

    typed: str
    meaning: str


class Verb(Struct, frozen=True):
    """A verb: what is typed, its purpose, the flags that are its own, and how those are typed that
    many verbs have.
    """

    name: str
    usage: str
    purpose: str
    flags: tuple[Flag, ...]
    shared: tuple[str, ...]


def shared_flags() -> tuple[Flag, ...]:
    """The flags of many verbs."""
    return tuple(sorted(_shared(), key=lambda flag: flag.typed.lstrip("-")))


def verbs_by_purpose() -> Iterator[tuple[str, list[Verb]]]:
    """Every verb under the heading that `inv` alone has it under."""
    collection = Collection.from_module(verbs)
    contexts = {
        str(context.name): list(context.args.values()) for context in collection.to_contexts()
    }
    shared = _shared()
    for heading, named in grouped(dict.fromkeys(contexts, "")):
        yield (
            heading,
            [
                _verb(name, cleandoc(collection[name].__doc__ or ""), contexts[name], shared)
                for name, _ in named
            ],
        )


def _verb(name: str, doc: str, arguments: list[Argument], shared: Mapping[Flag, int]) -> Verb:
    positional = [
        f"[{_upper(one)}]" if one.optional else _upper(one) for one in arguments if one.positional
    ]
    flags = [
        _flag(one) for one in sorted(arguments, key=lambda one: (not one.positional, str(one.name)))
    ]
    purpose = " ".join(doc.partition("\n\n")[0].split())
    own = tuple(flag for flag in flags if flag not in shared)
    return Verb(
        name,
        " ".join((name, *positional)),
        purpose,
        own,
        tuple(f.typed for f in flags if f in shared),
    )


def _shared() -> Mapping[Flag, int]:
    every = Counter(
        _flag(one)
        for context in Collection.from_module(verbs).to_contexts()
        for one in context.args.values()
    )
    return {flag: count for flag, count in every.items() if count >= _MANY}


def _upper(argument: Argument) -> str:
    return str(argument.name).replace("_", "-").upper()


def _flag(argument: Argument) -> Flag:
    if argument.positional:
        return Flag(_upper(argument), str(argument.help))
    names = sorted(argument.names, key=len)
    value = {bool: "", int: " NUMBER"}.get(argument.kind, " VALUE")
    return Flag(
        ", ".join(f"-{name}" if len(name) == 1 else f"--{name}" for name in names) + value,
        str(argument.help),
    )
