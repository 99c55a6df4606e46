"""Measures `inv diagnose` of 16 hosts while a million messages wait: `python bench/diagnose.py`.

Needs root: puts up the fleet lab's real hosts as `bench/fanout.py` does, two stand-in workers on each.
The messages are those of `bench/queue.py`. They wait at a priority that the stand-ins do not poll, and
each stand-in says that it runs a task, as workers with such a backlog do.

With `--beside CHECKOUT` another checkout of this project, whose `./inv` has run once, looks at the same
hosts. All are interleaved, and their order changes from round to round.
"""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[0] = str(CHECKOUT)  # not this folder, where `queue` hides the standard library's

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence

import redis

from bench import fanout, queue
from lab.fleet.fleet import Fleet
from lab.fleet.host import on_host
from lab.fleet.record import Host, Record

LIST = "bench\x06\x163"
FOUND = (0, 1)
"""The exit codes of a look: so many messages are a finding."""

Figures = tuple[float, float, float]
"""Wall seconds, CPU seconds, and the peak of resident memory in MiB."""


def fill(count: int) -> None:
    """Let so many messages wait."""
    server = (Fleet(CHECKOUT).root / "broker.url").read_text().rpartition("/")[0]
    url = f"{server}/{fanout.DB}"
    made = queue.templates(url)
    with redis.Redis.from_url(url, protocol=2) as client:
        queue.push(client, made, count, LIST)


def start(record: Record, hosts: Sequence[Host], state: Path) -> None:
    """Start the stand-in workers, and wait until all of them consume."""
    for host in hosts:
        on_host(record, host, "sh", "-c", "echo BUSY=1 >>/etc/bench.env")
    heal = fanout.ways(state, ["inv"])["inv"]("first")
    fanout.measure(heal, state / "start.log")
    fanout.await_nodes(2 * len(hosts))


def commands(state: Path, checkouts: Sequence[Path]) -> dict[Path, list[str]]:
    """The command of each checkout, with records of its own."""
    text, made = (state / "inventory.yaml").read_text(), {}
    for number, checkout in enumerate(checkouts):
        inventory = state / f"inventory{number}.yaml"
        inventory.write_text(text.replace('/runs"', f'/runs{number}"'))
        made[checkout] = [
            str(checkout / "inv"), "diagnose", "--inventory", str(inventory), "--forks", "64"
        ]  # fmt: skip
    return made


def rounds(count: int, looks: dict[Path, list[str]], log: Path) -> dict[Path, list[Figures]]:
    """The figures of so many rounds, after one that only warms up."""
    figures: dict[Path, list[Figures]] = {checkout: [] for checkout in looks}
    for number in range(count + 1):
        order = list(looks.items())
        for checkout, command in order if number % 2 else reversed(order):
            one = fanout.measure(command, log, FOUND)
            if number:
                figures[checkout].append(one)
                print(f"{checkout}: {one[0]:.2f} s", file=sys.stderr)
    return figures


def line(checkout: Path, figures: Sequence[Figures]) -> str:
    walls, cpus, memory = zip(*figures, strict=True)
    return (
        f"{checkout}: {statistics.median(walls):.2f} s, at best {min(walls):.2f} s; "
        f"CPU {statistics.median(cpus):.2f} s, at best {min(cpus):.2f} s; {max(memory):.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=16)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path, action="append", default=[], metavar="CHECKOUT")
    options = parser.parse_args()
    os.environ.pop("SSH_AUTH_SOCK", None)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with fanout.fleet_of(options.hosts, 0) as record, tempfile.TemporaryDirectory() as folder:
        state, hosts = Path(folder), record.hosts[1:]
        fanout.prepare(Fleet(CHECKOUT).root, hosts, state)
        start(record, hosts, state)
        fill(options.messages)
        looks = commands(state, [CHECKOUT, *options.beside])
        for checkout, figures in rounds(options.rounds, looks, state / "look.log").items():
            print(line(checkout, figures))


if __name__ == "__main__":
    main()
