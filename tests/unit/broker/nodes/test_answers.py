"""What nodes answer, and what it means."""

from typing import Any

from runbooks.broker.nodes.answers import node_of
from runbooks.core.model import Binding


def queue(name: str, exchange: str, kind: str, routing_key: str) -> dict[str, Any]:
    """A queue, as `inspect active_queues` lists it."""
    return {
        "name": name,
        "exchange": {"name": exchange, "type": kind},
        "routing_key": routing_key,
    }


def test_a_queue_is_bound_by_its_exchange_and_key_and_one_of_a_fanout_has_no_binding() -> None:
    consumed = [
        queue("mail", "mail", "direct", "mail"),
        queue("orders", "shop", "topic", "order.*"),
        queue("news", "all", "fanout", ""),
    ]
    answers = {"active_queues": consumed, "stats": {}, "registered": [], "active": []}
    node = node_of("w@here", 1, {name: {"w@here": [said]} for name, said in answers.items()})
    assert node.queues == {"mail", "orders", "news"}
    assert node.bindings == {
        Binding("mail", "direct", "mail", "mail"),
        Binding("shop", "topic", "order.*", "orders"),
    }
