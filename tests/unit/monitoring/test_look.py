"""What a look's figures say of the nodes."""

from contextlib import closing

from runbooks.core.model import Snapshot
from runbooks.core.settings import Worker
from runbooks.monitoring.history import History
from runbooks.monitoring.look import look_of
from tests.unit.fleets import NOW, make_broker, make_fleet, make_host


def test_a_solo_worker_at_its_task_is_neither_silent_nor_missed_by_its_queue() -> None:
    fleet = make_fleet(
        make_host(workers=(Worker(name="high", queues=("high_q",), options=("-P", "solo")),))
    )
    broker = make_broker(fleet, nodes={}, consumer_ages_s=(400,))
    with closing(History(None)) as history:
        look = look_of(fleet, Snapshot(NOW, broker, {}), history)
    assert (look.silent_nodes, look.queues[0].consumers) == ((), 1)
