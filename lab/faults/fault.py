"""What a fault is: a state of a healthy fleet that has to be found, made with real means and undone
afterwards.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

Means = Callable[[Any], AbstractContextManager[object]]
"""Makes a state on a ground, and undoes it when it is left."""
M = TypeVar("M", bound=Means)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and how it is made."""

    code: str
    """What has to be found, and first."""
    how: str
    """What is done to the ground, in a few words: a cell of the table."""
    inject: Means
    ground: str
    """The kind of ground that it needs: a name of `grounds.GROUNDS`."""
    command: tuple[str, ...]
    """The verb that finds it, with its flags."""
    touches: frozenset[str]
    """What it changes, by any names. Two faults that change the same are not injected together."""
    after: str
    """The code of what it follows from in this state, which stands first then; "" where it does
    itself.
    """
    alone: bool
    """Whether nothing is seen beside it, as where the broker does not answer."""
    says: str
    """What the output says of it, where the verb prints a plan and no findings; "" elsewhere."""

    @property
    def family(self) -> str:
        return self.code.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Calm:
    """A state of a healthy fleet in which nothing may be found."""

    name: str
    how: str
    make: Means
    ground: str


FAULTS: list[Fault] = []
CALM: list[Calm] = []


def fault(
    code: str,
    how: str,
    *,
    ground: str = "sandbox",
    command: tuple[str, ...] = ("diagnose",),
    touches: str = "",
    after: str = "",
    alone: bool = False,
    says: str = "",
) -> Callable[[M], M]:
    """Make a fault of a context manager that injects it; `touches` are words."""

    def register(inject: M) -> M:
        words = frozenset(touches.split())
        FAULTS.append(Fault(code, how, inject, ground, command, words, after, alone, says))
        return inject

    return register


def calm(name: str, how: str, *, ground: str = "sandbox") -> Callable[[M], M]:
    """Make a calm state of a context manager that keeps it up."""

    def register(make: M) -> M:
        CALM.append(Calm(name, how, make, ground))
        return make

    return register
