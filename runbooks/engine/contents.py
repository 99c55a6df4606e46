"""What a run puts into files and what stood there before: beside its journal, for secrets may stand
in files.

`contents.jsonl` (0600) in a run's folder is JSON lines, one for each change that hides a part of
its effects:

    {"salt", "do", "undo"}      the hidden fields (`HIDDEN`) of both effects, bytes in base64;
                                null: there is no undo

The journal names a line by its sha256. Because of the salt nothing can be guessed from that, not
even a short password; and a line that is torn or damaged has another one.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runbooks.core.effects import Change, hidden_in
from runbooks.core.errors import RunbookError
from runbooks.engine.appended import Appended, sync_directory

CONTENTS = "contents.jsonl"


class Contents:
    """The contents of a run that goes on. The file is made when there is something to keep."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: Appended | None = None

    def keep(self, changes: Iterable[Change]) -> list[str]:
        """The name of what each change hides, "" for nothing. All of it is on the disk then."""
        names = []
        kept = b""
        for change in changes:
            line = _line(change)
            if line:
                names.append(_name(line))
                kept += line + b"\n"
            else:
                names.append("")
        if kept:
            if not self._file:
                self._file = Appended(self._directory / CONTENTS)
                sync_directory(self._directory)
            self._file.append(kept)
        return names

    def close(self) -> None:
        if self._file:
            self._file.close()


class Kept:
    """The contents of a run, read as they are asked for, because it may still go on."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / CONTENTS
        self._lines: dict[str, bytes] = {}

    def named(self, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The hidden fields of a change's effect, and of the one that undoes it. Raises
        RunbookError: they are lost.
        """
        if name not in self._lines:
            self._lines = {_name(line): line for line in self._read()}
        if name not in self._lines:
            raise RunbookError(f"{self._path} is damaged")
        kept = json.loads(self._lines[name])
        return kept["do"], kept["undo"] or {}

    def _read(self) -> Sequence[bytes]:
        try:
            return self._path.read_bytes().splitlines()
        except FileNotFoundError:
            raise RunbookError(f"{self._path} is missing") from None
        except OSError as error:
            raise RunbookError(f"{self._path} cannot be read: {error.strerror}") from None


def _line(change: Change) -> bytes:
    """The line for what a change hides, b"" for nothing."""
    undo = None
    if change.undo:
        undo = hidden_in(change.undo)
    hidden = {"do": hidden_in(change.do), "undo": undo}
    if not any(hidden.values()):
        return b""
    salt = secrets.token_hex(16)
    return json.dumps({"salt": salt, **hidden}).encode()


def _name(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
