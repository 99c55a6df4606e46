"""Processes, services, nodes and the broker's connections, matched."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import (
    BrokerPlace,
    CeleryProcess,
    Census,
    Connection,
    Kind,
    Manager,
    Options,
    Unit,
)
from runbooks.core.errors import Trouble
from runbooks.core.model import BrokerState, Client, NodeState, NotAsked, Snapshot
from runbooks.diagnosis.census import Row, SeenBy, table
from tests.unit.fleets import NOW, make_broker, make_fleet, make_host, make_snapshot, make_state

UNITS = {"old.service": Unit("old.service", names_celery=True)}
OURS = BrokerPlace("127.0.0.1", 1, 0)  # as make_fleet has it


def a_process(
    pid: int = 100, kind: Kind = Kind.MAIN, *, node: str = "", role: Any = "worker", **more: Any
) -> CeleryProcess:
    values = {"inner_pid": pid, "parent": 1, "here": True} | more
    return CeleryProcess(pid, 4000, NOW - 500, "S", kind, Options(role, "shop", node), **values)


def rows_of(
    *processes: CeleryProcess,
    nodes: dict[str, NodeState] | None = None,
    on: tuple[str, ...] = ("web1",),
    **broker: Any,
) -> tuple[Row, ...]:
    """The table of a fleet whose hosts all have these processes; pid 100 is the service `high`, 101
    is beat.
    """
    fleet = make_fleet(*(make_host(name) for name in on))
    states = {host.name: make_state(host, census=Census(processes, UNITS)) for host in fleet.hosts}
    answering = {"nodes": nodes} if nodes is not None else {}
    return table(
        fleet, make_snapshot(fleet, broker=make_broker(fleet, **answering, **broker), hosts=states)
    )


def a_node(name: str = "high@web1", *pids: int, **more: Any) -> dict[str, NodeState]:
    return {name: NodeState(name, frozenset(), frozenset({"high_q"}), pids=frozenset(pids), **more)}


def test_a_service_its_process_and_its_node_are_one_row() -> None:
    pool = a_process(110, Kind.CHILD, parent=100)
    worker, beat = rows_of(
        a_process(), pool, a_process(101, Kind.BEAT, role="beat"), nodes=a_node("high@web1", 100)
    )
    assert worker.process
    assert (worker.host, worker.service, worker.expected, worker.process.pid) == (
        "web1",
        "high",
        True,
        100,
    )
    assert [one.pid for one in worker.below] == [110]
    assert worker.answer
    assert (worker.node, worker.broker, worker.seen_by, worker.at_ours) == (
        "high@web1",
        OURS,
        SeenBy.ANSWER,
        True,
    )
    assert (beat.service, beat.node, beat.answer, beat.broker) == ("beat", "", None, None)


def test_a_service_without_a_process_and_a_node_without_one_have_rows_of_their_own() -> None:
    *services, node, away = rows_of(nodes=a_node("stray@web1", 7) | a_node("stray@elsewhere", 8))
    assert [(row.service, row.expected, row.process) for row in services] == [
        ("high", True, None),
        ("beat", True, None),
    ]
    assert [(row.host, row.node, row.process) for row in (node, away)] == [
        ("web1", "stray@web1", None), ("", "stray@elsewhere", None),
    ]  # fmt: skip


def test_a_service_whose_node_answers_is_not_said_to_be_without_one_where_its_process_was_not_seen() -> (
    None
):
    high, beat = rows_of(nodes=a_node("high@web1", 7))
    assert (high.service, high.process, high.node, high.at_ours) == (
        "high",
        None,
        "high@web1",
        True,
    )
    assert high.answer
    assert beat.answer is None


def test_a_host_that_was_not_asked_for_its_processes_has_no_rows() -> None:
    fleet = make_fleet()
    assert [row.node for row in table(fleet, make_snapshot(fleet))] == ["high@web1"]
    assert table(fleet, Snapshot(NOW, None, {"web1": make_state(fleet.hosts[0])})) == ()


def test_of_two_hosts_processes_with_one_pid_the_nodes_name_shows_which_answered() -> None:
    rows = rows_of(a_process(), nodes=a_node("high@web1", 100), on=("web1", "web2"))
    assert [(row.host, bool(row.answer)) for row in rows if row.process] == [
        ("web1", True),
        ("web2", False),
    ]


def test_in_containers_where_all_have_one_pid_that_of_the_pool_decides() -> None:
    """And where it does not, none of them is taken for the node."""
    mains = [
        a_process(pid, inner_pid=1, container=f"{pid}" * 20, engine=Manager.DOCKER)
        for pid in (100, 200)
    ]
    pools = [
        a_process(main.pid + 1, Kind.CHILD, parent=main.pid, inner_pid=main.pid // 10)
        for main in mains
    ]
    answered = a_node("celery@235e9cc6527c", 1, pool_pids=frozenset({20}))
    rows = rows_of(*mains, *pools, nodes=answered)
    assert [row.process.pid for row in rows if row.process and row.answer] == [200]
    rows = rows_of(*mains, nodes=answered)
    assert [row.node for row in rows if row.answer and not row.process] == ["celery@235e9cc6527c"]
    assert not any(row.answer for row in rows if row.process)


def test_a_process_that_its_command_line_says_is_another_node_is_not_the_one() -> None:
    rows = rows_of(a_process(node="low@%h"), nodes=a_node("high@web1", 100))
    assert [bool(row.answer) for row in rows if row.process] == [False]


REDIS = "10.0.0.9:6379"
CONNECTED = a_process(200, node="low@web1", connections=(Connection("10.0.0.1:5", REDIS),))
TOLD = BrokerPlace("redis", 6380, 2)


@pytest.mark.parametrize(
    ("clients", "named", "broker", "seen_by", "at_ours"),
    [
        ((Client("10.0.0.1:5", 0, True, REDIS),), None, OURS, SeenBy.CLIENT_LIST, True),
        ((Client("10.0.0.1:5", 3, True, REDIS),), None, replace(OURS, db=3), SeenBy.CLIENT_LIST, False),
        ((Client("10.0.0.1:5", 3, False, REDIS),), OURS, OURS, SeenBy.GIVEN, True),  # at its results
        ((Client("10.0.0.1:5", 3, False, REDIS),), None, replace(OURS, db=None), SeenBy.CLIENT_LIST, None),
        ((Client("10.0.0.2:5", 3, True, REDIS),), TOLD, TOLD, SeenBy.GIVEN, None),  # perhaps the same server
        ((Client("10.0.0.1:5", 0, True, "10.0.0.9:6380"),), None, None, None, None),  # a port is free for each server
        (None, TOLD, TOLD, SeenBy.GIVEN, None),
        (None, OURS, OURS, SeenBy.GIVEN, True),
        (None, replace(OURS, db=4), replace(OURS, db=4), SeenBy.GIVEN, False),
        (None, replace(OURS, port=2), replace(OURS, port=2), SeenBy.GIVEN, False),
        (None, None, None, None, None),
    ],
)  # fmt: skip
def test_which_broker_a_silent_process_talks_to_is_known_or_unknown(
    clients: tuple[Client, ...] | None,
    named: BrokerPlace | None,
    broker: BrokerPlace | None,
    seen_by: SeenBy | None,
    at_ours: bool | None,
) -> None:
    rows = rows_of(replace(CONNECTED, named_broker=named), nodes={}, clients=clients)
    (row,) = (row for row in rows if row.process)
    assert (row.broker, row.seen_by, row.at_ours) == (broker, seen_by, at_ours)


def test_while_the_broker_accepts_no_one_a_process_is_at_the_db_that_it_was_started_with() -> None:
    fleet = make_fleet(make_host(), broker_url="redis://127.0.0.1:1/3")
    process = a_process(named_broker=replace(OURS, db=3))
    host = make_state(fleet.hosts[0], census=Census((process,), UNITS))
    away = BrokerState.not_seen(
        NotAsked(Trouble.WRONG_PASSWORD, "it refuses", "check the password")
    )
    (row,) = (
        row
        for row in table(fleet, make_snapshot(fleet, broker=away, hosts={"web1": host}))
        if row.process
    )
    assert row.at_ours


def test_a_connection_that_is_forwarded_is_known_by_the_port_of_the_inventorys_url() -> None:
    """A published port of a container: the process sees the host's address, the broker its own."""
    forwarded = replace(CONNECTED, connections=(Connection("10.0.0.1:5", "10.0.0.3:1"),))
    (row,) = (
        row
        for row in rows_of(
            forwarded, nodes={}, clients=(Client("10.0.0.1:5", 0, True, "172.17.0.2:6379"),)
        )
        if row.process
    )
    assert row.at_ours


def test_a_connection_that_takes_messages_shows_the_db_and_two_that_do_not_leave_it_unknown() -> (
    None
):
    two = replace(CONNECTED, connections=(*CONNECTED.connections, Connection("10.0.0.1:6", REDIS)))  # type: ignore[misc]
    backend, consumer = Client("10.0.0.1:6", 1, False, REDIS), Client("10.0.0.1:5", 3, True, REDIS)
    (row,) = (row for row in rows_of(two, nodes={}, clients=(backend, consumer)) if row.process)
    assert row.broker == replace(OURS, db=3)
    (row,) = (
        row
        for row in rows_of(
            two, nodes={}, clients=(backend, replace(consumer, takes_messages=False))
        )
        if row.process
    )
    assert (row.broker, row.at_ours) == (replace(OURS, db=None), None)


def test_twins_are_reported_with_who_started_each_and_what_is_left_of_a_worker_is_not_one() -> None:
    left = a_process(300, Kind.CHILD, leftover=True, node="high@web1")
    rows = rows_of(
        a_process(node="high@web1"),
        a_process(200, node="high@web1", unit="old.service"),
        left,
        nodes={},
    )
    first, second, third = (row for row in rows if row.process)
    assert (first.twins, second.twins, third.twins) == ((("web1", 200),), (("web1", 100),), ())
    assert second.by
    assert (second.by.manager, second.by.name, second.service) == (
        Manager.SYSTEMD,
        "old.service",
        "",
    )


def test_workers_of_one_name_at_different_brokers_are_not_twins() -> None:
    elsewhere = a_process(200, node="high@web1", named_broker=replace(OURS, port=2))
    assert [
        row.twins
        for row in rows_of(a_process(node="high@web1"), elsewhere, nodes={})
        if row.process
    ] == [(), ()]


CONTAINED = a_process(200, node="high@c1", container="c1" * 32, engine=Manager.DOCKER, inner_pid=1)


def test_a_container_that_works_with_another_port_is_of_another_installation() -> None:
    """Unless its node answers, or has a connection, at the inventory's broker: a published port may
    differ.
    """
    elsewhere = replace(CONTAINED, named_broker=BrokerPlace("redis", 6379, 0))
    (row,) = (row for row in rows_of(elsewhere, nodes={}) if row.process)
    assert (row.of_app, row.at_ours) == (False, False)
    same_port = replace(CONTAINED, named_broker=BrokerPlace("redis", 1, 0))
    for unknown in (same_port, CONTAINED):
        assert [row.of_app for row in rows_of(unknown, nodes={}) if row.process] == [True]
    (row,) = (row for row in rows_of(elsewhere, nodes=a_node("high@c1", 1)) if row.process)
    assert (row.of_app, row.at_ours) == (True, True)
    connected = replace(elsewhere, connections=CONNECTED.connections)
    (row,) = (
        row
        for row in rows_of(connected, nodes={}, clients=(Client("10.0.0.1:5", 0, True, REDIS),))
        if row.process
    )
    assert (row.of_app, row.at_ours) == (True, True)


@pytest.mark.parametrize(
    ("app", "here", "of_app"),
    [
        ("shop.celery", True, True),
        ("shop.celery", None, None),
        (
            "shop.celery",
            False,
            False,
        ),  # another installation: the inventory's commands know nothing of units
        ("bank", True, False),
        ("", True, True),
        ("", None, None),
        ("", False, False),
    ],
)
def test_whose_a_process_is_that_does_not_name_its_application_may_be_unknown(
    app: str, here: bool | None, of_app: bool | None
) -> None:
    one = a_process(200, here=here)
    (row,) = (
        row
        for row in rows_of(replace(one, options=replace(one.options, app=app)), nodes={})
        if row.process
    )
    assert row.of_app is of_app
