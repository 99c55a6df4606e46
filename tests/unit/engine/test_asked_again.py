"""What a host is asked once more: what its nodes' answers leave open, and nothing where all is
well.
"""

from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind, Options
from runbooks.core.model import NodeState, ServiceState, Unreachable
from runbooks.engine.asked_again import Open, still_open, unnamed
from tests.unit.fleets import (
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
)

HOST = make_host()


def process(
    pid: int, kind: Kind = Kind.MAIN, options: Options | None = None, parent: int = 1
) -> CeleryProcess:
    options = options or Options("worker", "shop")
    return CeleryProcess(pid, 4000, NOW - 500, "S", kind, options, parent, inner_pid=pid, here=True)


SEEN = process(100)
BEAT = process(110, Kind.BEAT, Options("beat", "shop"))
ELSEWHERE = process(120, options=Options("worker", "bank", node="pay@web1"))
HIDDEN = replace(process(121), here=None)


def asked(name: str, *pids: int, pool: tuple[int, ...] = ()) -> dict[int, str]:
    node = NodeState(
        name, frozenset(), frozenset(), pids=frozenset(pids), pool_pids=frozenset(pool)
    )
    return unnamed(HOST, make_state(HOST, census=Census((SEEN,))), {name: node})


def found(
    *processes: CeleryProcess, answers_as: str = "high@web1", queues: str = "high_q", pid: int = 100
) -> Open | None:
    """What is open where the service `high` runs as pid 100, and a node answers from `pid`."""
    fleet, state = make_fleet(HOST), make_state(HOST, census=Census(processes))
    service = ServiceState(100, NOW - 500, "", pids={100: 100})
    state = replace(state, services={**state.services, "high": service})
    node = NodeState(answers_as, frozenset(TASKS), frozenset({queues}), pids=frozenset({pid}))
    broker = replace(make_broker(fleet), nodes={answers_as: node} if answers_as else {})
    return still_open(fleet, make_snapshot(fleet, broker=broker, hosts={"web1": state})).get("web1")


def test_nothing_is_open_where_the_worker_answers_with_a_beat_and_another_applications_worker_beside_it() -> (
    None
):
    assert found(SEEN, BEAT, ELSEWHERE, HIDDEN) is None


def test_the_broker_of_workers_that_do_not_answer_is_open() -> None:
    assert found(SEEN, BEAT, ELSEWHERE, answers_as="") == Open(silent=(100,), logs={"high": 100})
    assert found(SEEN, process(130)) == Open(silent=(130,))


def test_another_applications_worker_is_asked_for_its_broker_where_its_name_is_that_of_ours() -> (
    None
):
    namesake = process(140, options=Options("worker", "bank", node="high@web1"))
    assert found(SEEN, namesake) == Open(silent=(140,))


def test_the_files_that_start_a_worker_are_searched_where_it_differs_from_the_inventory() -> None:
    assert found(SEEN, queues="other_q") == Open(lines=True)
    assert found(SEEN, answers_as="celery@web1") == Open(lines=True)
    pool = [process(101 + n, Kind.CHILD, parent=100) for n in range(9)]
    assert found(SEEN, *pool) == Open(lines=True)


def test_only_what_the_census_lacks_is_asked_for_and_only_where_the_node_says_it_is() -> None:
    assert asked("run@web1", 200, pool=(201, 202)) == dict.fromkeys((200, 201, 202), "run@web1")
    assert asked("high@web1", 100, pool=(101,)) == {}
    assert asked("run@web2", 200) == {}
    assert asked("run@web1") == {}
    assert found(BEAT, pid=200) == Open(unnamed={200: "high@web1"}, lines=True)


def test_a_host_that_was_not_seen_is_not_asked_again() -> None:
    node = NodeState("run@web1", frozenset(), frozenset(), pids=frozenset({200}))
    assert unnamed(HOST, Unreachable("gone"), {"run@web1": node}) == {}
    assert unnamed(HOST, make_state(HOST), {"run@web1": node}) == {}
    fleet = make_fleet(HOST)
    lacking = replace(
        make_broker(fleet), nodes={"high@web1": NodeState("high@web1", frozenset(), frozenset())}
    )
    assert (
        still_open(fleet, make_snapshot(fleet, broker=lacking, hosts={"web1": Unreachable("gone")}))
        == {}
    )
