"""Rolling restarts: one host first, then so many at a time, and an end to it when too many have
failed.
"""

import math
import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

from runbooks.core.errors import UsageError


class Rolling(Struct, frozen=True):
    """How a step that interrupts service goes over the hosts."""

    serial: str = "30%"
    """A number of hosts, or with `%` a share of those that are to be changed."""
    max_fail: int = 0
    """How many hosts may fail over the whole run before the rest is left alone."""

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\d+)(%?)", self.serial)
        number = 0
        if found:
            number = int(found[1])
        is_share = self.serial.endswith("%")
        if number == 0 or (is_share and number > 100):
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
        size = number
        if self.serial.endswith("%"):
            size = max(1, math.floor(len(hosts) * number / 100))
        for start in range(1, len(hosts), size):
            yield hosts[start : start + size]
