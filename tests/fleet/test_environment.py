"""Environment files on a real host: what its units have of them."""

import base64
import random
import shlex

from runbooks.core.envfile.edit import edit, read
from tests.fleet.conftest import FleetWorld
from tests.unit.core.envfile.readers import ANYWHERE, IN_VALUES, NAMES, encoded, variables

NEW = 'it\'s "$new" '
CASES = [
    b"A=1\nB=2\n", b"A = 31\n", b"export A=1\nB=2\n", b"A=a\\\nb\nB=2\n", b'A="x\nB=y\n"\n', b"A=M\xfcnster\n",
    b"# M\xfcnster\nA=1\n", b"A='x\nB=2\n", b"A='x' y \nB=\"a\\n\\$\"\n", b"A=1\rB=2\r\n", b"A=1\0\n", b"",
    b"A=\xef\xbf\xbf\n",
]  # fmt: skip


def random_files() -> list[bytes]:
    draw = random.Random(1)
    lines = [
        "".join(f"{name}={''.join(draw.choices(IN_VALUES, k=4))}\n" for name in NAMES)
        for _ in range(15)
    ]
    return [
        encoded(text)
        for text in (*lines, *("".join(draw.choices(ANYWHERE, k=15)) for _ in range(15)))
    ]


def by_units(world: FleetWorld, contents: list[bytes]) -> list[dict[str, str] | None]:
    """The variables of a transient unit with each of these files as its `EnvironmentFile=`; None
    where none started.
    """
    start = (
        "systemd-run --quiet --pipe --wait --collect -p EnvironmentFile=$dir/file /usr/bin/env -0"
    )
    script = "dir=$(mktemp -d); cd $dir\n" + "".join(
        f"echo {base64.b64encode(content).decode()} | base64 -d >file\n"
        f"{start} >out 2>/dev/null </dev/null && base64 -w 0 out; echo\n"
        for content in contents
    )
    done = world.ssh("web1", f"sudo sh -c {shlex.quote(script + 'rm -r $dir')}")
    assert done.code == 0, done.err
    contents_read = [base64.b64decode(line) for line in done.out.splitlines()]
    assert len(contents_read) == len(contents)
    return [variables(line.split(b"\0")[:-1]) if line else None for line in contents_read]


def test_a_unit_has_of_its_environment_file_what_is_read_of_it(fleet: FleetWorld) -> None:
    contents = [*CASES, *random_files()]
    readable = [
        one
        for one in contents
        if not read(one, "systemd").fault and not read(one, "systemd").unknown
    ]
    edited = [edit(one, "systemd", {"A": NEW}) for one in readable]
    for content, there in zip(contents + edited, by_units(fleet, contents + edited), strict=True):
        reading = read(content, "systemd")
        assert reading.refused == (there is None), content
        for name in NAMES:
            assert (
                reading.refused
                or reading.why_unknown(name)
                or reading.values.get(name) == (there or {}).get(name)
            )
