"""A run that changes something: what belongs together from its first line in the journal to its
recap.
"""

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
    """A run that goes on, and the session that it belongs to."""

    session: Session
    journal: Journal
    lock: "FleetLock"
    """The fleet's, which it holds."""
    recap: Recap
    """How it goes so far."""


@contextmanager
def recorded(
    session: Session,
    recap: Recap,
    machines: Mapping[str, str] = MappingProxyType({}),
    still_so: Callable[[], None] | None = None,
) -> Iterator[Run]:
    """A new run: the fleet's lock is held and the journal open; both end with the block, however it
    ends.

    `machines` are the hosts that it is to change, each with its `HostState.machine`. `still_so` is
    called once the lock is held, and raises where nothing is to be changed after all.
    """
    run_id = new_run_id(session.options.state_directory)
    with session.broker.lock(run_id, session.options.verb) as lock:
        if still_so:
            still_so()
        journal = session.begin(run_id, machines)
        with closing_journal(journal):
            yield Run(session, journal, lock, recap)
