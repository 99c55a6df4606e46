"""The nodes that answer under the names that the inventory has for them, and what a name or a
pattern means.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

from msgspec.structs import replace

from runbooks.core.census import Census, Kind
from runbooks.core.containers import Container
from runbooks.core.model import NodeState
from runbooks.core.settings import Worker

_HOST = re.compile(r"%[hnd]")
"""What Celery puts the host's own name for. **Source:** celery 5.7.0 `utils/nodenames.py:
host_format`.
"""

Pids = Mapping[str, Collection[int]]
"""By a worker's name here the processes of its service, as they know themselves; only of hosts that
were looked at.
"""


def fits(name: str, pattern: str) -> bool:
    """Whether a node of this name is meant by a pattern of the inventory's."""
    return name == pattern or fnmatchcase(name, _HOST.sub("*", pattern))


def by_patterns(
    patterns: Collection[str], nodes: Mapping[str, NodeState], known: Iterable[str]
) -> dict[str, NodeState]:
    """The nodes that fit one of these patterns, and are none of the `known` workers of hosts."""
    free = {name: node for name, node in nodes.items() if name not in {*known}}
    return {
        name: node
        for name, node in free.items()
        if any(fits(node.name, pattern) for pattern in patterns)
    }


def which_may_be(worker: Worker, nodes: Mapping[str, NodeState], known: Iterable[str]) -> list[str]:
    """The nodes that fit a worker's pattern, of those that are none of the `known` workers of the
    inventory.
    """
    free = (node.name for name, node in nodes.items() if name not in {*known})
    return sorted(name for name in free if worker.node and fits(name, worker.node))


def may_be(given: str, pattern: str) -> bool:
    """Whether a worker that was started with this name may be a node that is meant: only the worker
    knows its `%h`.

    **Source:** celery 5.7.0 `utils/nodenames.py: default_nodename`: a name without `@` is the host
    of node `celery`.
    """
    text = given.strip("'\"")
    parts = text.split("@", 1) if "@" in text else ["celery", text]
    name, at, place = pattern.partition("@")
    wanted = [name, place] if at else ["*", "*"]
    return all("%" in part or fits(part, one) for part, one in zip(parts, wanted, strict=True))


def from_containers(
    containers: Sequence[Container], census: Census, nodes: Mapping[str, NodeState]
) -> tuple[str, ...]:
    """The nodes that answer from these containers, by the process and the name that its container
    gives it.

    Many containers have a process of the same number, and a worker of the same command. Only the
    host's part of the name, or the processes of the pool, tell them apart; a container's own name
    does not matter.
    """
    found = list[str]()
    for one in containers:
        inside = [process for process in census.processes if process.container == one.id]
        inner = {process.inner_pid for process in inside}
        names = {
            named(process.options.node, one.hostname)
            for process in inside
            if process.kind is Kind.MAIN
        }
        likely = [name for name, node in nodes.items() if node.pids <= inner and node.pids]
        sure = [name for name in likely if name in names] or [
            name for name in likely if nodes[name].pool_pids and nodes[name].pool_pids <= inner
        ]
        found += sure if len(sure) == 1 else []
    return tuple(dict.fromkeys(found))


def named(given: str, hostname: str) -> str:
    """What a worker that was started with this name (`-n`, or its title) calls itself where its
    host is called so.

    **Source:** celery 5.7.0 `utils/nodenames.py: default_nodename, host_format`: a name without `@`
    is the host of the node `celery`.
    """
    name, at, host = given.partition("@")
    if not at:
        name, host = "celery", given or hostname
    domain = hostname.partition(".")[2]
    for sign, text in (("%h", hostname), ("%n", name), ("%d", domain)):
        host = host.replace(sign, text)
    return f"{name}@{host}"


def together(nodes: Sequence[NodeState]) -> NodeState:
    """Several nodes of one service as one: it knows and consumes what all of them do, and holds
    what any does.
    """
    if len(nodes) == 1:
        return nodes[0]
    first, *others = nodes
    silent = any(node.holds is None for node in nodes)
    return replace(
        first,
        registered=first.registered.intersection(*(node.registered for node in others)),
        queues=first.queues.intersection(*(node.queues for node in others)),
        holds=None if silent else frozenset[str]().union(*(node.holds or () for node in nodes)),
        reserved=first.reserved.union(*(node.reserved for node in others)),
        later=first.later.union(*(node.later for node in others)),
        running=tuple(task for node in nodes for task in node.running),
        pids=first.pids.union(*(node.pids for node in others)),
        pool_pids=first.pool_pids.union(*(node.pool_pids for node in others)),
        names=tuple(node.name for node in nodes),
    )


def under_their_names(
    workers: Iterable[tuple[str, Worker]],
    nodes: Mapping[str, NodeState],
    pids: Pids,
    in_containers: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, NodeState]:
    """The nodes by the names that the inventory has for them, each worker's `NAME@HOST`; the others
    by their own.

    Where Celery knows a worker by another name (`Worker.node`), it is the one node that fits: the
    one that answers from a process of its service; else the only one that names its host; else the
    only one that is left. Of several that are left it is none. Of workers whose hosts were not
    looked at all answer where as many nodes are left; which is which nobody knows then. What
    answers from the containers of a worker (`in_containers`) is it, whatever its name.
    """
    workers = list(workers)
    if in_containers:
        merged = {
            label: together([nodes[name] for name in names])
            for label, names in in_containers.items()
            if names
        }
        taken_names = {name for names in in_containers.values() for name in names}
        others = {
            name: node
            for name, node in nodes.items()
            if name not in taken_names and name not in merged
        }
        rest = [(label, worker) for label, worker in workers if label not in merged]
        return merged | under_their_names(rest, others, pids)
    patterns = {label: worker.node for label, worker in workers if worker.node}
    if not patterns:
        return dict(nodes)
    taken = {label for label, worker in workers if not worker.node}
    free = {name: node for name, node in nodes.items() if name not in taken}
    found: dict[str, str] = {}
    for is_it in (_by_process, _by_host, _by_what_is_left):
        found |= _sure(
            {label: one for label, one in patterns.items() if label not in found}, free, is_it, pids
        )
        free = {name: node for name, node in free.items() if name not in found.values()}
    for pattern in dict.fromkeys(patterns.values()):
        labels = [
            one
            for one, own in patterns.items()
            if own == pattern and one not in found and one not in pids
        ]
        fitting = sorted(name for name in free if fits(name, pattern))
        if len(labels) <= len(fitting):
            found |= dict(zip(labels, fitting, strict=False))
            free = {name: node for name, node in free.items() if name not in found.values()}
    own = {label: nodes[name] for label, name in found.items()}
    others = {
        f"{name} (none of the inventory's)" if name in patterns else name: node
        for name, node in free.items()
    }
    return {name: node for name, node in nodes.items() if name in taken} | own | others


_IsIt = Callable[[str, NodeState, Pids], bool]


def _sure(
    patterns: Mapping[str, str], free: Mapping[str, NodeState], is_it: _IsIt, pids: Pids
) -> dict[str, str]:
    """The workers that can be one node alone, where that can be no other of them."""
    possible = {
        label: [
            name for name, node in free.items() if fits(name, pattern) and is_it(label, node, pids)
        ]
        for label, pattern in patterns.items()
    }
    claims = Counter(name for names in possible.values() for name in names)
    return {
        label: names[0]
        for label, names in possible.items()
        if len(names) == 1 and claims[names[0]] == 1
    }


def _by_process(label: str, node: NodeState, pids: Pids) -> bool:
    return not node.pids.isdisjoint(pids.get(label, ()))


def _by_host(label: str, node: NodeState, pids: Pids) -> bool:
    here, place = (name.rpartition("@")[2] for name in (label, node.name))
    same = here == place or here.split(".")[0] == place.split(".")[0]
    return same and _by_what_is_left(label, node, pids)


def _by_what_is_left(label: str, node: NodeState, pids: Pids) -> bool:
    """Unless it answers from processes, and those of the service are known, and are others."""
    own = pids.get(label, ())
    return not (own and node.pids) or _by_process(label, node, pids)
