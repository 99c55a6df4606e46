"""What is read of an `EnvironmentFile=` is what systemd reads."""

from pathlib import Path

from hypothesis import example, given

from runbooks.core.envfile.edit import read
from tests.unit.core.envfile.readers import FILES, THOROUGH, by_systemd, encoded, needs_systemd


@needs_systemd
@THOROUGH
@given(text=FILES)
@example("# c\\\nA=1\nB=2")
@example('A="x\\"')
@example("A=x \\")
@example("=A=1\nB=2")
def test_what_is_read_is_what_systemd_reads(tmp_path: Path, text: str) -> None:
    reading, there = read(encoded(text), "systemd"), by_systemd(encoded(text), tmp_path / "app.env")
    if there is None:
        assert reading.refused
    elif reading.refused:
        assert reading.fault
        assert "depends on its version" in reading.fault.what
    else:
        known = {name: value for name, value in there.items() if name not in reading.unknown}
        assert reading.values == known
