"""The readers themselves: how systemd, shells, docker and Compose read a file; and files that are
easily misread.

For systemd this calls two functions in the library of its manager: the one that reads an
`EnvironmentFile=`, and the one that drops invalid variables. `tests/fleet/test_environment.py`
shows that the units of a running systemd get the same.
**Source:** systemd 252 `execute.c: exec_context_load_environment`.

docker and Compose are the real programs. No engine is needed: docker reads the file before it asks
its engine for a container, so here it asks a socket that records the question; Compose prints what
it would ask for.
"""

import ctypes
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from itertools import takewhile
from pathlib import Path
from socketserver import UnixStreamServer

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

_LIBRARIES = [
    path for path in Path("/usr/lib").glob("**/systemd/libsystemd-shared-*.so") if path.is_file()
]
needs_systemd = pytest.mark.skipif(not _LIBRARIES, reason="systemd is not installed here")
SHELLS = [
    path for path in ("/usr/bin/dash", "/usr/bin/bash", "/usr/bin/busybox") if Path(path).exists()
]
_DOCKER = shutil.which("docker") or ""
needs_docker = pytest.mark.skipif(not _DOCKER, reason="docker is not installed here")
_PLUGINS = [
    Path(folder) / "cli-plugins/docker-compose"
    for folder in (
        Path.home() / ".docker",
        "/usr/libexec/docker",
        "/usr/lib/docker",
        "/usr/local/lib/docker",
    )
]
_COMPOSE = next((str(path) for path in _PLUGINS if path.exists()), "")
needs_compose = pytest.mark.skipif(not _COMPOSE, reason="Compose is not installed here")
ROUNDS = int(os.environ.get("RUNBOOKS_RANDOM_ROUNDS", 5))
THOROUGH = settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

IN_VALUES = [
    "x", "y z", " ", "\t", "\\", "\\\n", "\\\\", "'", "'", '"', '"', '\\"', "#", "$", "$A", "${A:-b c}", "`:`", "$(:)",
    '"$A"', "~", "*", "{a,b}", "=", ":", "é", "\udcfc", "\u2028", "\x0b", "\x01", "\r", "export", "'a b'", '"c d"',
]  # fmt: skip
ANYWHERE = [
    *IN_VALUES, *"AB", "A=", "B=", "\nA=", "\nB=", "export A=", "\n", "\r\n", "\n#", "\n;", ";", "&", "|", "\ufffe",
    "if", "fi", "exit", "return", "unset A", "1",
]  # fmt: skip
_LINES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(
        ["", "", "", "", "export ", " ", "#", "set -a\n", "umask 027; ", "A=1 ", ": ", "[ x ] && "]
    ),
    st.sampled_from(["A=", "B=", "A=", "B=", "A =", "B = ", "A\\\n=", "A-B=", "A"]),
    st.lists(st.sampled_from(IN_VALUES), max_size=5).map("".join),
    st.sampled_from(["\n", "\n", "\n", "\n", " \n", "; ", " # c\n", "\r\n", "\\\n", ""]),
)
NAMES = ("A", "B")
FILES = st.one_of(
    st.lists(_LINES, max_size=5).map("".join),
    st.lists(st.sampled_from(ANYWHERE), max_size=25).map("".join),
)
"""Files as text, in which lone surrogates stand for bytes that are not UTF-8."""
_PIECES = [
    *ANYWHERE, "A", "B", "A=", "B=", "\nA=", "\nB=", "A:", "\nA\n", "\\n", "\\0123", "\\012", "\\0", "\\c", "\\$", "$$",
    "$1", "$", "${", "}", "${A}", "${A:-", " #", "\ufeff", "\x85", "\xa0", "\x1c", "\0", "\\0000", "[.-]", "½",
]  # fmt: skip
CONTAINER_FILES = st.one_of(
    FILES,
    st.lists(st.sampled_from(_PIECES), max_size=12).map("".join),
    st.lists(
        st.builds("{}{}\n".format, st.sampled_from(["A=", "B=", " A=", "export B=", "A = ", 'A="', "B='"]),
                  st.lists(st.sampled_from(_PIECES), max_size=4).map("".join)), max_size=3,
    ).map("".join),
)  # fmt: skip
VALUES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\n\0"), max_size=12),
    st.lists(st.sampled_from(IN_VALUES), max_size=5)
    .map("".join)
    .filter(lambda value: not {"\n", "\udcfc"} & set(value)),
)


def encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def by_systemd(content: bytes, file: Path) -> dict[str, str] | None:
    """The variables that a service has of the file; None where systemd refuses it."""
    file.write_bytes(content)
    library, found = ctypes.CDLL(str(_LIBRARIES[0])), ctypes.POINTER(ctypes.c_char_p)()
    if library.load_env_file(None, bytes(file), ctypes.byref(found)) < 0:
        return None
    if found:
        library.strv_env_clean_with_callback(found, None, None)
    return variables(takewhile(bool, (found[n] for n in range(10_000))) if found else ())


def by_shell(shell: str, contents: Sequence[bytes], folder: Path) -> list[dict[str, str] | None]:
    """The variables that what a shell starts has of each file; None where the shell does not come
    so far.
    """
    names = [f"{n}.env" for n in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    words = [
        shell,
        *(["sh"] if shell.endswith("busybox") else []),
        "-c",
        _SOURCE_EACH,
        "sh",
        *names,
    ]
    subprocess.run(
        words, cwd=folder, env={"PATH": "/nonexistent"}, stdin=subprocess.DEVNULL, check=True
    )
    outputs = [(folder / f"{name}.out").read_bytes().split(b"\0") for name in names]
    return [variables(pairs) if end == b"0\n" else None for *pairs, end in outputs]


_SOURCE_EACH = (
    'for name; do ( set -a; . "./$name" >/dev/null; /usr/bin/env -0; echo "$?" ) >"$name.out"'
    " 2>/dev/null; done; :"
)


class _Engine(BaseHTTPRequestHandler):
    """Takes down with what environment a container is asked for."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def handle(self) -> None:
        with suppress(ConnectionError):  # docker is gone: it refuses the file
            super().handle()

    def do_HEAD(self) -> None:
        self.answer(200, b"")

    def do_POST(self) -> None:
        type(self).asked = (
            json.loads(self.rfile.read(int(self.headers["Content-Length"])))["Env"] or []
        )
        self.answer(201, b'{"Id": "made", "Warnings": []}')

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "docker"

    def log_message(self, *what: object) -> None:
        """Print nothing."""


@contextmanager
def _engine(socket: Path) -> Iterator[type[_Engine]]:
    socket.unlink(missing_ok=True)
    with UnixStreamServer(str(socket), _Engine) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        try:
            yield _Engine
        finally:
            server.shutdown()


def by_docker(contents: Sequence[bytes], folder: Path) -> list[dict[str, str] | None]:
    """The variables that docker asks for with each file as its `--env-file`; None where nothing
    would start with them.

    An engine starts nothing with a NUL byte, and of a variable that comes twice the last one counts
    (tried with 20.10).
    """
    environments: list[dict[str, str] | None] = []
    with _engine(folder / "docker.sock") as engine:
        words = [
            _DOCKER,
            "--host",
            f"unix://{folder}/docker.sock",
            "create",
            "--env-file",
            str(folder / "env"),
            "any",
        ]
        for content in contents:
            (folder / "env").write_bytes(content)
            done = subprocess.run(words, env={"HOME": str(folder)}, capture_output=True)
            starts = done.returncode == 0 and not any("\0" in pair for pair in engine.asked)
            environments.append(
                dict(pair.split("=", 1) for pair in engine.asked) if starts else None
            )
    return environments


def by_compose(contents: Sequence[bytes], folder: Path) -> list[dict[str, str] | None]:
    """The variables that a service has with each file as its `env_file:`; None where nothing would
    start with them.

    An engine starts nothing with a NUL byte or a variable without a name (tried with 20.10).
    """
    for n, content in enumerate(contents):
        (folder / f"{n}.env").write_bytes(content)
    there = _of_services(range(len(contents)), folder)
    return [
        None if one and any("\0" in value or not name for name, value in one.items()) else one
        for one in there
    ]


def _of_services(numbers: Sequence[int], folder: Path) -> list[dict[str, str] | None]:
    """Of so many at once: one file that is refused takes all others down, and then they are asked
    in halves.
    """
    services = {f"s{n}": {"image": "any", "env_file": str(folder / f"{n}.env")} for n in numbers}
    (folder / "compose.json").write_text(json.dumps({"services": services}))
    words = [
        _COMPOSE,
        "-p",
        "any",
        "-f",
        str(folder / "compose.json"),
        "config",
        "--format",
        "json",
    ]
    done = subprocess.run(words, env={"HOME": str(folder)}, cwd=folder, capture_output=True)
    if done.returncode == 0:
        environments = [
            json.loads(done.stdout)["services"][name].get("environment") or {} for name in services
        ]
        return [
            {name: value.replace("$$", "$") for name, value in one.items()} for one in environments
        ]
    if len(numbers) == 1:
        return [None]
    half = len(numbers) // 2
    return [*_of_services(numbers[:half], folder), *_of_services(numbers[half:], folder)]


def variables(pairs: Iterable[bytes]) -> dict[str, str]:
    return dict(pair.decode(errors="surrogateescape").split("=", 1) for pair in pairs)
