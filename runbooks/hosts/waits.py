"""Find processes all of whose threads wait for locks that only this process can release."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from runbooks.hosts.script import Answer, shell

_FUTEX = ("202", "98", "422")
_PRIVATE = 128
_COMMAND = 127
_WAITS = (0, 9)


def ask_waits(pids: Iterable[int]) -> str:
    """Return the fragment.

    **Source:** proc(5), `/proc/PID/task/TID/syscall`: readable for users who may trace the process.
    """
    return shell("waits", *map(str, pids))


def parse_waits(answer: Answer) -> frozenset[int]:
    """Return the processes all of whose threads wait for private locks, without a time limit.

    Processes that cannot be read are left out.
    """
    first, _, second = answer.out.decode(errors="replace").partition("---\n")
    after = _calls(second)
    waiting = set()
    for pid, calls in _calls(first).items():
        if calls == after.get(pid) and all(map(_waits_for_ever, calls.values())):
            waiting.add(pid)
    return frozenset(waiting)


def _calls(lines: str) -> dict[int, Mapping[str, tuple[str, ...]]]:
    found = defaultdict[int, dict[str, tuple[str, ...]]](dict)
    for line in lines.splitlines():
        pid, thread, *call = line.split()
        found[int(pid)][thread] = tuple(call)
    return dict(found)


def _waits_for_ever(call: tuple[str, ...]) -> bool:
    """Whether a system call waits, without a time limit, for a futex of this process alone.

    **Source:** futex(2): FUTEX_WAIT, FUTEX_WAIT_BITSET, FUTEX_PRIVATE_FLAG; the numbers of x86-64,
    of arm64 and riscv64, and of 32-bit systems with 64-bit times.
    """
    if len(call) < 5 or call[0] not in _FUTEX:
        return False
    operation = int(call[2], 16)
    limit = int(call[4], 16)
    return bool(operation & _PRIVATE) and operation & _COMMAND in _WAITS and limit == 0
