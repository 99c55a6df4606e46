"""A copy of the checkout in a folder of its own, driven through the real command line."""

import fcntl
import json
import os
import pty
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from jsonschema import Draft202012Validator

CHECKOUT = Path(__file__).resolve().parents[1]
SCHEMA = Draft202012Validator(json.loads((CHECKOUT / "docs/output.schema.json").read_text()))


def celery_command(words: str, *more: str) -> list[str]:
    """Return a command of Celery in this Python; only `words` are split at blanks."""
    return [sys.executable, "-m", "celery", *words.split(), *more]


@dataclass(frozen=True, slots=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document that was printed, which is as the schema says."""
        document = json.loads(self.out)
        SCHEMA.validate(document)
        return document


@dataclass(frozen=True, slots=True)
class World:
    """A copy of the checkout, and its sandbox; `more` variables are in the environment of what it
    runs.
    """

    path: Path
    more: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.path / "tasks.py"), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
        return kept | {"HOME": str(self.path / "home"), "NO_COLOR": "1"} | self.more

    @contextmanager
    def variables(self, **values: str) -> Iterator[None]:
        """Run everything with these variables while the block lasts."""
        self.more.update(values)
        try:
            yield
        finally:
            self.more.clear()

    def inv(self, *arguments: str, stdin: str | None = None, timeout_s: float = 150) -> Done:
        """Run `inv` to its end as an operator's script would: no terminal, an empty HOME."""
        done = subprocess.run(
            self.command(*arguments), cwd=self.path, env=self.environment, input=stdin or "",
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def terminal(self, *arguments: str, answers: Sequence[tuple[str, str]] = ()) -> Done:
        """Run `inv` to its end on a terminal; each of the answers is typed once its question stands
        there.
        """
        ours, its = pty.openpty()
        process = subprocess.Popen(
            self.command(*arguments), cwd=self.path, env=self.environment | {"TERM": "xterm", "COLUMNS": "100"},
            stdin=its, stdout=its, stderr=its, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(its)
        shown, answered = "", 0
        with suppress(OSError):  # a terminal that is closed
            while data := os.read(ours, 65536):
                shown += data.decode(errors="replace")
                if answered < len(answers) and answers[answered][0] in shown:
                    os.write(ours, f"{answers[answered][1]}\n".encode())
                    answered += 1
        os.close(ours)
        return Done(process.wait(), shown, "")

    @property
    def root(self) -> Path:
        return self.path / ".sandbox"

    @property
    def env_file(self) -> Path:
        return self.root / "app/printer_inventory.env"

    def broker(self) -> "redis.Redis":
        return redis.Redis.from_url((self.root / "broker.url").read_text(), protocol=2)

    def queue(self, name: str = "low_priority") -> list[bytes]:
        """The waiting messages over all priorities, newest first."""
        with self.broker() as client:
            keys = (name, *(f"{name}\x06\x16{step}" for step in (3, 6, 9)))
            return [item for key in keys for item in client.lrange(key, 0, -1)]

    def inventory(self, *replacements: tuple[str, str]) -> str:
        """Write a changed copy of the inventory beside it; returns its name."""
        text = (self.path / "inventory.yaml").read_text()
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        (self.path / "changed.yaml").write_text(text)
        return "changed.yaml"


def make_world(path: Path) -> World:
    """Copy what a checkout needs to run into a folder, which may be there already."""
    ignored = shutil.ignore_patterns(".sandbox*")
    for name in ("runbooks", "lab", "templates"):
        shutil.copytree(CHECKOUT / name, path / name, ignore=ignored)
    for name in ("tasks.py", "inventory.yaml"):
        shutil.copy(CHECKOUT / name, path / name)
    (path / "home").mkdir()
    (path / ".venv").symlink_to(sys.prefix)
    return World(path)
