"""The application's own code on an old Python: a real 3.9 with the Celery of its time, from a
Debian 11.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import pytest

from runbooks.core.fleet import FleetHost
from runbooks.core.settings import TaskCall
from runbooks.hosts import application
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.transport import Completed
from runbooks.task_runs.application import ask_route, parse_route
from tests.unit.fleets import make_host

APP = """\
    import os, sys
    from celery import Celery

    assert os.getuid() != 0 and os.environ["A"] == "x y"
    app = Celery("shop", broker="redis://localhost/0", include=["tasks"])
    app.conf.task_routes = {"tasks.*": "bills"}

    @app.task(name="on.%d.%d" % sys.version_info[:2])
    def version(): ...
    """
TASKS = """\
    from shop import app

    @app.task(name="tasks.bill")
    def bill(order_id): ...
    """


ENVIRONMENT = {"A": "x y"}


class Inside:
    """Runs scripts as root in another root file system, with a /proc of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, script: str, *, timeout_s: float) -> Completed:
        inside = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            f"--root={self.root}",
        ]
        done = subprocess.run(
            [*inside, "/bin/sh", "-s"], input=script.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, timeout=timeout_s, check=False,
        )  # fmt: skip
        return Completed(done.returncode, done.stdout)

    def ask(self, question: str) -> Answer:
        return run_fragments(self, {"q": question}, timeout_s=60, private=["q"])["q"]


@pytest.fixture
def place(debian11: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir=debian11 / "srv") as directory:
        place = Path(directory)
        place.chmod(0o755)
        (place / "shop.py").write_text(dedent(APP))
        (place / "tasks.py").write_text(dedent(TASKS))
        yield place


@pytest.fixture
def host(place: Path) -> FleetHost:
    there = f"/srv/{place.name}"
    return make_host(directory=there, python="/usr/bin/python3", user="nobody")


def test_an_application_on_python_3_9_is_loaded_and_asked(debian11: Path, host: FleetHost) -> None:
    inside = Inside(debian11)
    probe = application.parse_imports(
        host,
        inside.ask(
            application.ask_imports(host, "shop", ["tasks.bill"], ENVIRONMENT, ["utf-8", "x"])
        ),
    )
    assert (probe.failed, probe.errors, probe.remote_control, probe.options) == ("", {}, True, {})
    assert {"on.3.9", "tasks.bill"} <= probe.registered
    assert probe.accepts == frozenset({"application/json", "application/data", "application/text"})
    assert probe.compressions is not None
    assert "gzip" in probe.compressions
    assert probe.encodings == frozenset({"utf-8"})
    found = parse_route(
        host, inside.ask(ask_route(host, "shop", ENVIRONMENT, TaskCall(task="tasks.bill")))
    )
    assert (found.queue, found.signature, found.misfit) == (
        "bills",
        "(order_id)",
        "missing a required argument: 'order_id'",
    )


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nosuch\n", "ModuleNotFoundError: No module named 'nosuch'"),
        (
            "def f(a: int | None): ...\n",
            "TypeError: unsupported operand type(s) for |: 'type' and 'NoneType'",
        ),
    ],
)
def test_what_fails_on_python_3_9_is_reported_as_the_applications_own(
    debian11: Path, place: Path, host: FleetHost, code: str, error: str
) -> None:
    (place / "tasks.py").write_text(code + dedent(TASKS))
    probe = application.parse_imports(
        host,
        Inside(debian11).ask(application.ask_imports(host, "shop", ["tasks.bill"], ENVIRONMENT)),
    )
    assert (probe.failed, probe.errors[""].splitlines()[-1]) == ("", error)


def test_a_wrong_celery_app_is_named_on_python_3_9(debian11: Path, host: FleetHost) -> None:
    probe = application.parse_imports(
        host,
        Inside(debian11).ask(
            application.ask_imports(host, "shop:nope", ["tasks.bill"], ENVIRONMENT)
        ),
    )
    expected = f"celery_app is shop:nope, and {host.settings.directory}/shop.py has no nope: "
    assert probe.failed == expected + "correct celery_app (MODULE:ATTRIBUTE)"
