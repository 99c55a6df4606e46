"""The archive file survives crashes, and damage is noticed."""

import json
import stat
from pathlib import Path

import pytest

from runbooks.broker.archive.reader import ArchiveError, Fate, read, verify
from runbooks.broker.archive.writer import Archive, Victim


def victims(count: int) -> list[Victim]:
    return [Victim(b"raw \xff %d" % i, i, b"older", "stale", i % 2 == 0) for i in range(count)]


@pytest.fixture
def written(archive_path: Path) -> Path:
    """Five messages, of which the first two were taken and the first was restored."""
    with Archive.create(archive_path, "run-1", 5.0) as archive:
        batch = archive.taking("queue\x06\x163", victims(5))
        archive.done(batch, [1, 2])
        archive.done(archive.restoring([1, 2]), [1])
    return archive_path


def test_an_archive_reads_back_as_it_was_written(written: Path) -> None:
    ledger = read(written)
    assert (ledger.run_id, ledger.created_at, ledger.unsettled) == ("run-1", 5.0, {})
    assert [m.raw for m in ledger.messages.values()] == [v.raw for v in victims(5)]
    assert [m.key for m in ledger.messages.values()] == ["queue\x06\x163"] * 5
    assert [ledger.fates[n] for n in range(1, 6)] == [Fate.RESTORED, Fate.TAKEN, *[Fate.QUEUED] * 3]
    assert verify(written) == ()


def test_only_its_owner_can_read_an_archive(written: Path) -> None:
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_an_archive_is_never_overwritten(written: Path) -> None:
    with pytest.raises(ArchiveError, match="File exists"):
        Archive.create(written, "run-2", 6.0)


def test_whatever_byte_a_crash_ends_the_file_at_it_is_read_and_gone_on_with(
    written: Path, tmp_path: Path
) -> None:
    whole = written.read_bytes()
    header = whole.index(b"\n") + 1
    for end in range(header, len(whole), 3):
        torn = tmp_path / "torn.jsonl"
        torn.write_bytes(whole[:end])
        assert verify(torn) == ()
        kept = read(torn)
        with Archive.open(torn) as archive:
            batch = archive.taking("queue", victims(1))
        ledger = read(torn)
        assert verify(torn) == ()
        assert ledger.messages[batch.messages[0]].raw == victims(1)[0].raw
        assert ledger.unsettled == {**kept.unsettled, batch.number: batch}
        assert len(ledger.messages) == len(kept.messages) + 1


def test_a_batch_without_its_result_is_of_unknown_fate(archive_path: Path) -> None:
    with Archive.create(archive_path, "run-1", 5.0) as archive:
        batch = archive.taking("queue", victims(3))
        assert batch.messages == (1, 2, 3)
    assert read(archive_path).unsettled == {1: batch}


@pytest.mark.parametrize("number", [2, 3])
def test_changed_bytes_of_a_message_are_noticed(written: Path, number: int) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    line = json.loads(lines[number - 1])
    line["raw"] = "AAAA"
    lines[number - 1] = json.dumps(line).encode() + b"\n"
    written.write_bytes(b"".join(lines))
    problems = verify(written)
    assert f"{written}:{number}:" in problems[0]
    assert "another checksum" in problems[0]


@pytest.mark.parametrize(
    ("field", "value"), [("n", 10**15), ("n", 0), ("position", -1), ("position", 2**40)]
)
def test_a_number_that_cannot_be_is_noticed(written: Path, field: str, value: int) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    lines[5] = json.dumps({**json.loads(lines[5]), field: value}).encode() + b"\n"
    written.write_bytes(b"".join(lines))
    assert verify(written)[0].startswith(f"{written}:6:")
    assert len(read(written).messages) == 4


def test_names_that_are_not_text_read_back_as_they_were_written(archive_path: Path) -> None:
    with Archive.create(archive_path, "run-1", 5.0) as archive:
        archive.taking("queue\udc80", [Victim(b"raw", 0, None, "task \udcff", False)])
    ledger = read(archive_path)
    assert (ledger.messages[1].key, ledger.messages[1].reason) == ("queue\udc80", "task \udcff")
    assert ledger.lists() == ("queue\udc80",)
    assert verify(archive_path) == ()


def test_a_damaged_line_in_the_middle_is_named_and_the_others_are_read(written: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:40] + b"\n"
    written.write_bytes(b"".join(lines))
    assert verify(written)[0].startswith(f"{written}:4:")
    assert len(read(written).messages) == 4


@pytest.mark.parametrize(
    "text", ["", "{}\n", '{"type": "header", "format": 2, "run": "x", "created_at": 1}\n', "junk\n"]
)
def test_a_file_that_is_not_an_archive_is_refused(archive_path: Path, text: str) -> None:
    archive_path.write_text(text)
    with pytest.raises(ArchiveError, match="not an archive of format 1"):
        Archive.open(archive_path)


def test_lost_and_shuffled_messages_are_noticed(written: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([*lines[:4], lines[5], lines[4], *lines[6:]]))
    assert verify(written) == (f"{written}: its messages are not in order",)
    written.write_bytes(b"".join([*lines[:4], *lines[5:]]))
    assert verify(written) == (f"{written}: message 4 is missing",)


def test_what_is_moved_or_was_unacked_reads_back_as_it_was_written(archive_path: Path) -> None:
    raw = b'[{"body": "e30="}, "", "q"]'
    with Archive.create(archive_path, "run-1", 5.0) as archive:
        taking = archive.taking("q", [Victim(raw, 0, None, "r", False, "to\x06\x163", "to:5", 0.0)])
        archive.done(taking, [1])
    with Archive.open(archive_path, "token") as archive:
        archive.done(archive.moving([1]), [1])
    ledger = read(archive_path)
    message = ledger.messages[1]
    assert (message.to, message.requeue_to, message.fetched_at) == ("to\x06\x163", "to:5", 0.0)
    assert (message.raw, message.item) == (raw, b'{"body": "e30="}')
    assert (ledger.fates[1], ledger.put_by[1]) == (Fate.MOVED, "token")
    with Archive.open(archive_path) as archive:
        archive.done(archive.recalling([1]), [1])
    assert read(archive_path).fates[1] is Fate.TAKEN


def test_a_missing_archive_is_refused(archive_path: Path) -> None:
    with pytest.raises(ArchiveError, match="No such file"):
        read(archive_path)
