"""How a reader understands an environment file: variables, their places, and what prevents it."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct, field

from runbooks.core.secret_records import Discreet

Reader = Literal["systemd", "shell", "docker", "compose"]
"""What reads the file: systemd (`EnvironmentFile=`), the shell of a start script (`. FILE`), docker
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
    """A place in a file, and what is wrong there."""

    line: int
    """The line, from 1."""
    column: int
    """The column, from 1."""
    what: str
    """What is wrong."""

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.what}"


class Assignment(Discreet, frozen=True):
    """An assignment of a value to a name."""

    HIDDEN = ("value",)

    name: str
    """The name."""
    value: str | None
    """The value; None if it shows only when the file runs."""
    begin: int
    """Where the written value begins."""
    end: int
    """Where the written value ends."""
    line_begin: int
    """Where its lines begin."""
    line_end: int
    """Where its lines end."""
    alone: bool = True
    """Whether nothing else is on these lines."""


class Reading(Discreet, frozen=True):
    """A file as its reader understands it."""

    HIDDEN = ("text", "values")

    text: str
    """The file."""
    assignments: Sequence[Assignment]
    """All assignments."""
    values: dict[str, str] = field(default_factory=dict)
    """The variables with their final values, if these are known."""
    unknown: dict[str, Place] = field(default_factory=dict)
    """The variables whose values only the reader knows, and why."""
    opaque: Place | None = None
    """A statement that may set any variable that is not assigned after it."""
    fault: Place | None = None
    """What keeps the reader from understanding the file as it was meant."""
    refused: bool = False
    """Whether the reader refuses the whole file because of that; then nothing is known."""

    @property
    def likely(self) -> dict[str, str]:
        """The last value that is written for each variable, even if it may not count."""
        return {
            one.name: one.value
            for one in self.assignments
            if one.value is not None and NAME.fullmatch(one.name)
        }

    def why_unknown(self, name: str) -> Place | None:
        """Why it is not known whether a variable is set, and to what; None if it is known."""
        if self.refused:
            return self.fault
        if name in self.values:
            return None
        return self.unknown.get(name, self.opaque)

    def last(self, name: str) -> Assignment | None:
        """The assignment of a name that counts; None if there is none."""
        return next((one for one in reversed(self.assignments) if one.name == name), None)

    def passed_over(self, name: str) -> Iterator[Place]:
        """Where the variable seems to be set but is not: there is more than its name before `=`."""
        for one in self.assignments:
            if one.name.split()[-1:] == [name] and one.name != name:
                why = f"this line does not set {name}: the reader takes {one.name!r} as the name"
                yield place(self.text, one.line_begin, why)

    def as_written(self, name: str) -> str | None:
        """How the value that counts is written, quotes included; None if there is none."""
        found = self.last(name)
        if not found:
            return None
        return self.text[found.begin : found.end]


def settled(text: str, assignments: Sequence[Assignment], unknown: str) -> Reading:
    """The reading if the last assignment of a name counts; `unknown` says why one has no value."""
    values: dict[str, str] = {}
    unsettled: dict[str, Place] = {}
    for name, one in {one.name: one for one in assignments if NAME.fullmatch(one.name)}.items():
        if one.value is None:
            unsettled[name] = place(text, one.begin, f"the value of {name} {unknown}")
        else:
            values[name] = one.value
    return Reading(text, assignments, values, unsettled)


def place(text: str, at: int, what: str) -> Place:
    """The place of `text[at]`; a line ends at its line feed."""
    return Place(text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at), what)


def end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where the match of the pattern at this place ends; the place itself if it does not match."""
    found = pattern.match(text, at)
    return found.end() if found else at
