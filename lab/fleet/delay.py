"""A delay line between pairs of tap devices, for kernels without netem: each frame leaves a fixed
time after it came.

`python -m lab.fleet.delay OUTSIDE:INSIDE:DELAY_MS ...` makes the devices and carries frames until
it is killed; the devices go with it.

**Source:** the kernel's networking/tuntap.rst and linux/if_tun.h: one read or write is one frame.
"""

import fcntl
import heapq
import os
import select
import struct
import sys
import time
from contextlib import suppress
from itertools import count

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_LONGEST_FRAME = 65536


def main() -> None:
    """Carry frames both ways between each pair."""
    ends: dict[
        int, tuple[int, float]
    ] = {}  # a device → the one its frames leave by, and their delay
    for argument in sys.argv[1:]:
        outside, inside, delay_ms = argument.split(":")
        one, other = _tap(outside), _tap(inside)
        ends |= {one: (other, float(delay_ms) / 1000), other: (one, float(delay_ms) / 1000)}
    _carry(ends)


def _tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor


def _carry(ends: dict[int, tuple[int, float]]) -> None:
    poll = select.epoll()
    for descriptor in ends:
        poll.register(descriptor, select.EPOLLIN)
    waiting: list[
        tuple[float, int, int, bytes]
    ] = []  # due at, number, device, frame: the number keeps their order
    numbers = count()
    while True:
        timeout_s = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        for descriptor, _ in poll.poll(timeout_s):
            leaves_by, delay_s = ends[descriptor]
            with suppress(BlockingIOError):
                while frame := os.read(descriptor, _LONGEST_FRAME):
                    heapq.heappush(
                        waiting, (time.monotonic() + delay_s, next(numbers), leaves_by, frame)
                    )
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, descriptor, frame = heapq.heappop(waiting)
            with suppress(OSError):  # a link that is down loses frames
                os.write(descriptor, frame)


if __name__ == "__main__":
    main()
