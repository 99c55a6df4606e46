"""Which failures cannot be sent again, and why."""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.broker.results import StoredResult
from runbooks.core.model import NodeState
from runbooks.retry import _why_not

FAILED = StoredResult(
    id="id-1",
    state="FAILURE",
    value=None,
    traceback="",
    error="ValueError",
    message="no",
    task="shop.bill",
    args=[7],
    kwargs={},
    worker="one@here",
    queue="bills",
    retries=0,
    ended_at=1.0,
    in_group=False,
    has_parent=False,
)
NODE = NodeState("one@here", frozenset({"shop.bill"}), frozenset({"bills"}))


@pytest.mark.parametrize(
    ("changes", "nodes", "why"),
    [
        ({}, (NODE,), ""),
        ({"task": None, "args": None, "kwargs": None}, (NODE,), "result_extended is off"),
        ({"args": "(7,)"}, (NODE,), "are not stored as JSON"),
        ({"in_group": True}, (NODE,), "belongs to a group or chord"),
        ({"queue": "mail"}, (NODE,), "no node that answers consumes mail"),
        ({}, (NODE, replace(NODE, registered=frozenset())), "would discard it"),
    ],
)
def test_what_cannot_be_sent_again_safely_is_left_with_the_reason(
    changes: dict[str, Any], nodes: tuple[NodeState, ...], why: str
) -> None:
    found = _why_not(replace(FAILED, **changes), {str(n): node for n, node in enumerate(nodes)})
    assert (bool(found), why in found) == (bool(why), True), found
