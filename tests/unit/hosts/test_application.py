"""A real Celery application, asked in its own Python on this machine."""

import getpass
import glob
import json
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from runbooks.core.application import Application
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, ImportProbe
from runbooks.hosts import application, describe_application, facts
from runbooks.hosts.script import Answer
from tests.brokers import until
from tests.unit.fleets import make_host
from tests.unit.hosts.test_facts import ask

APP = """\
    from celery import Celery
    app = Celery("shop", broker="memory://", include=["tasks"])
    """
TASKS = """\
    from shop import app

    @app.task(name="tasks.bill")
    def bill(): ...
    """


class Site:
    """A tiny Celery application on the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = self.of()
        self.write(**{"shop.py": APP, "tasks.py": TASKS, "app.env": ""})

    def of(self, **settings: Any) -> FleetHost:
        settings = {"user": getpass.getuser(), "python": sys.executable} | settings
        return make_host(
            directory=str(self.directory), env_file=str(self.directory / "app.env"), **settings
        )

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.directory / name).write_text(dedent(text))

    def probe(
        self,
        *expected: str,
        overrides: Mapping[str, str] | None = None,
        app: str = "shop",
        **settings: Any,
    ) -> ImportProbe:
        host = self.of(**settings) if settings else self.host
        encodings = ("utf-8", "binary", "klingon", "\0")
        env_file = FileState((self.directory / "app.env").read_bytes())
        environment = {**host.environment_in(env_file).likely, **(overrides or {})}
        question = application.ask_imports(
            host, app, expected or ("tasks.bill",), environment, encodings
        )
        return application.parse_imports(host, ask(question, private=["q"]))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_good_application_registers_its_tasks_and_has_no_errors(site: Site) -> None:
    probe = site.probe()
    assert "tasks.bill" in probe.registered
    assert probe.errors == {}


HANGS = """
import socket
there = socket.create_server(("127.0.0.1", 0))
def version():
    return socket.create_connection(there.getsockname()).recv(1)
version()
"""
DEAF = (
    "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\nwhile True:"
    " time.sleep(1)\n"
)


def test_an_import_that_hangs_ends_in_time_and_says_where(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert application.LOAD_S == 45, "as the page on the inventory says"
    monkeypatch.setattr(application, "LOAD_S", 1)
    site.write(**{"client.py": HANGS, "tasks.py": f"import client\n{dedent(TASKS)}"})
    loaded = site.probe()
    assert list(loaded.errors) == [""]
    assert loaded.errors[""].endswith(f"still at {site.directory}/client.py, line 5, after 1 s")
    assert f"{site.directory}/tasks.py" in loaded.errors[""], "and how it came there"
    site.write(**{"shop.py": dedent(APP).replace('include=["tasks"]', "")})
    by_hand = site.probe("tasks.bill", "good.bill")
    assert set(by_hand.errors) == {"good", "tasks"}
    assert f"{site.directory}/client.py, line 5, after 1 s" in by_hand.errors["tasks"]
    assert "No module named 'good'" in by_hand.errors["good"], (
        "the others are imported all the same"
    )


def test_code_that_no_signal_reaches_is_ended_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "LOAD_S", 1)
    site.write(**{"tasks.py": DEAF})
    error = site.probe().errors[""]
    assert f'File "{site.directory}/tasks.py", line 3' in error
    assert error.endswith("loading did not end within 1 s")


def test_an_application_that_switches_remote_control_off_says_so(site: Site) -> None:
    assert site.probe().remote_control
    site.write(**{"shop.py": dedent(APP) + "app.conf.worker_enable_remote_control = False\n"})
    assert not site.probe().remote_control


def test_an_application_reports_the_transport_options_that_matter_and_no_other(site: Site) -> None:
    assert site.probe().options == {}
    options = {
        "visibility_timeout": 7200,
        "priority_steps": (0, 5),
        "sentinel_kwargs": {"password": "s3cret"},
    }
    site.write(**{"shop.py": dedent(APP) + f"app.conf.broker_transport_options = {options}\n"})
    assert site.probe().options == {"visibility_timeout": 7200, "priority_steps": [0, 5]}


def test_an_application_that_cannot_be_loaded_reports_no_options(site: Site) -> None:
    site.write(**{"shop.py": "import nosuch\n"})
    assert site.probe().options is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("manager", [{}, {"service_manager": "systemd", "commands": None}])
def test_the_applications_code_is_run_by_its_own_user_and_never_by_root(
    manager: dict[str, Any],
) -> None:
    with TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o777)
        site = Site(Path(directory))
        (site.directory / "app.env").chmod(0o600)
        fake = site.directory / "python"
        fake.write_text("#!/bin/sh\ncat >/dev/null\nid -un >seen\n")
        fake.chmod(0o755)
        host = site.of(user="nobody", python=str(fake), **manager)
        ask(f"cd {directory}\n{application.ask_imports(host, 'shop', (), {})}")
        assert (site.directory / "seen").read_text() == "nobody\n"


def test_an_application_reports_what_its_workers_can_read(site: Site) -> None:
    probe = site.probe()
    assert probe.accepts == frozenset({"application/json", "application/data", "application/text"})
    assert probe.compressions is not None
    assert probe.compressions >= {"application/x-gzip", "gzip", "zlib", "application/x-bz2"}
    assert "application/x-br" not in probe.compressions
    assert probe.encodings == frozenset({"utf-8", "binary"})
    assert probe.decodes is not None
    assert probe.decodes >= {
        "application/json",
        "application/x-python-serialize",
        "application/text",
    }
    site.write(
        **{"shop.py": dedent(APP) + "app.conf.accept_content = ['pickle', 'application/x-yaml']\n"}
    )
    own = {"application/x-python-serialize", "application/x-yaml"}
    assert site.probe().accepts == frozenset(own | {"application/data", "application/text"})


def test_a_schedule_that_is_not_one_does_not_pass_for_an_application_that_does_not_load(
    site: Site,
) -> None:
    site.write(**{"shop.py": dedent(APP) + "app.conf.beat_schedule = [1]\n"})
    probe = site.probe()
    assert (probe.loaded, probe.application and probe.application.schedule) == (True, ())


def test_an_application_whose_accepted_content_is_unknown_does_not_report_it(site: Site) -> None:
    site.write(**{"shop.py": dedent(APP) + "app.conf.accept_content = ['nosuch']\n"})
    assert site.probe().accepts is None


def test_a_module_that_imports_but_has_no_such_task_is_reported_with_no_error(site: Site) -> None:
    probe = site.probe("tasks.bill", "tasks.nosuch")
    assert probe.errors == {"tasks": ""}


def test_no_module_is_imported_for_a_task_whose_name_says_none(site: Site) -> None:
    assert site.probe("tasks.bill", "ship").errors == {}


def test_an_import_error_that_the_application_swallows_comes_to_light(site: Site) -> None:
    site.write(**{
        "shop.py": "import celery\napp = celery.Celery()\ntry:\n    import tasks\nexcept Exception:\n    pass\n",
        "tasks.py": "import os\nTIMEOUT = int(os.environ['TIMEOUT'])\n" + dedent(TASKS),
    })  # fmt: skip
    site.write(**{"app.env": "TIMEOUT=thirty\n"})
    probe = site.probe()
    assert "tasks.bill" not in probe.registered
    assert (
        probe.errors["tasks"].splitlines()[-1]
        == "ValueError: invalid literal for int() with base 10: 'thirty'"
    )
    assert "tasks.py" in probe.errors["tasks"]


def test_the_environment_file_is_read_and_overrides_come_on_top(site: Site) -> None:
    site.write(**{
        "tasks.py": "import os\nassert (os.environ['A'], os.environ['B']) == ('x y', '2')\n" + dedent(TASKS),
        "app.env": "# A=no\nexport A='x y'\nB=1\nB=2 \n",
    })  # fmt: skip
    assert site.probe().errors == {}
    assert "AssertionError" in site.probe(overrides={"B": "3"}).errors[""]


@pytest.mark.parametrize(
    "line",
    [
        b"CAF\xc9=caf\xe9",
        b"NOTE=caf\xe9",
        b"=x",
        b"A B=c",
        b"\xff",
        b"if true; then",
        b"NOTE=$(id -un)",
    ],
)
def test_a_line_that_is_not_a_variable_does_not_pass_for_an_import_error(
    site: Site, line: bytes
) -> None:
    (site.directory / "app.env").write_bytes(line + b"\nTIMEOUT=30\n")
    site.write(**{"tasks.py": "import os\nint(os.environ['TIMEOUT'])\n" + dedent(TASKS)})
    assert site.probe().errors == {}


def test_a_syntax_error_in_the_application_is_the_error_of_everything(site: Site) -> None:
    site.write(**{"shop.py": "def broken(:\n"})
    probe = site.probe()
    assert probe.registered == frozenset()
    assert list(probe.errors) == [""]
    assert probe.errors[""].splitlines()[-1].startswith("SyntaxError")


NAME_PYTHON = "name the Python of the application's environment"
WRAPPED = """#!/bin/sh
exec {python} -c 'import sys; sys.version_info = (3, 5, 2); exec(sys.argv[1])' "$3"
"""


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("/no/such/python", rf"which does not exist for .*: {NAME_PYTHON}"),
        ("/usr/bin", rf"which does not exist for .*: {NAME_PYTHON}"),
        ("{site}/tasks.py", rf"may not execute: {NAME_PYTHON}"),
        ("/bin/true", r"which failed before it could load it: no output"),
        ("/bin/sh", r"which failed before it could load it: .*-B"),
        (
            "{site}/old",
            r"failed before it could load it: it is Python 3\.5; 3\.6 or newer is needed",
        ),
        (
            "{site}/bare",
            (
                r"and this Python 3\.\d+ cannot import Celery \(No module named 'celery'\):"
                rf" {NAME_PYTHON}"
            ),
        ),
    ],
)
def test_a_wrong_celery_python_is_named_and_says_nothing_about_the_application(
    site: Site, python: str, expected: str
) -> None:
    site.write(
        bare=f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n',
        old=WRAPPED.format(python=sys.executable),
    )
    for name in ("bare", "old"):
        (site.directory / name).chmod(0o755)
    python = python.format(site=site.directory)
    probe = site.probe(python=python)
    assert re.fullmatch(rf"celery_python is {python}, .*{expected}", probe.failed.splitlines()[0])
    assert (probe.loaded, probe.errors, probe.registered) == (False, {}, frozenset())


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (
            "nope:app",
            "{python} does not find module nope in {site}: correct celery_app or celery_directory",
        ),
        (
            "tasks.nope",
            "{python} does not find module tasks.nope in {site}: correct celery_app or celery_directory",
        ),
        ("shop:nope", "{site}/shop.py has no nope: correct celery_app (MODULE:ATTRIBUTE)"),
        (
            "other",
            "{site}/other.py has no Celery application: correct celery_app (MODULE:ATTRIBUTE)",
        ),
        (
            "other:x",
            "which has type int, not a Celery application: correct celery_app (MODULE:ATTRIBUTE)",
        ),
        (
            "flask",
            "which has type int, not a Celery application: correct celery_app (MODULE:ATTRIBUTE)",
        ),
    ],
)
def test_a_wrong_celery_app_is_named_and_says_nothing_about_the_application(
    site: Site, app: str, expected: str
) -> None:
    site.write(**{"other.py": "x = 1\n", "flask.py": "app = 1\n"})
    probe = site.probe(app=app)
    expected = expected.format(python=sys.executable, site=site.directory)
    assert probe.failed in (
        f"celery_app is {app}, {expected}",
        f"celery_app is {app}, and {expected}",
    )
    assert (probe.loaded, probe.errors, probe.registered) == (False, {}, frozenset())


@pytest.mark.parametrize("app", ["shop", "shop:app", "shop.app", "package", "package.celery:app"])
def test_an_application_that_is_there_is_found_as_celery_finds_it(site: Site, app: str) -> None:
    (site.directory / "package").mkdir()
    site.write(**{"package/__init__.py": "", "package/celery.py": APP})
    assert site.probe(app=app).registered >= {"tasks.bill"}


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        ("broken:app", "AttributeError: module 'os' has no attribute 'nope'"),
        ("package", "ModuleNotFoundError: No module named 'requests2'"),
        ("shop2:app", "ModuleNotFoundError: No module named 'shop3'"),
    ],
)
def test_an_error_of_the_applications_own_is_not_hidden_by_how_celery_looks_for_it(
    site: Site, app: str, expected: str
) -> None:
    (site.directory / "package").mkdir()
    site.write(**{"package/__init__.py": "", "package/celery.py": "import requests2\n"})
    site.write(**{"broken.py": "import os\napp = os.nope\n", "shop2.py": "import shop3\n"})
    probe = site.probe(app=app)
    assert (probe.failed, probe.errors[""].splitlines()[-1]) == ("", expected)


def test_a_missing_directory_is_named(site: Site) -> None:
    probe = application.parse_imports(site.host, ask(application.ask_imports(make_host(
        directory="/no/such", env_file="/no/such/env", python=sys.executable, user=getpass.getuser(),
    ), "shop", (), {})))  # fmt: skip
    assert probe.failed == "cannot enter celery_directory /no/such: No such file or directory"


def test_what_the_environment_file_adds_to_pythonpath_is_found(site: Site) -> None:
    (site.directory / "lib").mkdir()
    site.write(**{"lib/shop2.py": APP})
    assert "does not find module shop2" in site.probe(app="shop2").failed
    site.write(**{"app.env": f"PYTHONPATH=/no/such:{site.directory}/lib\n"})
    assert "tasks.bill" in site.probe(app="shop2").registered


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_what_keeps_root_from_becoming_the_applications_user_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.probe(user="nosuch").failed == "celery_user is nosuch, but this user does not exist"
    (site.directory / "bin").mkdir()
    for name in ("cat", "id", "mktemp", "rm", "sed"):
        (site.directory / "bin" / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", f"{site.directory}/bin")
    failed = site.probe(user="daemon").failed
    assert re.match(
        r"root cannot become daemon: .*setpriv: not found.* This needs setpriv of util-linux",
        failed,
    )


def _pythons() -> list[str]:
    """The older Pythons of this machine, as its user has them."""
    places = (
        *glob.glob("/usr/bin/python3.?"),
        *glob.glob(os.path.expanduser("~/.pyenv/versions/3.[6789].*/bin/python")),
    )
    return [place for place in places if os.access(place, os.X_OK)]


FAKE = """\
    from celery import Celery
    class Conf:
        worker_enable_remote_control = True
        broker_transport_options = {}
    class App(Celery):
        conf, tasks = Conf, {"tasks.bill": None}
        class loader:
            import_default_modules = staticmethod(lambda: None)
        finalize = staticmethod(lambda: None)
    def find_app(name):
        import os
        assert os.environ["A"] == "x y"
        return App()
    """


@pytest.mark.parametrize("python", _pythons())
def test_the_probe_runs_on_old_pythons(site: Site, python: str) -> None:
    for folder in ("celery", "celery/app"):
        (site.directory / folder).mkdir()
    site.write(**{"celery/__init__.py": "class Celery: pass\n", "celery/app/__init__.py": ""})
    site.write(**{"celery/app/utils.py": FAKE, "app.env": "A='x y'\n"})
    probe = site.probe(python=python)
    assert (probe.failed, probe.errors, probe.registered) == ("", {}, frozenset({"tasks.bill"}))


def test_a_module_that_exits_is_reported_and_no_traceback_of_ours(site: Site) -> None:
    site.write(**{"shop.py": "import sys\nprint('usage: shop')\nsys.exit(0)\n"})
    probe = site.probe()
    assert probe.registered == frozenset()
    assert "usage: shop" in probe.errors[""]


def test_an_application_that_prints_much_before_and_after_does_not_confuse_the_answer(
    site: Site,
) -> None:
    noise = (
        'print("x" * 2_000_000, end="")\nimport atexit\natexit.register(print,'
        ' "bye")\nprint({"registered": []})\n'
    )
    site.write(**{"tasks.py": noise + dedent(TASKS)})
    probe = site.probe()
    assert "tasks.bill" in probe.registered
    assert probe.errors == {}


def test_an_application_that_starts_a_thread_does_not_hold_the_answer_up(site: Site) -> None:
    thread = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    site.write(**{"tasks.py": thread + dedent(TASKS)})
    assert "tasks.bill" in site.probe().registered


def test_a_process_that_the_application_starts_and_leaves_does_not_hold_the_answer_up(
    site: Site,
) -> None:
    start = (
        "import subprocess\nopen('pid', 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\n"
    )
    site.write(**{"tasks.py": start + dedent(TASKS)})
    assert "tasks.bill" in site.probe().registered
    os.kill(int((site.directory / "pid").read_text()), signal.SIGKILL)


def test_an_application_that_reads_its_input_finds_none(site: Site) -> None:
    site.write(**{"tasks.py": "import sys\nassert sys.stdin.read() == ''\n" + dedent(TASKS)})
    assert site.probe().errors == {}


def test_awkward_names_and_values_reach_the_probe_as_they_are(site: Site) -> None:
    value = 'it\'s "$(id)" \\ 😀 %s {x}'
    check = (
        "import os, pathlib\npathlib.Path('seen').write_text(os.environ['X'], encoding='utf-8')\n"
    )
    site.write(**{"tasks.py": check + dedent(TASKS)})
    site.probe(overrides={"X": value})
    assert (site.directory / "seen").read_text(encoding="utf-8") == value


def test_garbage_instead_of_an_answer_is_the_error_of_everything(site: Site) -> None:
    for out, error in ((b"", "no output"), (b"hello\n{broken\n", "hello\n{broken")):
        probe = application.parse_imports(site.host, Answer(0, application.BEGAN + out, ""))
        assert (probe.failed, probe.errors) == ("", {"": error})


def test_a_probe_that_did_not_come_so_far_has_failed_and_accuses_nothing(site: Site) -> None:
    probe = application.parse_imports(
        site.host, Answer(1, b"", "celery_user is x, but this user does not exist\n")
    )
    assert (probe.failed, probe.errors) == ("celery_user is x, but this user does not exist", {})


ROUTED = """
app.conf.task_default_queue = "rest"
app.conf.task_routes = {"tasks.b*": {"queue": "bills", "priority": 3}}
app.conf.beat_schedule = {
    "nightly": {"task": "tasks.bill", "schedule": 60.0},
    "typo": {"task": "tasks.gone", "schedule": 60.0, "options": {"queue": "bils"}},
    "rest": {"task": "tasks.gone", "schedule": 60.0, "args": (1,)},
}
"""


def said(site: Site) -> Application:
    probe = site.probe()
    assert probe.application, probe.errors
    return probe.application


def queue_of(said: Application, name: str) -> str:
    task = said.task(name)
    assert task
    return task.route.queue


def scheduled(said: Application) -> list[tuple[str, str]]:
    return [(entry.name, entry.route.queue) for entry in said.schedule if entry.route]


def test_celerys_own_router_shows_which_queue_a_task_goes_to(site: Site) -> None:
    site.write(**{"shop.py": dedent(APP) + ROUTED})
    found = said(site)
    assert (queue_of(found, "tasks.bill"), queue_of(found, "celery.chord")) == ("bills", "rest")
    assert scheduled(found) == [("nightly", "bills"), ("typo", "bils"), ("rest", "rest")]
    site.write(
        **{"shop.py": dedent(APP) + ROUTED + "app.conf.task_create_missing_queues = False\n"}
    )
    assert [
        entry.route and entry.route.error for entry in said(site).schedule if entry.name == "typo"
    ] == ["QueueNotFound: \"Queue 'bils' missing from task_queues\""]


@pytest.mark.parametrize(
    "looks",
    [
        "args",
        "len(args)",
        "args[0]",
        "kwargs.get('x')",
        "'x' in kwargs",
        "kwargs['x']",
        "list(kwargs)",
        "bool(kwargs)",
    ],
)
def test_where_a_router_looks_at_arguments_nothing_is_known_without_them(
    site: Site, looks: str
) -> None:
    own = (
        "app.conf.task_routes = (lambda name, args, kwargs, *_, **__: {'queue': 'one' if"
        f" {looks} else 'none'}},)\n"
    )
    site.write(**{"shop.py": dedent(APP) + ROUTED + own})
    found = said(site)
    bill = found.task("tasks.bill")
    assert bill
    assert (bill.route.queue, bill.route.looks_at_arguments) == ("", True)


def test_a_router_that_goes_by_the_name_is_known(site: Site) -> None:
    own = "app.conf.task_routes = (lambda name, *_, **__: {'queue': name.split('.')[-1]},)\n"
    site.write(**{"shop.py": dedent(APP) + ROUTED + own})
    assert queue_of(said(site), "tasks.bill") == "bill"


def test_an_entry_of_the_schedule_is_routed_by_its_own_arguments(site: Site) -> None:
    own = (
        "app.conf.task_routes = (lambda name, args, *_, **__: {'queue': 'one' if args else"
        " 'none'},)\n"
    )
    site.write(**{"shop.py": dedent(APP) + ROUTED + own})
    assert scheduled(said(site)) == [("nightly", "none"), ("typo", "bils"), ("rest", "one")]


SAYS = """
import os
from kombu import Exchange, Queue
password = os.environ["APP_PASSWORD"]
app.conf.update(
    broker_url=f"sentinel://:{password}@s1:26379/2;sentinel://:{password}@s2/2",
    result_backend=f"db+postgresql://shop:{password}@pg/results",
    task_queues=[Queue("media", Exchange("media"), routing_key="video"), Queue("plain")],
    task_routes={"tasks.b*": {"exchange": "media", "routing_key": "video"}},
    task_annotations={"tasks.bill": {
        "rate_limit": "10/m", "soft_time_limit": 5, "time_limit": 9, "acks_late": True,
        "ignore_result": True, "max_retries": None,
    }},
    beat_schedule={"nightly": {
        "task": "tasks.bill", "schedule": timedelta(minutes=2), "kwargs": {"api_token": "t0p-s3cret"},
        "options": {"priority": 5, "expires": timedelta(hours=1)},
    }},
)
"""


def test_it_says_where_its_broker_and_results_are_and_how_its_tasks_run_without_any_password(
    site: Site,
) -> None:
    head = "from datetime import timedelta\n" + dedent(APP).replace("memory://", "")
    site.write(**{"shop.py": head + SAYS, "app.env": "APP_PASSWORD=hunter2-hunter2\n"})
    found = said(site)
    assert [str(place) for place in found.broker] == ["s1:26379/2", "s2:None/2"]
    assert [str(place) for place in found.backend] == ["db+postgresql://pg/results"]
    assert [queue.name for queue in found.queues] == ["media", "plain"]
    bill = found.task("tasks.bill")
    assert bill
    assert (bill.route.queue, bill.route.exchange, bill.route.routing_key) == (
        "media",
        "media",
        "video",
    )
    assert (bill.rate_limit, bill.soft_time_limit_s, bill.time_limit_s) == ("10/m", 5, 9)
    assert (bill.acks_late, bill.ignores_result, bill.max_retries) == (True, True, None)
    (entry,) = found.schedule
    assert (entry.every_s, entry.options) == (120.0, {"priority": 5, "expires": 3600.0})
    assert entry.route
    assert entry.route.priority == 5
    assert "hunter2" not in repr(found)
    assert "s3cret" not in repr(found)


def test_where_results_are_is_the_same_whatever_user_and_password_lead_there(site: Site) -> None:
    urls = ("redis://:one@r1:6379/2", "redis://shop:other@r1/2", "redis://r1/2")
    found = set()
    for url in urls:
        site.write(**{"shop.py": dedent(APP) + f"app.conf.result_backend = {url!r}\n"})
        found.add(tuple(place.usual for place in said(site).backend))
    assert len(found) == 1


def test_it_says_its_versions_and_those_of_its_schedulers(site: Site) -> None:
    names = ("celery", "kombu", "redis", "django", "django_celery_beat", "redbeat")
    for name in names[-2:]:
        site.write(**{f"{name}.py": f'__version__ = "1.2.{len(name)}"\n'})
    loads = f"import {', '.join(names)}\n"
    site.write(**{"shop.py": loads + dedent(APP)})
    assert said(site).versions == {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names[:4]},
        "django_celery_beat": "1.2.18",
        "redbeat": "1.2.7",
    }


@pytest.mark.parametrize(
    "description",
    [None, [], {"tasks": 3}, {"broker": [{"scheme": 1}]}, {"schedule": [{"name": "x"}]}],
)
def test_an_answer_of_another_shape_says_nothing(site: Site, description: Any) -> None:
    line = application.ANSWER + json.dumps({"registered": [], "application": description})[1:]
    answer = Answer(
        0, application.BEGAN + (line.replace('{"answer": ', '{"answer": {') + "}\n").encode(), ""
    )
    assert application.parse_what_it_says(answer) is None


def test_the_digest_of_a_load_is_the_one_that_a_look_makes(site: Site) -> None:
    (site.directory / "it's a *").mkdir()
    (site.directory / "it's a *" / "odd.py").write_text("")
    until(lambda: (found := said(site).came_from).digest and found)
    found = said(site).came_from
    look = Answer(0, ask(facts.ask_loaded(found)).out, "")
    assert facts.parse_loaded(look) == found.digest
    (site.directory / "it's a *" / "odd.py").write_text("x")
    assert facts.parse_loaded(ask(facts.ask_loaded(found))) != found.digest


def test_the_folder_of_a_library_is_not_watched_where_one_of_its_files_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Debian's sitecustomize.py is, a link to /etc: each look would ask for all of the standard
    library.
    """
    library, elsewhere = tmp_path / "usr/lib/python3", tmp_path / "etc/sitecustomize.py"
    library.mkdir(parents=True)
    elsewhere.parent.mkdir()
    elsewhere.write_text("")
    link = library / "sitecustomize.py"
    link.symlink_to(elsewhere)
    module = ModuleType("sitecustomize")
    module.__file__ = str(link)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "usr"))
    monkeypatch.setitem(sys.modules, "sitecustomize", module)
    watch: Any = SimpleNamespace(files=set(), directory=f"{tmp_path}/", began_at=0.0)
    found = describe_application.came_from(watch)
    assert str(link) in found["files"]
    assert str(library) not in found["folders"]
