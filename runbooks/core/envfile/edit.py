"""Reading an environment file as its reader does, and changing variables in it without touching
another byte.
"""

import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import get_args

from runbooks.core.envfile import compose, docker, shell, systemd
from runbooks.core.envfile.reading import NAME, Reader, Reading

_READERS = {
    "systemd": systemd.read,
    "shell": shell.read,
    "docker": docker.read,
    "compose": compose.read,
}
_WRITTEN = {
    "systemd": shlex.quote,
    "shell": shlex.quote,
    "docker": docker.written,
    "compose": compose.written,
}


def read(content: bytes, reader: Reader) -> Reading:
    """What the reader makes of a file; a byte that is not UTF-8 is a lone surrogate in it."""
    return _read(content.decode(errors="surrogateescape"), reader)


@lru_cache(maxsize=256)
def _read(text: str, reader: Reader) -> Reading:
    return _READERS[reader](text)


def all_values(content: bytes) -> Iterator[tuple[str, str]]:
    """Each name with each value that any reader may take for it, as text to be searched for.

    What only running the file would tell is missing; so are quotes around a value, which docker
    takes for a part of it.
    """
    for reader in get_args(Reader):
        for found in read(content, reader).assignments:
            name = NAME.findall(found.name)[-1:]
            if name and found.value is not None:
                yield (
                    name[0],
                    found.value.encode(errors="surrogateescape")
                    .decode(errors="replace")
                    .strip("'\""),
                )


def edit(
    content: bytes,
    reader: Reader,
    values: Mapping[str, str | None],
    as_written: Mapping[str, str] | None = None,
) -> bytes:
    """The file with `values` set (None removes): of each the assignment that counts, a new one at
    the end.

    A name in `as_written` is written like that, where it comes to the same value. All else stays
    byte for byte, and for the reader, too. Raises ValueError, with the reason, where that cannot
    be.
    """
    before = read(content, reader)
    if before.fault:
        raise ValueError(str(before.fault))
    after = before
    for name, value in values.items():
        if why := before.why_unknown(name):
            raise ValueError(str(why))
        if value != after.values.get(name):
            written = (as_written or {}).get(name)
            is_new = after.last(name) is None
            text = (
                _removed(after, name)
                if value is None
                else _set(after, reader, name, value, written)
            )
            after = _READERS[reader](text)
            added = after.last(name)
            if is_new and added and not added.alone:
                raise ValueError(
                    f"{name} would continue the last line of the file, and could not be taken out"
                    " again"
                )
    rest = {name: value for name, value in before.values.items() if name not in values}
    wanted = rest | {name: value for name, value in values.items() if value is not None}
    if after.fault or (after.values, after.unknown.keys()) != (wanted, before.unknown.keys()):
        raise ValueError(
            f"{', '.join(values)} cannot be set there without changing what {reader} makes of the"
            " rest"
        )
    return after.text.encode(errors="surrogateescape")


def _set(reading: Reading, reader: Reader, name: str, value: str, as_written: str | None) -> str:
    if as_written is None and ("\n" in value or "\0" in value):
        raise ValueError(f"the value of {name} holds a line break")
    text, written = reading.text, _WRITTEN[reader](value) if as_written is None else as_written
    if found := reading.last(name):
        return text[: found.begin] + written + text[found.end :]
    if text and not text.endswith("\n"):
        return (  # as it was found, without a line feed, and so can be taken back
            f"{text}\n{name}={written}"
        )
    return f"{text}{name}={written}\n"


def _removed(reading: Reading, name: str) -> str:
    text = reading.text
    for found in reversed(reading.assignments):
        if found.name == name:
            if not found.alone:
                raise ValueError(f"{name} does not stand alone on its line")
            begin = found.line_begin
            if not text[: found.line_end].endswith("\n"):
                begin = max(begin - 1, 0)
            text = text[:begin] + text[found.line_end :]
    return text
