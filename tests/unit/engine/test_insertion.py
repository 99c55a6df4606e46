"""The lines that would import tasks, tried on a real application of this machine."""

import getpass
from pathlib import Path
from textwrap import dedent

import pytest
from msgspec.structs import replace

from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import ImportProbe, Insertion
from runbooks.diagnosis.imports import two_names
from runbooks.engine.insertion import tried_insertion
from runbooks.hosts.application import ask_imports, parse_imports
from runbooks.hosts.script import run_fragments
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_fleet, make_host

APP = b"""\
from celery import Celery
app = Celery("shop", broker="redis://127.0.0.1:1/0")
"""
TASKS = """\
from shop import app

@app.task
def bill(): ...
"""
WHY = b"# Nothing else imports these tasks, so workers did not know them.\n"


def looked_at(folder: Path, tasks: str, app: str = "shop") -> tuple[Fleet, FleetHost, ImportProbe]:
    host = make_host(directory=str(folder), env_file=str(folder / "env"), user=getpass.getuser())
    fleet = make_fleet(host)
    fleet = replace(
        fleet, app=fleet.app.model_copy(update={"app": app, "expected_tasks": (tasks,)})
    )
    transport = LocalTransport()
    question = {"imports": ask_imports(host, app, [tasks], {})}
    now = parse_imports(
        host, run_fragments(transport, question, timeout_s=60, private=question)["imports"]
    )
    return fleet, host, now


def tried(folder: Path, *, app: str = "shop", tasks: str = "parts.tasks.bill") -> Insertion | None:
    fleet, host, now = looked_at(folder, tasks, app)
    return tried_insertion(fleet, host, LocalTransport(), {}, now, 60)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/tasks.py").write_text(TASKS)
    (tmp_path / "shop.py").write_bytes(APP)
    return tmp_path


def test_a_plain_import_goes_to_the_end_of_the_file_that_makes_the_application(place: Path) -> None:
    found = tried(place)
    assert found
    assert (found.why_not, found.path, found.line) == ("", str(place / "shop.py"), 3)
    assert found.after == APP + b"\n" + WHY + b"import parts.tasks  # noqa: E402, F401\n"
    assert (place / "shop.py").read_bytes() == APP, "nothing is written"


def test_it_goes_before_what_runs_the_module_as_a_program_and_keeps_the_ends_of_lines(
    place: Path,
) -> None:
    text = APP + b'\nif __name__ == "__main__":\n    app.start()\n'
    (place / "shop.py").write_bytes(text.replace(b"\n", b"\r\n"))
    found = tried(place)
    assert found
    start = APP + b"\n" + WHY + b"import parts.tasks  # noqa: E402, F401\n\n\n"
    assert found.after == (start + b'if __name__ == "__main__":\n    app.start()\n').replace(
        b"\n", b"\r\n"
    )


def test_a_name_that_the_import_would_take_from_the_application_is_left_to_it(place: Path) -> None:
    """`import app.tasks` would make `app` the package."""
    (place / "parts").rename(place / "app")
    found = tried(place, tasks="app.tasks.bill")
    assert found
    assert (
        found.after
        == APP + b"\n" + WHY + b"app.autodiscover_tasks(['app'], related_name='tasks')\n"
    )


def test_a_file_that_is_imported_under_another_name_is_not_imported_again(place: Path) -> None:
    """As `tasks.bill`, with the folder of the package in PYTHONPATH, it is `parts.tasks.bill`."""
    text = b"import sys\nsys.path.append('parts')\n" + APP + b"import parts.tasks\n"
    (place / "shop.py").write_bytes(text)
    found = tried(place, tasks="tasks.bill")
    assert found
    assert (
        found.why_not
        == f"{place}/parts/tasks.py is already imported under another name: tasks.bill and"
        " parts.tasks.bill are one task"
    )
    (finding,) = two_names(*looked_at(place, "tasks.bill"))
    assert finding.code == "task.two_names"
    assert finding.summary.startswith("tasks.bill and parts.tasks.bill are one task")
    assert finding.summary.endswith("import the file, expect the task and send it by one of them")
    assert finding.evidence == (
        f"both are defined in {place}/parts/tasks.py",
        "the application registers parts.tasks.bill",
    )
    assert not list(two_names(*looked_at(place, "parts.tasks.bill"))), "under one name it is well"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("shop.py", "import made\napp = made.new()\n", ""),
        (
            "shop.py",
            "import made\nglobals().update(app=made.new())\n",
            "no module of the application assigns it",
        ),
        ("other.py", "from shop import app\n", ""),
        ("shop.py", APP.decode() + "PASSWORD = 'redis://:s3cretpass@x/1'\n", "holds a secret"),
        ("parts/tasks.py", "raise ValueError('no')\n", None),
        ("parts/tasks.py", "def bill(): ...\n", "does not register them"),
    ],
)
def test_what_keeps_it_from_being_offered_is_reported(
    place: Path, name: str, text: str, why: str | None
) -> None:
    (place / "made.py").write_text(
        "from celery import Celery\ndef new(): return Celery('shop', broker='redis://x')\n"
    )
    (place / name).write_text(dedent(text))
    found = tried(place, app="other" if name == "other.py" else "shop")
    if why is None:
        assert found is None, "if an import fails, that has to be fixed first"
    elif why:
        assert found
        assert why in found.why_not
    else:
        assert found
        assert (found.why_not, found.path) == ("", str(place / "shop.py"))
