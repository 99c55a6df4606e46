"""What is read of a file that a start script sources is what a shell reads, or it is said not to be
known.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbooks.core.envfile.edit import read
from tests.unit.core.envfile.readers import FILES, NAMES, SHELLS, THOROUGH, by_shell, encoded


@pytest.mark.parametrize("shell", SHELLS)
@settings(THOROUGH, max_examples=50)
@given(texts=st.lists(FILES, min_size=1, max_size=30))
def test_what_is_read_is_what_the_shell_reads(shell: str, tmp_path: Path, texts: list[str]) -> None:
    contents = [encoded(text) for text in texts]
    for content, there in zip(contents, by_shell(shell, contents, tmp_path), strict=True):
        reading = read(content, "shell")
        if there is None:
            assert reading.refused or reading.opaque
        elif not reading.refused:
            for name in NAMES:
                assert reading.why_unknown(name) or reading.values.get(name) == there.get(name), (
                    content
                )
