"""The recap of a run: its results by host, and its exit code."""

from msgspec import Struct, field

from runbooks.core.effects import BROKER
from runbooks.core.errors import ExitCode
from runbooks.core.model import Snapshot, Unreachable
from runbooks.core.reporter import Tally
from runbooks.engine.context import Session


class Recap(Struct):
    """The results on every host, and in the broker."""

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
    """Return a recap with a line for every host; mark hosts and a broker that do not answer."""
    recap = Recap()
    for host in session.fleet.hosts:
        tally = recap.at(host.name)
        if isinstance(snapshot.hosts.get(host.name), Unreachable):
            tally.unreachable = 1
    if snapshot.broker and snapshot.broker.is_away:
        recap.at(BROKER).unreachable = 1
    return recap
