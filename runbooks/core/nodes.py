"""The nodes that answer, under the names of the inventory, and how names and patterns match."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from types import MappingProxyType

from msgspec.structs import replace

from runbooks.core.census import Census, Kind
from runbooks.core.containers import Container
from runbooks.core.model import NodeState
from runbooks.core.settings import Worker

_HOST = re.compile(r"%[hnd]")
"""What Celery replaces by the host's name. **Source:** celery 5.7.0 `utils/nodenames.py:
host_format`.
"""

_IsIt = Callable[[str, NodeState, "Pids"], bool]
Pids = Mapping[str, Collection[int]]
"""A worker's name here → the processes of its service, in their own numbering; only of hosts that
were checked.
"""


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern of the inventory matches the name of a node."""
    return name == pattern or fnmatchcase(name, _HOST.sub("*", pattern))


def by_patterns(
    patterns: Collection[str], nodes: Mapping[str, NodeState], known: Iterable[str]
) -> dict[str, NodeState]:
    """The nodes that match one of these patterns and are not `known` workers of hosts."""
    taken = {*known}
    found: dict[str, NodeState] = {}
    for name, node in nodes.items():
        if name not in taken and any(fits(node.name, pattern) for pattern in patterns):
            found[name] = node
    return found


def which_may_be(worker: Worker, nodes: Mapping[str, NodeState], known: Iterable[str]) -> list[str]:
    """The nodes that match a worker's pattern and are not `known` workers of the inventory."""
    return sorted(node.name for node in by_patterns([worker.node or ""], nodes, known).values())


def may_be(given: str, pattern: str) -> bool:
    """Whether a worker started with this name may match the pattern; only it knows its `%h`.

    **Source:** celery 5.7.0 `utils/nodenames.py: default_nodename`: a name without `@` is the host
    of node `celery`.
    """
    text = given.strip("'\"")
    if "@" not in text:
        text = f"celery@{text}"
    if "@" not in pattern:
        return True
    given_name, _, given_host = text.partition("@")
    name, _, host = pattern.partition("@")
    name_may = "%" in given_name or fits(given_name, name)
    host_may = "%" in given_host or fits(given_host, host)
    return name_may and host_may


def from_containers(
    containers: Sequence[Container], census: Census, nodes: Mapping[str, NodeState]
) -> tuple[str, ...]:
    """The nodes that answer from these containers.

    Many containers have a process with the same number, and a worker with the same command. Only
    the host in the node's name, or the processes of the pool, identify one; the container's name
    does not matter.
    """
    found = list[str]()
    for one in containers:
        inside = [process for process in census.processes if process.container == one.id]
        inner = {process.inner_pid for process in inside}
        mains = [process for process in inside if process.kind is Kind.MAIN]
        names = {named(process.options.node, one.hostname) for process in mains}
        likely = [name for name, node in nodes.items() if node.pids <= inner and node.pids]
        sure = [name for name in likely if name in names]
        if not sure:
            pools = {name: nodes[name].pool_pids for name in likely}
            sure = [name for name, pids in pools.items() if pids and pids <= inner]
        if len(sure) == 1:
            found += sure
    return tuple(dict.fromkeys(found))


def named(given: str, hostname: str) -> str:
    """The node name of a worker that was started with this name (`-n`, or its title) on this host.

    **Source:** celery 5.7.0 `utils/nodenames.py: default_nodename, host_format`: a name without `@`
    is the host of the node `celery`.
    """
    name, at, host = given.partition("@")
    if not at:
        name = "celery"
        host = given or hostname
    domain = hostname.partition(".")[2]
    for sign, text in (("%h", hostname), ("%n", name), ("%d", domain)):
        host = host.replace(sign, text)
    return f"{name}@{host}"


def together(nodes: Sequence[NodeState]) -> NodeState:
    """Several nodes of one service as one: what all register and consume, and what any holds."""
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
    """The nodes by their names in the inventory, `NAME@HOST` of each worker; others by their own.

    A worker that Celery knows by another name (`Worker.node`) is the one node that matches: the one
    that answers from a process of its service; otherwise the only one that names its host;
    otherwise the only one left. If several are left, the worker has no node. Workers on hosts that
    were not checked all answer if as many nodes are left; which is which is not known. A node that
    answers from the containers of a worker (`in_containers`) is that worker under any name.
    """
    workers = list(workers)
    if in_containers:
        return _with_containers(workers, nodes, pids, in_containers)
    patterns = {label: worker.node for label, worker in workers if worker.node}
    if not patterns:
        return dict(nodes)
    taken = {label for label, worker in workers if not worker.node}
    free = {name: node for name, node in nodes.items() if name not in taken}
    found: dict[str, str] = {}
    for is_it in (_by_process, _by_host, _by_what_is_left):
        open_patterns = {label: one for label, one in patterns.items() if label not in found}
        found |= _sure(open_patterns, free, is_it, pids)
        free = {name: node for name, node in free.items() if name not in found.values()}
    for pattern in dict.fromkeys(patterns.values()):
        labels = [label for label, own in patterns.items() if own == pattern]
        labels = [label for label in labels if label not in found and label not in pids]
        fitting = sorted(name for name in free if fits(name, pattern))
        if len(labels) <= len(fitting):
            found |= dict(zip(labels, fitting, strict=False))
            free = {name: node for name, node in free.items() if name not in found.values()}
    known = {name: node for name, node in nodes.items() if name in taken}
    known |= {label: nodes[name] for label, name in found.items()}
    for name, node in free.items():
        known[f"{name} (not from the inventory)" if name in patterns else name] = node
    return known


def _with_containers(
    workers: Sequence[tuple[str, Worker]],
    nodes: Mapping[str, NodeState],
    pids: Pids,
    in_containers: Mapping[str, Sequence[str]],
) -> dict[str, NodeState]:
    """The nodes as in `under_their_names`; those of containers are their workers."""
    merged: dict[str, NodeState] = {}
    taken: set[str] = set()
    for label, names in in_containers.items():
        taken.update(names)
        if names:
            merged[label] = together([nodes[name] for name in names])
    taken.update(merged)
    others = {name: node for name, node in nodes.items() if name not in taken}
    rest = [(label, worker) for label, worker in workers if label not in merged]
    return merged | under_their_names(rest, others, pids)


def _sure(
    patterns: Mapping[str, str], free: Mapping[str, NodeState], is_it: _IsIt, pids: Pids
) -> dict[str, str]:
    """The workers that match only one node, if no other of them matches that node."""
    possible: dict[str, list[str]] = {}
    for label, pattern in patterns.items():
        fitting = {name: node for name, node in free.items() if fits(name, pattern)}
        possible[label] = [name for name, node in fitting.items() if is_it(label, node, pids)]
    claims = Counter(chain.from_iterable(possible.values()))
    single = {label: names[0] for label, names in possible.items() if len(names) == 1}
    return {label: name for label, name in single.items() if claims[name] == 1}


def _by_process(label: str, node: NodeState, pids: Pids) -> bool:
    return not node.pids.isdisjoint(pids.get(label, ()))


def _by_host(label: str, node: NodeState, pids: Pids) -> bool:
    here, place = (name.rpartition("@")[2] for name in (label, node.name))
    same = here == place or here.split(".")[0] == place.split(".")[0]
    return same and _by_what_is_left(label, node, pids)


def _by_what_is_left(label: str, node: NodeState, pids: Pids) -> bool:
    """Whether it may be the worker: not if it answers from processes other than the service's."""
    own = pids.get(label, ())
    return not (own and node.pids) or _by_process(label, node, pids)
