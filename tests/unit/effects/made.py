"""Effects made on this machine, as a run makes them on a host."""

from pathlib import Path

from runbooks.core.effects import Effect
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState
from runbooks.effects.dispatch import fragments, on_host
from runbooks.hosts import facts
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host

HOST = make_host()


def run(fragment: str) -> Answer:
    return run_fragments(LocalTransport(), {"e": fragment}, timeout_s=30)["e"]


def fragment(effect: Effect, host: FleetHost = HOST) -> str:
    """The effect's fragment; the file that it has to know is read now."""
    path = on_host(effect).reads
    return fragments(host, {"e": effect}, {"e": read(path)} if path else {})["e"]


def make(effect: Effect, host: FleetHost = HOST) -> Answer:
    return run(fragment(effect, host))


def read(path: str) -> FileState:
    return facts.parse_files([path], run(facts.ask_files([path])))[path]


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777
