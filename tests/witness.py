"""What Redis itself wrote down: a server's append-only file, carried out again on another server
and counted.

**Source:** Redis 7's `appendonly.aof.manifest` (`file NAME seq N type b|h|i`), and RESP arrays of bulk strings in the
files that it names. BRPOP is written down as RPOP, a script and a transaction as what they changed, in MULTI … EXEC.
"""

import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import hiredis
import redis

# A server whose file has everything: none of it is rewritten, and no reply leaves before it is
# written.
ARGS = ("--appendonly", "yes", "--appendfsync", "always", "--aof-use-rdb-preamble", "no",
        "--auto-aof-rewrite-percentage", "0")  # fmt: skip
ID = re.compile(rb'\\?"id\\?": ?\\?"(m\d{7})')
OURS = b"celery-runbooks:"
Block = list[list[bytes]]


@dataclass
class Account:
    """By id: what was ever in Redis; what a worker popped, and none put back; which of it the
    worker noted.

    `given_back` counts what Celery itself put back, `lost` and `again` what Redis did when it went
    back; `rerun` is the part of `again` that a worker had popped before, so the rest had been taken
    out by another program.
    """

    seen: set[str] = field(default_factory=set)
    popped: set[str] = field(default_factory=set)
    noted: set[str] = field(default_factory=set)
    given_back: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    rerun: Counter[str] = field(default_factory=Counter)


def ids(texts: Iterable[bytes | str]) -> list[str]:
    """The ids of the messages in some bytes."""
    return [
        found.decode() for text in texts if isinstance(text, bytes) for found in ID.findall(text)
    ]


def waiting(client: "redis.Redis") -> Counter[str]:
    """How often each message is in a list, whichever."""
    found: Counter[str] = Counter()
    for key in client.scan_iter(count=1000):
        if client.type(key) == b"list":
            found.update(ids(client.lrange(key, 0, -1)))
    return found


def unacked(client: "redis.Redis") -> Counter[str]:
    """How often each message is noted as fetched."""
    return Counter(ids(client.hvals("unacked")))


def written(directory: Path) -> bytes:
    """All that the append-only file of a server says."""
    folder = directory / "appendonlydir"
    files = [line.split() for line in (folder / "appendonly.aof.manifest").read_text().splitlines()]
    files.sort(key=lambda words: (words[5] != "b", int(words[3])))
    return b"".join((folder / words[1]).read_bytes() for words in files if words[5] != "h")


def account(epochs: list[tuple[Path, int]], scratch: "redis.Redis") -> Account:
    """Carry out what each server did, from where it began to serve; what differs in between is
    Redis' own doing.

    After it `scratch` holds what the last server does.
    """
    result = Account()
    before: tuple[Counter[str], Counter[str]] | None = None
    for directory, start in epochs:
        scratch.flushall()
        data = written(directory)
        for _ in _carried_out(data[:start], scratch):
            pass
        now = waiting(scratch), unacked(scratch)
        if before is not None:
            result.lost += before[0] + before[1] - now[0] - now[1]
            again = now[0] - before[0]  # also what a worker had in `unacked`: it may have run it
            result.again += again
            result.rerun += Counter(
                {one: count for one, count in again.items() if one in result.popped}
            )
        result.popped -= set(now[0])
        for block, popped in _carried_out(data[start:], scratch):
            _note(result, block, popped)
        before = waiting(scratch), unacked(scratch)
    return result


def _note(result: Account, block: Block, popped: object) -> None:
    pushed = {
        one
        for command in block
        if command[0].upper() in (b"LPUSH", b"RPUSH")
        for one in ids(command)
    }
    result.seen |= pushed
    result.popped -= pushed
    result.noted -= pushed
    result.noted |= {
        one for command in block if command[:2] == [b"HSET", b"unacked"] for one in ids(command)
    }
    if any(command[:2] == [b"HDEL", b"unacked"] for command in block):
        result.given_back.update(pushed)
    if isinstance(popped, bytes):
        result.popped.update(ids([popped]))


def _carried_out(data: bytes, scratch: "redis.Redis") -> Iterator[tuple[Block, object]]:
    """Each block with what a worker popped by it, if anything."""
    every, reader = _blocks(data), hiredis.Reader()
    port = scratch.get_connection_kwargs()["port"]
    with socket.create_connection(("127.0.0.1", port)) as server:
        while some := list(islice(every, 500)):
            server.sendall(b"".join(raw for block in some for _, raw in block))
            for block in some:
                answers = [_answer(server, reader) for _ in block]
                (command, _), alone = block[0], len(block) == 1
                popped = alone and command[0].upper() == b"RPOP" and not command[1].startswith(OURS)
                yield [command for command, _ in block], answers[0] if popped else None


def _answer(server: socket.socket, reader: "hiredis.Reader") -> object:
    while (answer := reader.gets()) is False:
        reader.feed(server.recv(1 << 20))
    assert not isinstance(answer, Exception), answer
    return answer


def _blocks(data: bytes) -> Iterator[list[tuple[list[bytes], bytes]]]:
    """What was done at once, each command with its bytes; a transaction that a crash has torn was
    not done.
    """
    block: list[tuple[list[bytes], bytes]] | None = None
    for command, raw in _commands(data):
        match command[0].upper():
            case b"MULTI":
                block = []
            case b"EXEC":
                assert block is not None
                yield block
                block = None
            case b"SELECT":
                assert command[1] == b"0"
            case _ if block is None:
                yield [(command, raw)]
            case _:
                block.append((command, raw))


def _commands(data: bytes) -> Iterator[tuple[list[bytes], bytes]]:
    at = 0
    while at < len(data):
        start, command = at, []
        end = data.find(b"\r\n", at)
        count, at = int(data[at + 1 : end] or 0), end + 2
        for _ in range(count):
            end = data.find(b"\r\n", at)
            if end < 0:
                return  # torn
            size = int(data[at + 1 : end])
            command.append(data[end + 2 : end + 2 + size])
            at = end + size + 4
        if end < 0 or at > len(data):
            return
        yield command, data[start:at]
