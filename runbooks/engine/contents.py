"""The contents that a run writes into files, and the contents that they had before.

Files may hold secrets, so their contents are kept outside the journal. `contents.jsonl` (0600) in
a run's folder is JSON lines, one for each change that hides a part of its effects:

    {"salt", "do", "undo"}      the hidden fields (`HIDDEN`) of both effects, bytes in base64;
                                null: there is no undo

The journal refers to a line by its sha256. Because of the salt, the digest reveals nothing, not
even a short password. A torn or damaged line has another digest.
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
    """Writes the contents of a running run. The file is created when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: Appended | None = None

    def keep(self, changes: Iterable[Change]) -> list[str]:
        """Write what these changes hide to the disk; return a name for each, "" for nothing."""
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
    """Reads the contents of a run, each time that they are needed: the run may still go on."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / CONTENTS
        self._lines: dict[str, bytes] = {}

    def named(self, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the hidden fields of a change's effect, and of the effect that undoes it.

        Raises RunbookError if they are lost.
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
    """Return the line with what a change hides, b"" for nothing."""
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
