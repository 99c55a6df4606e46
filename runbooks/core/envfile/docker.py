"""How `docker run --env-file` understands a file, and Compose an `env_file:` with `format: raw`.

Each line is a name, `=`, and the literal value: no quotes, no escapes, no comment after it. A name
alone takes its value from the environment of the docker command, if that has one.

**Source:** docker/cli 28.2 `pkg/kvfile/kvfile.go: parseKeyValueFile`, 20.10 `opts/file.go:
parseKeyValueFile`; Go's `bufio.ScanLines`, `bufio.MaxScanTokenSize`. How the engine treats a NUL
byte and a repeated name: tried with 20.10.
"""

import re
from collections.abc import Iterator

from runbooks.core.envfile.reading import (
    BOM,
    GO_SPACE,
    NOT_UTF8,
    Assignment,
    Place,
    Reading,
    place,
    settled,
)

_BLANKS = GO_SPACE.replace("\n", "")
_LINE = re.compile(rf"(?P<before>[{_BLANKS}]*)(?P<rest>[^\n]*?)\r?(?:\n|\Z)")
_FIRST_LINE = re.compile(rf"{BOM}?{_LINE.pattern}")
_LONGEST_LINE = 65535


def read(text: str) -> Reading:
    """The file as docker understands it."""
    assignments: list[Assignment] = []
    for line in _lines(text):
        if fault := _fault(text, line):
            return Reading(text, assignments, fault=fault, refused=True)
        rest = line["rest"]
        if rest and not rest.startswith("#"):
            name, equals, text_of_value = rest.partition("=")
            value = text_of_value if equals else None
            begin = line.start("rest") + len(name + equals)
            end = line.end("rest")
            assignments.append(Assignment(name, value, begin, end, line.start(), line.end()))
    return settled(text, assignments, "depends on where docker runs")


def written(value: str) -> str:
    """The written form of a value: the value itself."""
    return value


def _lines(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while at < len(text):
        pattern = _LINE if at else _FIRST_LINE
        line = pattern.match(text, at)
        assert line
        yield line
        at = line.end()


def _fault(text: str, line: re.Match[str]) -> Place | None:
    """Why docker refuses the file because of this line; None if it does not."""
    if found := NOT_UTF8.search(line[0]):
        byte = ord(found[0]) - 0xDC00
        return _refused(text, line.start() + found.start(), f"byte 0x{byte:02x} is not UTF-8")
    if len(line[0].rstrip("\n").encode()) > _LONGEST_LINE:
        return _refused(text, line.start(), f"the line is longer than {_LONGEST_LINE:,} bytes")
    at = line.start("rest")
    rest = line["rest"]
    if not rest or rest.startswith("#"):
        return None
    name, equals, _ = rest.partition("=")
    if not name:
        return _refused(text, at, "there is no name here")
    if blank := re.search(r"[ \t]", name):
        return _refused(text, at + blank.start(), "there is a blank in the name")
    if equals and (nul := rest.find("\0")) >= 0:
        return _refused(text, at + nul, "this is a NUL byte")
    return None


def _refused(text: str, at: int, why: str) -> Place:
    return place(text, at, f"docker refuses the file and starts nothing: {why}")
