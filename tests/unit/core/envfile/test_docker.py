"""What is read of an `--env-file` is what docker reads."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from runbooks.core.envfile.edit import edit, read
from tests.unit.core.envfile.readers import (
    CONTAINER_FILES,
    ROUNDS,
    THOROUGH,
    VALUES,
    by_docker,
    encoded,
    needs_docker,
)

LONG = [b"A=" + b"x" * length + end for length in (65533, 65534) for end in (b"", b"\n", b"\r\n")]


@needs_docker
@settings(THOROUGH, max_examples=ROUNDS)
@given(texts=st.lists(CONTAINER_FILES, min_size=10, max_size=30))
def test_what_is_read_is_what_docker_reads(tmp_path: Path, texts: list[str]) -> None:
    contents = [*map(encoded, texts)]
    for content, there in zip(contents, by_docker(contents, tmp_path), strict=True):
        same(content, there)


@needs_docker
def test_lines_that_are_too_long_for_docker_are_known(tmp_path: Path) -> None:
    there = by_docker(LONG, tmp_path)
    assert None in there
    for content, one in zip(LONG, there, strict=True):
        same(content, one)


@needs_docker
@settings(THOROUGH, max_examples=ROUNDS)
@given(texts=st.lists(st.tuples(CONTAINER_FILES, VALUES), min_size=10, max_size=30))
def test_docker_has_the_new_value_and_all_others_as_before(
    tmp_path: Path, texts: list[tuple[str, str]]
) -> None:
    pairs = []
    for text, value in texts:
        try:
            pairs.append((encoded(text), edit(encoded(text), "docker", {"A": value}), value))
        except ValueError:
            continue
    before = by_docker([pair[0] for pair in pairs], tmp_path)
    after = by_docker([pair[1] for pair in pairs], tmp_path)
    for (content, _, value), old, new in zip(pairs, before, after, strict=True):
        assert old is not None, content
        assert new == {**old, "A": value}, content


def same(content: bytes, there: dict[str, str] | None) -> None:
    reading = read(content, "docker")
    assert reading.refused == (there is None), content
    for name in ("A", "B", "export"):
        assert (
            there is None or name in reading.unknown or reading.values.get(name) == there.get(name)
        ), content
