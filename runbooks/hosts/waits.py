"""Which processes wait for themselves alone: all their threads wait for locks that no other process
can release.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from runbooks.hosts.script import Answer, shell

_FUTEX = ("202", "98", "422")
_PRIVATE = 128
_COMMAND = 127
_WAITS = (0, 9)


def ask_waits(pids: Iterable[int]) -> str:
    """**Source:** proc(5), `/proc/PID/task/TID/syscall`: who may trace a process may read it."""
    return shell("waits", *map(str, pids))


def parse_waits(answer: Answer) -> frozenset[int]:
    """The processes whose threads all wait for a private lock without a time limit, and none has
    run meanwhile.

    What cannot be read is left out.
    """
    first, _, second = answer.out.decode(errors="replace").partition("---\n")
    before, after = _calls(first), _calls(second)
    return frozenset(
        pid
        for pid, calls in before.items()
        if calls == after.get(pid) and all(map(_waits_for_ever, calls.values()))
    )


def _calls(lines: str) -> dict[int, Mapping[str, tuple[str, ...]]]:
    found = defaultdict[int, dict[str, tuple[str, ...]]](dict)
    for line in lines.splitlines():
        pid, thread, *call = line.split()
        found[int(pid)][thread] = tuple(call)
    return dict(found)


def _waits_for_ever(call: tuple[str, ...]) -> bool:
    """Whether it is a wait for a futex of this process alone, without a time limit.

    **Source:** futex(2): FUTEX_WAIT, FUTEX_WAIT_BITSET, FUTEX_PRIVATE_FLAG; its numbers are those
    of x86-64, of arm64 and riscv64, and of 32-bit systems with 64-bit times.
    """
    if len(call) < 5 or call[0] not in _FUTEX:
        return False
    operation, limit = int(call[2], 16), int(call[4], 16)
    return bool(operation & _PRIVATE) and operation & _COMMAND in _WAITS and limit == 0
