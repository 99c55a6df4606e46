"""Rolling restarts: one host first, then so many at a time, and an end to it when too many have
failed.
"""

import math
import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

from runbooks.core.errors import UsageError


class Rolling(Struct, frozen=True):
    """How a step that interrupts service goes over the hosts.

    `serial` is a number of hosts, or with `%` a share of those that are to be changed; `max_fail`
    is how many hosts may fail over the whole run before the rest is left alone.
    """

    serial: str = "30%"
    max_fail: int = 0

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\d+)(%?)", self.serial)
        if not found or int(found[1]) == 0 or (found[2] and int(found[1]) > 100):
            raise UsageError(
                f"--serial {self.serial!r} is neither a number of hosts nor a share",
                "e.g. 1, 4 or 30%",
            )
        if self.max_fail < 0:
            raise UsageError(
                f"--max-fail {self.max_fail}: as many hosts may fail as you can do without, at"
                " least 0"
            )

    def batches(self, hosts: Sequence[str]) -> Iterator[Sequence[str]]:
        """One host first, as the canary; then the others in batches."""
        yield hosts[:1]
        number = int(self.serial.rstrip("%"))
        size = (
            max(1, math.floor(len(hosts) * number / 100)) if self.serial.endswith("%") else number
        )
        for start in range(1, len(hosts), size):
            yield hosts[start : start + size]
