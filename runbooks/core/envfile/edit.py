"""Read an environment file by its reader's rules; change variables and not another byte of it."""

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
    """A file by its reader's rules; a byte that is not UTF-8 becomes a lone surrogate."""
    return _read(content.decode(errors="surrogateescape"), reader)


@lru_cache(maxsize=256)
def _read(text: str, reader: Reader) -> Reading:
    return _READERS[reader](text)


def all_values(content: bytes) -> Iterator[tuple[str, str]]:
    """Each name with each value that any reader may give it, as text to search for.

    Values that show only when the file runs are missing. Quotes around a value are removed, though
    docker counts them as part of it.
    """
    for reader in get_args(Reader):
        for found in read(content, reader).assignments:
            name = NAME.findall(found.name)[-1:]
            if name and found.value is not None:
                raw = found.value.encode(errors="surrogateescape")
                yield name[0], raw.decode(errors="replace").strip("'\"")


def edit(
    content: bytes,
    reader: Reader,
    values: Mapping[str, str | None],
    as_written: Mapping[str, str] | None = None,
) -> bytes:
    """The file with `values` set (None removes).

    The assignment that counts is changed; a new one goes to the end. A value in `as_written` is
    written in that form if it means the same. All other bytes stay, and so does their meaning for
    the reader. Raises ValueError with the reason if that is impossible.
    """
    before = read(content, reader)
    if before.fault:
        raise ValueError(str(before.fault))
    after = before
    for name, value in values.items():
        if why := before.why_unknown(name):
            raise ValueError(str(why))
        if value == after.values.get(name):
            continue
        is_new = after.last(name) is None
        if value is None:
            text = _removed(after, name)
        else:
            text = _set(after, reader, name, value, (as_written or {}).get(name))
        after = _READERS[reader](text)
        added = after.last(name)
        if is_new and added and not added.alone:
            raise ValueError(
                f"{name} would continue the last line of the file, and could not be removed again"
            )
    rest = {name: value for name, value in before.values.items() if name not in values}
    expected = rest | {name: value for name, value in values.items() if value is not None}
    same_unknown = after.unknown.keys() == before.unknown.keys()
    if after.fault or after.values != expected or not same_unknown:
        names = ", ".join(values)
        raise ValueError(f"setting {names} there would change what the rest means for {reader}")
    return after.text.encode(errors="surrogateescape")


def _set(reading: Reading, reader: Reader, name: str, value: str, as_written: str | None) -> str:
    if as_written is None and ("\n" in value or "\0" in value):
        raise ValueError(f"the value of {name} contains a line break")
    text = reading.text
    written = _WRITTEN[reader](value) if as_written is None else as_written
    if found := reading.last(name):
        return text[: found.begin] + written + text[found.end :]
    if text and not text.endswith("\n"):
        return f"{text}\n{name}={written}"  # without a line feed, as it was, so it can be undone
    return f"{text}{name}={written}\n"


def _removed(reading: Reading, name: str) -> str:
    text = reading.text
    for found in reversed(reading.assignments):
        if found.name == name:
            if not found.alone:
                raise ValueError(f"{name} is not alone on its line")
            begin = found.line_begin
            if not text[: found.line_end].endswith("\n"):
                begin = max(begin - 1, 0)
            text = text[:begin] + text[found.line_end :]
    return text
