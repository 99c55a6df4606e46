"""What a reader makes of an environment file: its variables, where each stands, and what keeps it
from being read.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct, field

from runbooks.core.secret_records import Discreet

Reader = Literal["systemd", "shell", "docker", "compose"]
"""Who reads the file: systemd (`EnvironmentFile=`), the shell of a start script (`. FILE`), docker
(`--env-file`), or Compose (`env_file:`).
"""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NOT_UTF8 = re.compile(r"[\udc80-\udcff]")
BOM = "\ufeff"
GO_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680"
    + "".join(map(chr, range(0x2000, 0x200B)))
    + "\u2028\u2029\u202f\u205f\u3000"
)
"""**Source:** Go's `unicode.IsSpace`."""


class Place(Struct, frozen=True):
    """Where something stands in a file, counted from 1, and what there is to say of it."""

    line: int
    column: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.what}"


class Assignment(Discreet, frozen=True):
    """`name` is set to `value`, None where that shows only when it is run.

    `text[begin:end]` is how the value is written, `text[line_begin:line_end]` the lines that it
    stands on; `alone`: nothing else stands there.
    """

    HIDDEN = ("value",)

    name: str
    value: str | None
    begin: int
    end: int
    line_begin: int
    line_end: int
    alone: bool = True


class Reading(Discreet, frozen=True):
    """`values` are the variables that the reader has of the file in the end, as far as that can be
    told.

    Of those in `unknown` only the reader itself can tell. After a statement that may set anything
    (`opaque`), that holds of each that is not assigned later. `fault` keeps the reader from reading
    the file as it is meant; where that makes it refuse the whole file (`refused`), nothing is
    known.
    """

    HIDDEN = ("text", "values")

    text: str
    assignments: Sequence[Assignment]
    values: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, Place] = field(default_factory=dict)
    opaque: Place | None = None
    fault: Place | None = None
    refused: bool = False

    @property
    def likely(self) -> dict[str, str]:
        """Each variable with the last value that is written for it, also where it is not known
        whether that counts.
        """
        return {
            one.name: one.value
            for one in self.assignments
            if one.value is not None and NAME.fullmatch(one.name)
        }

    def why_unknown(self, name: str) -> Place | None:
        """Why it is not known what the reader has of a variable; None where its value, or that it
        has none, is.
        """
        if self.refused:
            return self.fault
        return None if name in self.values else self.unknown.get(name, self.opaque)

    def last(self, name: str) -> Assignment | None:
        """The assignment that counts."""
        return next((one for one in reversed(self.assignments) if one.name == name), None)

    def passed_over(self, name: str) -> Iterator[Place]:
        """Where the variable seems to be set, and is not: more stands before `=` than its name."""
        for one in self.assignments:
            if one.name.split()[-1:] == [name] and one.name != name:
                why = (
                    f"this line does not count for {name}, because all of {one.name!r} is taken for"
                    " the name"
                )
                yield place(self.text, one.line_begin, why)

    def as_written(self, name: str) -> str | None:
        """How the value that counts is written, quotes and all."""
        found = self.last(name)
        return self.text[found.begin : found.end] if found else None


def settled(text: str, assignments: Sequence[Assignment], unknown: str) -> Reading:
    """The reading where the last assignment of a name is the one that counts; `unknown` says why
    one has no value.
    """
    last = {one.name: one for one in assignments if NAME.fullmatch(one.name)}
    values = {name: one.value for name, one in last.items() if one.value is not None}
    untold = {
        name: place(text, one.begin, f"what {name} comes to {unknown}")
        for name, one in last.items()
        if name not in values
    }
    return Reading(text, assignments, values, untold)


def place(text: str, at: int, what: str) -> Place:
    """The place of `text[at]`; a line ends at its line feed."""
    return Place(text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at), what)


def end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where what the pattern matches at this place ends; the place itself where it matches nothing."""
    found = pattern.match(text, at)
    return found.end() if found else at
