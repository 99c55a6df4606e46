"""A run that changes something, from the first line of its journal to its recap."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct

from runbooks.engine.context import Session, closing_journal
from runbooks.engine.journal import Journal, new_run_id
from runbooks.engine.recap import Recap

if TYPE_CHECKING:
    from runbooks.broker.server.lock import FleetLock


class Run(Struct, frozen=True):
    """A run in progress, with its session."""

    session: Session
    journal: Journal
    lock: "FleetLock"
    """The fleet's lock, which the run holds."""
    recap: Recap
    """Its results so far."""


@contextmanager
def recorded(
    session: Session,
    recap: Recap,
    machines: Mapping[str, str] = MappingProxyType({}),
    still_so: Callable[[], None] | None = None,
) -> Iterator[Run]:
    """Begin a run: hold the fleet's lock and open the journal until the block ends.

    `machines` are the hosts that it will change, each with its `HostState.machine`. `still_so` is
    called once the lock is held, and raises if nothing has to be changed after all.
    """
    run_id = new_run_id(session.options.state_directory)
    with session.broker.lock(run_id, session.options.verb) as lock:
        if still_so:
            still_so()
        journal = session.begin(run_id, machines)
        with closing_journal(journal):
            yield Run(session, journal, lock, recap)
