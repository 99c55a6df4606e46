"""Numbers and the words that they count agree in every sentence of a finding and its fix."""

import re

from msgspec.structs import replace

from runbooks.core.model import Finding, Hoard, Process, QueueState, Selection, TaskCount
from runbooks.core.settings import Limits, Thresholds, Worker
from tests.unit.diagnosis.test_diagnose import findings
from tests.unit.fleets import NOW, make_broker, make_fleet, make_host, make_state

HOST = make_host(workers=(Worker(name="high", queues=("high_q",)),))
FLEET = make_fleet(HOST, thresholds=Thresholds(queues={"high_q": Limits(depth=0)}))
MANY = re.compile(
    r"\b1 (?:of \S+ )?(?:\w+"
    r" )?(?:messages|items|processes|tasks|nodes|hosts|files|workers|connections|clients|keys|"
    r"are|were|wait|stand|stay|changes)\b"
)


def found(count: int) -> tuple[Finding, ...]:
    """A queue, a broker and a host with `count` of everything that is counted."""
    picked = Selection("late", count, {"shop.tasks.bill": count})
    queue = QueueState(
        "high_q", {"high_q": count}, {"shop.tasks.bill": TaskCount(count, 9, count, NOW - 9e6, None, 0)}, (picked,),
        Selection("malformed", count, {}), 0, aside=count, unacked=(picked,), too_large={"shop.tasks.bill": count},
    )  # fmt: skip
    node = replace(make_broker(FLEET).nodes["high@web1"], queues=frozenset(), holds=frozenset())
    other = replace(node, name="low@web2", queues=frozenset({"high_q"}))
    broker = make_broker(
        FLEET, queues={"high_q": queue}, nodes={"high@web1": node, "low@web2": other}, unacked=count,
        oldest_unacked_at=NOW - 9e6, orphans={"high_q": count},
        hoards=(Hoard("high@web1", "high_q", count, NOW - 900),),
        other_lists={"stray": (count, True), "foreign": (count, False)}, depths_by_db={3: count},
    )  # fmt: skip
    state = make_state(HOST)
    leaked = tuple(Process(n, n, "celery") for n in range(count))
    services = {name: replace(service, leaked=leaked) for name, service in state.services.items()}
    return findings(FLEET, broker=broker, hosts={"web1": replace(state, services=services)})


def sentences(of: tuple[Finding, ...]) -> list[str]:
    changes = [change.summary for finding in of for change in finding.fix]
    return [text for finding in of for text in (finding.summary, *finding.evidence)] + changes


def test_one_is_not_reported_as_many() -> None:
    one = found(1)
    assert len({finding.code for finding in one}) > 8
    assert [text for text in sentences(one) if MANY.search(text)] == []
    assert "1 message is fetched and not acknowledged" in sentences(one)


def test_many_are_not_reported_as_one() -> None:
    wrong = re.compile(
        r"\b[2-9] (?:\w+ )?(?:message|item|process|task|node|file|is|was|waits|stays)\b"
    )
    assert [text for text in sentences(found(3)) if wrong.search(text)] == []
