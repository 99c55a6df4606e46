"""Rolling restarts: first one host, then batches, until done or too many hosts have failed."""

import math
import re
from collections.abc import Iterator, Sequence

from msgspec import Struct

from runbooks.core.errors import UsageError


class Rolling(Struct, frozen=True):
    """The batches of a step that interrupts services."""

    serial: str = "30%"
    """The size of a batch: a number of hosts, or with `%` a share of the hosts to change."""
    max_fail: int = 0
    """How many hosts may fail in the whole run before the others are skipped."""

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\d+)(%?)", self.serial)
        number = 0
        if found:
            number = int(found[1])
        is_share = self.serial.endswith("%")
        if number == 0 or (is_share and number > 100):
            raise UsageError(
                f"--serial expects a number of hosts or a percentage, got {self.serial!r}",
                "e.g. 1, 4 or 30%",
            )
        if self.max_fail < 0:
            raise UsageError(
                f"--max-fail expects how many hosts may fail, 0 or more; got {self.max_fail}"
            )

    def batches(self, hosts: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield one host first, as the canary; then the others in batches."""
        yield hosts[:1]
        number = int(self.serial.rstrip("%"))
        size = number
        if self.serial.endswith("%"):
            size = max(1, math.floor(len(hosts) * number / 100))
        for start in range(1, len(hosts), size):
            yield hosts[start : start + size]
