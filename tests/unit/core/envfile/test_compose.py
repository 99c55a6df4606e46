"""What is read of an `env_file:` is what Compose reads."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from runbooks.core.envfile.edit import edit, read
from tests.unit.core.envfile.readers import (
    CONTAINER_FILES,
    ROUNDS,
    THOROUGH,
    VALUES,
    by_compose,
    encoded,
    needs_compose,
)


@needs_compose
@settings(THOROUGH, max_examples=ROUNDS)
@given(texts=st.lists(CONTAINER_FILES, min_size=10, max_size=30))
def test_what_is_read_is_what_compose_reads(tmp_path: Path, texts: list[str]) -> None:
    contents = [*map(encoded, texts)]
    for content, there in zip(contents, by_compose(contents, tmp_path), strict=True):
        same(content, there)


@needs_compose
@settings(THOROUGH, max_examples=ROUNDS)
@given(texts=st.lists(st.tuples(CONTAINER_FILES, VALUES), min_size=10, max_size=30))
def test_compose_has_the_new_value_and_all_others_as_before(
    tmp_path: Path, texts: list[tuple[str, str]]
) -> None:
    pairs = []
    for text, value in texts:
        try:
            pairs.append((encoded(text), edit(encoded(text), "compose", {"A": value}), value))
        except ValueError:
            continue
    before = by_compose([pair[0] for pair in pairs], tmp_path)
    after = by_compose([pair[1] for pair in pairs], tmp_path)
    for (content, _, value), old, new in zip(pairs, before, after, strict=True):
        assert old is not None, content
        follow = read(content, "compose").unknown  # the new value, where they name A
        assert new is not None, content
        assert new["A"] == value, content
        assert all(
            new.get(name) == there for name, there in old.items() if name not in {"A", *follow}
        ), content
        assert new.keys() - {"A"} == old.keys() - {"A"}, content


def same(content: bytes, there: dict[str, str] | None) -> None:
    reading = read(content, "compose")
    if there is None:
        assert reading.refused or reading.unknown, content
        return
    assert not reading.refused, content
    for name in ("A", "B", "export"):
        assert name in reading.unknown or reading.values.get(name) == there.get(name), content
