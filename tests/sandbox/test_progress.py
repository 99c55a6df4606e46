"""What takes its time shows how far it is: on a terminal alone, and nothing of it stays there."""

import json
from collections.abc import Iterator

import pytest

from tests.sandbox.test_brokers import Place, multiply, place_of

BAR = "━"
CLEAN = ("clean-queues", "--task", "stale.two", "--requeue-to", "high", "--yes")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """More messages than are read without a word."""
    with place_of("socket", tmp_path_factory.mktemp("place")) as made:
        multiply(made, 21_000)
        yield made


def on_terminal(place: Place, *arguments: str) -> str:
    """What the verb writes to a terminal."""
    done = place.world.terminal(*arguments)
    assert done.code == 0, done.out
    return done.out


def test_every_long_walk_shows_a_bar_on_a_terminal_that_is_gone_in_the_end(place: Place) -> None:
    before = place.lists()
    looked = on_terminal(place, "queues", "low", "--exact")
    assert (BAR in looked, BAR in looked.rpartition("by priority")[2]) == (True, False)
    cleaned = on_terminal(place, *CLEAN)
    assert (BAR in cleaned, "low: " in cleaned.partition("Plan:")[0]) == (True, True)
    assert "high: " in cleaned.partition("QUEUES")[2], "the way into the other queue, too"
    taken_back = on_terminal(place, "undo", "last", "--yes")
    assert "reading low.messages.jsonl" in taken_back
    assert "low: " in taken_back
    for written in (cleaned, taken_back):
        assert not {BAR, "reading"} & set(written.rpartition("RECAP")[2].split()), (
            "nothing of it stays"
        )
    assert place.lists() == before


def test_what_is_put_back_from_an_archive_shows_how_far_it_is(place: Place) -> None:
    before = place.lists()
    run = place.ok("clean-queues", "--task", "stale.two", "--yes")["run"]
    assert "reading" in on_terminal(place, "archive.verify", run)
    restored = on_terminal(place, "archive.restore", run, "--place", "next", "--yes")
    assert (BAR in restored, "low: " in restored) == (True, True)
    place.undo_last()
    assert place.inv("undo", run, "--yes").code == 0
    assert place.lists() == before


def test_nothing_of_it_is_written_into_a_pipe_or_with_json(place: Place) -> None:
    before = place.lists()
    piped = place.inv("clean-queues", "--task", "stale.two", "--yes")
    assert piped.code == 0
    as_json = on_terminal(place, "undo", "last", "--yes", "--json")
    assert json.loads(as_json)["exit_code"] == 0
    dry = place.inv("clean-queues", "--task", "stale.two", "--dry-run", "--json")
    for written in (piped.out + piped.err, as_json, dry.out + dry.err):
        assert not [sign for sign in (BAR, "\x1b", "reading low", "left") if sign in written]
    assert place.lists() == before
