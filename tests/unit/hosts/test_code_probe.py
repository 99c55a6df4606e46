"""What a failing line reads of the environment, reported by a real application here."""

import getpass
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest

from runbooks.hosts.application import ask_imports, parse_imports
from runbooks.hosts.code_probe import fault_of
from runbooks.hosts.script import run_fragments
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host

APP = """\
from celery import Celery
app = Celery("shop", broker="redis://127.0.0.1:1/0")
"""


def read(folder: Path, tasks: str, environment: Mapping[str, str]) -> Mapping[str, str | None]:
    (folder / "shop.py").write_text(APP)
    (folder / "parts.py").write_text(dedent(tasks))
    host = make_host(directory=str(folder), env_file=str(folder / "env"), user=getpass.getuser())
    question = {"imports": ask_imports(host, "shop", ["parts.bill"], environment)}
    answer = run_fragments(LocalTransport(), question, timeout_s=60, private=question)["imports"]
    return parse_imports(host, answer).variables["parts"]


@pytest.mark.parametrize(
    ("tasks", "found"),
    [
        (
            (
                "import os\nOTHER = os.environ['OTHER']\nT = float(\n    os.getenv(\n        'T_S',"
                " '1'))"
            ),
            {"T_S": "30s"},
        ),
        (
            "import os\ndef needed(name):\n    return os.environ[name]\nPORT = needed('PORT')",
            {"PORT": None},
        ),
        (
            "from os import environ\nT = int(environ.get('T_S')) + int(environ['OTHER'])",
            {"T_S": "30s", "OTHER": "x"},
        ),
        ("import os\nT = int(os.environ['API_TOKEN'])", {"API_TOKEN": "********"}),
        ("raise ValueError('T_S')", {}),
    ],
)
def test_a_failing_line_shows_what_it_reads_and_no_secret(
    tmp_path: Path, tasks: str, found: Mapping[str, str | None]
) -> None:
    assert read(tmp_path, tasks, {"T_S": "30s", "OTHER": "x", "API_TOKEN": "s3cret-value"}) == found


def test_what_keeps_the_application_itself_from_loading_is_reported_too(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("import os\nPORT = int(os.environ['PORT'])\n")
    host = make_host(
        directory=str(tmp_path), env_file=str(tmp_path / "env"), user=getpass.getuser()
    )
    question = {"imports": ask_imports(host, "shop", ["parts.bill"], {"PORT": "many"})}
    answer = run_fragments(LocalTransport(), question, timeout_s=60, private=question)["imports"]
    assert parse_imports(host, answer).variables == {"": {"PORT": "many"}}


def test_a_file_of_an_installed_package_is_not_edited(tmp_path: Path) -> None:
    installed = "/srv/shop/lib/python3.11/site-packages/shop.py"
    assert fault_of([installed]).startswith(f"{installed} is part of an installed package")
    assert fault_of([str(tmp_path / "shop.py")]) == ""
