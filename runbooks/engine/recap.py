"""How a run went, host by host, and the exit code that comes of it."""

from msgspec import Struct, field

from runbooks.core.effects import BROKER
from runbooks.core.errors import ExitCode
from runbooks.core.model import Snapshot, Unreachable
from runbooks.core.reporter import Tally
from runbooks.engine.context import Session


class Recap(Struct):
    """How it went on every host, and in the broker."""

    tallies: dict[str, Tally] = field(default_factory=dict)

    def at(self, host: str) -> Tally:
        return self.tallies.setdefault(host, Tally())

    @property
    def exit_code(self) -> ExitCode:
        failed = any(tally.failed or tally.blocked for tally in self.tallies.values())
        gone = any(tally.unreachable for tally in self.tallies.values())
        if failed and gone:
            return ExitCode.FAILED_AND_UNREACHABLE
        if failed:
            return ExitCode.FAILED
        if gone:
            return ExitCode.UNREACHABLE
        return ExitCode.OK


def start_recap(session: Session, snapshot: Snapshot) -> Recap:
    """A recap with a line for every host, and what does not answer marked, also the broker."""
    recap = Recap()
    for host in session.fleet.hosts:
        tally = recap.at(host.name)
        if isinstance(snapshot.hosts.get(host.name), Unreachable):
            tally.unreachable = 1
    if snapshot.broker and snapshot.broker.is_away:
        recap.at(BROKER).unreachable = 1
    return recap
