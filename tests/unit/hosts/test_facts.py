"""What a host is asked, tried on this machine: real files, real processes, a real Celery application."""

import getpass
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runbooks.core.errors import RunbookError
from runbooks.core.fleet import FleetHost
from runbooks.core.model import FileState, ImportProbe, ServiceState
from runbooks.core.settings import Commands
from runbooks.hosts import facts
from runbooks.hosts.script import Answer, quote, run_fragments
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host
from tests.unit.hosts.test_transport import wait_until


def ask(question: str, private: Collection[str] = ()) -> Answer:
    return run_fragments(LocalTransport(), {"q": question}, timeout_s=30, private=private)["q"]


def look(path: Path | str) -> FileState:
    return facts.parse_files([str(path)], ask(facts.ask_files([str(path)])))[str(path)]


# --- the clock


def test_the_clock_is_the_hosts_own_in_epoch_seconds() -> None:
    before = time.time()
    assert before <= facts.parse_clock(ask(facts.ask_clock())).now <= time.time()


# --- files


def test_a_file_is_its_bytes_mode_owner_and_the_time_of_its_last_change(tmp_path: Path) -> None:
    path = tmp_path / "app.env"
    path.write_bytes(b"A=1\n")
    path.chmod(0o640)
    os.utime(path, (1_700_000_000.25, 1_700_000_000.25))
    assert look(path) == FileState(b"A=1\n", 0o640, 1_700_000_000.25)


def test_a_file_that_is_not_there_is_told_from_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert look(tmp_path / "none").content is None
    assert look(tmp_path / "empty").content == b""


@pytest.mark.parametrize("content", [bytes(range(256)) * 3, b"\n", b"\n\nx", b"no newline", b"\0", b"0644 root\n"])
def test_a_file_of_any_bytes_comes_back_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert look(tmp_path / "file").content == content


def test_many_files_are_told_apart_whatever_is_in_them(tmp_path: Path) -> None:
    contents = {f"f{n}": content for n, content in enumerate((b"no newline", None, b"", b"\n\n1\n", None, b"644 x"))}
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in contents]
    states = facts.parse_files(paths, ask(facts.ask_files(paths)))
    assert [states[path].content for path in paths] == list(contents.values())


def test_a_file_that_changes_while_it_is_read_is_not_mixed_up_with_the_next() -> None:
    with pytest.raises(RunbookError, match="changed while it was read"):
        facts.parse_files(["/a", "/b"], Answer(0, b"11\n3 644 1.0 a:b\n3 644 1.0 a:b\nabcabcd", ""))


@pytest.mark.parametrize(
    "name",
    ["two words", "it's", 'say "hi"', "new\nline", "$(touch evil)", "`id`", "$HOME", "*", "-n", "ü", "a\\b", ";ls"],
)
def test_a_file_of_any_name_is_found_and_no_name_is_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(name)
    (tmp_path / "other").write_text("other")
    assert look(tmp_path / name).content == name.encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "other"])


def test_a_link_is_the_file_it_leads_to_and_not_mode_777(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    assert (look(tmp_path / "link").content, look(tmp_path / "link").mode) == (b"x", 0o600)


def test_a_folder_where_a_file_belongs_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RunbookError, match=f"cannot be read: .*{tmp_path}.*directory"):
        look(tmp_path)


def test_a_file_that_may_not_be_read_is_an_error_and_not_an_absent_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.env"
    path.write_text("x")
    path.chmod(0)
    as_nobody = ["/bin/sh", "-c", facts.ask_files([str(path)])]
    if os.getuid() == 0:
        for parent in (tmp_path, *tmp_path.parents[:3]):
            parent.chmod(0o755)
        done = subprocess.run(as_nobody, capture_output=True, text=True, user=65534, group=65534, extra_groups=[])
    else:
        done = subprocess.run(as_nobody, capture_output=True, text=True)
    with pytest.raises(RunbookError, match=f"cannot be read: .*{path}.*denied") as caught:
        facts.parse_files([str(path)], Answer(done.returncode, done.stdout.encode(), done.stderr))
    assert "user" in caught.value.advice


# --- services


def service_host(tmp_path: Path, status: str) -> FleetHost:
    return make_host(directory=str(tmp_path), commands=Commands(start="false", stop="false", status=status))


def state_of(tmp_path: Path, status: str, service: str = "high") -> ServiceState:
    host = service_host(tmp_path, status)
    return facts.parse_service(host, "shop", service, ask(facts.ask_service(host, service)), ())


WORKER = "celery -A shop worker -n high@web1"


def run_as_if(command: str, program: str | Path = "sleep") -> "subprocess.Popen[bytes]":
    """A process that does nothing with the command line of another, which is one argument here, as a title is."""
    return subprocess.Popen([command, "600"], executable=shutil.which(program), stdin=subprocess.DEVNULL)


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    running = run_as_if(WORKER)
    yield running
    running.kill()
    running.wait()


def test_a_running_service_is_its_pid_and_the_time_it_was_started(tmp_path: Path) -> None:
    before = time.time()
    running = run_as_if(WORKER)
    try:
        after = time.time()
        state = state_of(tmp_path, f"echo {running.pid}")
    finally:
        running.kill()
        running.wait()
    assert state.pid == running.pid
    assert state.started_at is not None
    tick_s = 0.03  # the kernel counts in ticks of 10 ms
    between_s = 10  # the host reads its two clocks one after the other
    assert before - tick_s <= state.started_at <= after + between_s


def test_a_process_with_an_odd_name_is_understood(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b c"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    running = run_as_if(WORKER, program)
    try:
        assert state_of(tmp_path, f"echo {running.pid}").pid == running.pid
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize(
    ("service", "command", "found"),
    [
        ("high", "sleep", "sleep"),
        ("high", "vi celery.txt", "sleep"),
        ("high", "celery -A shop beat", "beat"),
        ("high", "celery -A shop worker -n low@web1", "worker low@web1"),
        ("high", "celery -A shop worker -n high@web2", "worker high@web2"),
        ("high", "celery -A shop worker -n high", "worker high"),  # it is celery@high
        ("high", "celery -A bank worker -n high@web1", "worker high@web1"),
        ("high", "[celeryd: low@web1:MainProcess] -active- (-A shop worker)", "worker low@web1"),
        ("beat", WORKER, "worker high@web1"),
        ("high", WORKER, ""),
        ("high", "python -m celery -A shop.celery:app worker --hostname=high@%h", ""),
        ("high", "/srv/venv/bin/celery -A shop worker", ""),
        ("high", "[celeryd: high@web1:MainProcess] -active- (-A shop worker)", ""),
        ("beat", "celery -A shop beat", ""),
        ("beat", "celery -A shop worker -B -n high@web1", ""),
    ],
)
def test_a_pid_counts_only_where_this_service_of_this_application_runs_under_it(
    tmp_path: Path, service: str, command: str, found: str
) -> None:
    running = run_as_if(command)
    try:
        state = state_of(tmp_path, f"echo {running.pid}", service)
    finally:
        running.kill()
        running.wait()
    told = f"pid {running.pid} ({found})" if found else ""
    assert (state.pid, state.other_process) == (None if found else running.pid, told)


@pytest.mark.parametrize(("command", "counts"), [(WORKER, True), ("celery -A shop worker -n low@web1", False)])
def test_a_pid_counts_where_a_process_below_it_is_the_service(tmp_path: Path, command: str, counts: bool) -> None:
    """As below a shell, or a tool that starts it again."""
    script = f"bash -c 'exec -a \"$0\" sleep 600' '{command}' & echo; wait"
    shell = subprocess.Popen(["bash", "-c", f"( {script} ) & wait"], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert shell.stdout
        shell.stdout.readline()
        wait_until(lambda: (state_of(tmp_path, f"echo {shell.pid}").pid == shell.pid) == counts, "its command line")
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


def test_exit_code_3_means_that_it_does_not_run_and_what_was_said_is_evidence(tmp_path: Path) -> None:
    assert state_of(tmp_path, "echo stopped; exit 3") == ServiceState(None, None, "stopped")


def test_exit_code_3_counts_whatever_pid_is_printed(tmp_path: Path, process: "subprocess.Popen[bytes]") -> None:
    assert state_of(tmp_path, f"echo {process.pid}; exit 3").pid is None


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("true", "exited 0 and said: nothing"),
        ("exit 1", "exited 1 and said: nothing"),
        ("echo broken pipe >&2; exit 1", "exited 1 and said: broken pipe"),
        ("echo running", "exited 0 and said: running"),
        ("echo 12x", "exited 0 and said: 12x"),
        ("echo -5", "exited 0 and said: -5"),
        ("printf '\\377\\000'", "exited 0 and said: "),
        ("nosuchcommand", "exited 127 and said: .*nosuchcommand"),
        ("echo 4194305", "exited 0 and said: 4194305"),  # beyond the largest pid: nothing runs under it
        ("yes | head -n 5000; exit 1", r"exited 1 and said: \s*y"),
    ],
)
def test_any_other_answer_is_an_error_that_shows_it(tmp_path: Path, status: str, said: str) -> None:
    with pytest.raises(RunbookError, match=f"the status command of high {said}") as caught:
        state_of(tmp_path, status)
    assert "celery_commands.status" in caught.value.advice
    assert len(caught.value.problem) < 500


def test_a_directory_that_is_not_there_is_told_and_not_said_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunbookError, match=r"exited \d and said: .*/missing"):
        state_of(tmp_path / "missing", "true")


def test_more_lines_than_the_pid_are_evidence(tmp_path: Path, process: "subprocess.Popen[bytes]") -> None:
    state = state_of(tmp_path, f"echo {process.pid}; echo since yesterday")
    assert (state.pid, state.answer) == (process.pid, f"{process.pid}\nsince yesterday")


def test_a_warning_before_the_pid_is_no_answer(tmp_path: Path, process: "subprocess.Popen[bytes]") -> None:
    """As of a bash whose LC_ALL names a locale that the host does not have."""
    state = state_of(tmp_path, f"echo 'bash: warning: setlocale: LC_ALL: cannot change locale' >&2; echo {process.pid}")
    assert state.pid == process.pid


def test_a_status_command_that_reads_its_input_does_not_wait_for_any(tmp_path: Path) -> None:
    assert state_of(tmp_path, "cat; read -r x; exit 3").pid is None


def test_a_status_command_runs_in_the_applications_directory(tmp_path: Path) -> None:
    assert state_of(tmp_path, "pwd; exit 3").answer == str(tmp_path)


@pytest.mark.parametrize("name", ["a-b.c_1", "two words", "$(touch evil)", "it's", "`id`"])
def test_a_service_of_any_name_reaches_its_command_as_one_argument(tmp_path: Path, name: str) -> None:
    assert state_of(tmp_path, "printf '<%s>' {worker}; exit 3", name).answer == f"<{name}>"
    assert list(tmp_path.iterdir()) == []


def test_a_status_command_may_end_with_a_comment(tmp_path: Path) -> None:
    assert state_of(tmp_path, "exit 3 # not yet").pid is None


# --- imports

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
        return make_host(directory=str(self.directory), env_file=str(self.directory / "app.env"), **settings)

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.directory / name).write_text(dedent(text))

    def probe(
        self, *expected: str, overrides: Mapping[str, str] | None = None, app: str = "shop", **settings: Any
    ) -> ImportProbe:
        host = self.of(**settings) if settings else self.host
        encodings = ("utf-8", "binary", "klingon", "\0")
        question = facts.ask_imports(host, app, expected or ("tasks.bill",), overrides or {}, encodings)
        return facts.parse_imports(host, ask(question, private=["q"]), ())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_good_application_registers_its_tasks_and_has_no_errors(site: Site) -> None:
    probe = site.probe()
    assert "tasks.bill" in probe.registered
    assert probe.errors == {}


def test_an_application_that_switches_remote_control_off_says_so(site: Site) -> None:
    assert site.probe().remote_control
    site.write(**{"shop.py": dedent(APP) + "app.conf.worker_enable_remote_control = False\n"})
    assert not site.probe().remote_control


def test_an_application_tells_the_transport_options_that_matter_and_no_other(site: Site) -> None:
    assert site.probe().options == {}
    options = {"visibility_timeout": 7200, "priority_steps": (0, 5), "sentinel_kwargs": {"password": "s3cret"}}
    site.write(**{"shop.py": dedent(APP) + f"app.conf.broker_transport_options = {options}\n"})
    assert site.probe().options == {"visibility_timeout": 7200, "priority_steps": [0, 5]}


def test_an_application_that_cannot_be_loaded_tells_no_options(site: Site) -> None:
    site.write(**{"shop.py": "import nosuch\n"})
    assert site.probe().options is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("manager", [{}, {"service_manager": "systemd", "commands": None}])
def test_the_applications_code_is_run_by_its_own_user_and_never_by_root(manager: dict[str, Any]) -> None:
    with TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o777)
        site = Site(Path(directory))
        (site.directory / "app.env").chmod(0o600)
        fake = site.directory / "python"
        fake.write_text("#!/bin/sh\ncat >/dev/null\nid -un >seen\n")
        fake.chmod(0o755)
        host = site.of(user="nobody", python=str(fake), **manager)
        ask(f"cd {directory}\n{facts.ask_imports(host, 'shop', (), {})}")
        assert (site.directory / "seen").read_text() == "nobody\n"


def test_an_application_tells_what_its_workers_can_read(site: Site) -> None:
    probe = site.probe()
    assert probe.accepts == frozenset({"application/json", "application/data", "application/text"})
    assert probe.compressions is not None
    assert probe.compressions >= {"application/x-gzip", "gzip", "zlib", "application/x-bz2"}
    assert "application/x-br" not in probe.compressions
    assert probe.encodings == frozenset({"utf-8", "binary"})
    assert probe.decodes is not None
    assert probe.decodes >= {"application/json", "application/x-python-serialize", "application/text"}
    site.write(**{"shop.py": dedent(APP) + "app.conf.accept_content = ['pickle', 'application/x-yaml']\n"})
    own = {"application/x-python-serialize", "application/x-yaml"}
    assert site.probe().accepts == frozenset(own | {"application/data", "application/text"})


def test_a_schedule_that_is_none_does_not_pass_for_an_application_that_does_not_load(site: Site) -> None:
    site.write(**{"shop.py": dedent(APP) + "app.conf.beat_schedule = [1]\n"})
    probe = site.probe()
    assert (probe.loaded, probe.schedule) == (True, ())


def test_an_application_whose_accepted_content_is_unknown_does_not_tell_it(site: Site) -> None:
    site.write(**{"shop.py": dedent(APP) + "app.conf.accept_content = ['nosuch']\n"})
    assert site.probe().accepts is None


def test_a_module_that_imports_but_has_no_such_task_is_told_with_no_error(site: Site) -> None:
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
    assert probe.errors["tasks"].splitlines()[-1] == "ValueError: invalid literal for int() with base 10: 'thirty'"
    assert "tasks.py" in probe.errors["tasks"]


def test_the_environment_file_is_read_and_overrides_come_on_top(site: Site) -> None:
    site.write(**{
        "tasks.py": "import os\nassert (os.environ['A'], os.environ['B']) == ('x y', '2')\n" + dedent(TASKS),
        "app.env": "# A=no\n; A=no\nexport A='x y'\nB=1\nB= 2 \n",
    })  # fmt: skip
    assert site.probe().errors == {}
    assert "AssertionError" in site.probe(overrides={"B": "3"}).errors[""]


@pytest.mark.parametrize(
    "line", [b"CAF\xc9=caf\xe9", b"NOTE=caf\xe9", b'A="unbalanced', b"=x", b"A B=c", b"\xff", b"A=\0"]
)
def test_a_line_that_is_no_variable_does_not_pass_for_an_import_error(site: Site, line: bytes) -> None:
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
    ("python", "told"),
    [
        ("/no/such/python", rf"does not find: {NAME_PYTHON}"),
        ("/usr/bin", rf"does not find: {NAME_PYTHON}"),
        ("{site}/tasks.py", rf"may not execute: {NAME_PYTHON}"),
        ("/bin/true", r"which did not come so far as to load it: it printed nothing"),
        ("/bin/sh", r"which did not come so far as to load it: .*-B"),
        ("{site}/old", r"did not come so far as to load it: it is Python 3\.5; 3\.6 or newer is needed"),
        ("{site}/bare", rf"and that Python 3\.\d+ cannot import Celery \(No module named 'celery'\): {NAME_PYTHON}"),
    ],
)
def test_a_wrong_celery_python_is_named_and_says_nothing_about_the_application(
    site: Site, python: str, told: str
) -> None:
    site.write(bare=f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n', old=WRAPPED.format(python=sys.executable))
    for name in ("bare", "old"):
        (site.directory / name).chmod(0o755)
    python = python.format(site=site.directory)
    probe = site.probe(python=python)
    assert re.fullmatch(rf"celery_python is {python}, .*{told}", probe.failed.splitlines()[0])
    assert (probe.loaded, probe.errors, probe.registered) == (False, {}, frozenset())


@pytest.mark.parametrize(
    ("app", "told"),
    [
        ("nope:app", "{python} finds no module nope in {site}: correct celery_app or celery_directory"),
        ("tasks.nope", "{python} finds no module tasks.nope in {site}: correct celery_app or celery_directory"),
        ("shop:nope", "{site}/shop.py has no nope: correct celery_app (MODULE:ATTRIBUTE)"),
        ("other", "{site}/other.py has no Celery application: correct celery_app (MODULE:ATTRIBUTE)"),
        ("other:x", "which is of type int and no Celery application: correct celery_app (MODULE:ATTRIBUTE)"),
        ("flask", "which is of type int and no Celery application: correct celery_app (MODULE:ATTRIBUTE)"),
    ],
)
def test_a_wrong_celery_app_is_named_and_says_nothing_about_the_application(site: Site, app: str, told: str) -> None:
    site.write(**{"other.py": "x = 1\n", "flask.py": "app = 1\n"})
    probe = site.probe(app=app)
    told = told.format(python=sys.executable, site=site.directory)
    assert probe.failed in (f"celery_app is {app}, {told}", f"celery_app is {app}, and {told}")
    assert (probe.loaded, probe.errors, probe.registered) == (False, {}, frozenset())


@pytest.mark.parametrize("app", ["shop", "shop:app", "shop.app", "package", "package.celery:app"])
def test_an_application_that_is_there_is_found_as_celery_finds_it(site: Site, app: str) -> None:
    (site.directory / "package").mkdir()
    site.write(**{"package/__init__.py": "", "package/celery.py": APP})
    assert site.probe(app=app).registered >= {"tasks.bill"}


@pytest.mark.parametrize(
    ("app", "told"),
    [
        ("broken:app", "AttributeError: module 'os' has no attribute 'nope'"),
        ("package", "ModuleNotFoundError: No module named 'requests2'"),
        ("shop2:app", "ModuleNotFoundError: No module named 'shop3'"),
    ],
)
def test_an_error_of_the_applications_own_is_not_hidden_by_how_celery_looks_for_it(
    site: Site, app: str, told: str
) -> None:
    (site.directory / "package").mkdir()
    site.write(**{"package/__init__.py": "", "package/celery.py": "import requests2\n"})
    site.write(**{"broken.py": "import os\napp = os.nope\n", "shop2.py": "import shop3\n"})
    probe = site.probe(app=app)
    assert (probe.failed, probe.errors[""].splitlines()[-1]) == ("", told)


def test_a_missing_directory_is_named(site: Site) -> None:
    probe = facts.parse_imports(site.host, ask(facts.ask_imports(make_host(
        directory="/no/such", env_file="/no/such/env", python=sys.executable, user=getpass.getuser(),
    ), "shop", (), {})), ())  # fmt: skip
    assert probe.failed == "celery_directory is /no/such, which cannot be entered: No such file or directory"


def test_what_the_environment_file_adds_to_pythonpath_is_found(site: Site) -> None:
    (site.directory / "lib").mkdir()
    site.write(**{"lib/shop2.py": APP})
    assert "finds no module shop2" in site.probe(app="shop2").failed
    site.write(**{"app.env": f"PYTHONPATH=/no/such:{site.directory}/lib\n"})
    assert "tasks.bill" in site.probe(app="shop2").registered


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_what_keeps_root_from_becoming_the_applications_user_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site.probe(user="nosuch").failed == "celery_user is nosuch, and there is no such user"
    (site.directory / "bin").mkdir()
    for name in ("cat", "id", "mktemp", "rm", "sed"):
        (site.directory / "bin" / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", f"{site.directory}/bin")
    failed = site.probe(user="nobody").failed
    assert re.match(r"root cannot become nobody \(setpriv of util-linux is needed .*\): .*setpriv: not found", failed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_an_environment_file_that_may_not_be_read_is_named() -> None:
    with TemporaryDirectory(dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        site = Site(Path(directory))
        (site.directory / "app.env").chmod(0o600)
        question = facts.ask_imports(site.host, "shop", (), {})
        answer = ask(f"setpriv --reuid nobody --regid nogroup --clear-groups sh -c {quote(question)}")
    told = f"celery_env_file is {directory}/app.env, which nobody may not read: connect as a user who may, or as root"
    assert facts.parse_imports(site.host, answer, ()).failed == told


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


def test_a_module_that_exits_is_told_and_no_traceback_of_ours(site: Site) -> None:
    site.write(**{"shop.py": "import sys\nprint('usage: shop')\nsys.exit(0)\n"})
    probe = site.probe()
    assert probe.registered == frozenset()
    assert "usage: shop" in probe.errors[""]


def test_an_application_that_prints_much_before_and_after_does_not_confuse_the_answer(site: Site) -> None:
    noise = 'print("x" * 2_000_000, end="")\nimport atexit\natexit.register(print, "bye")\nprint({"registered": []})\n'
    site.write(**{"tasks.py": noise + dedent(TASKS)})
    probe = site.probe()
    assert "tasks.bill" in probe.registered
    assert probe.errors == {}


def test_an_application_that_starts_a_thread_does_not_hold_the_answer_up(site: Site) -> None:
    thread = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    site.write(**{"tasks.py": thread + dedent(TASKS)})
    assert "tasks.bill" in site.probe().registered


def test_a_process_that_the_application_starts_and_leaves_does_not_hold_the_answer_up(site: Site) -> None:
    start = "import subprocess\nopen('pid', 'w').write(str(subprocess.Popen(['sleep', '600']).pid))\n"
    site.write(**{"tasks.py": start + dedent(TASKS)})
    assert "tasks.bill" in site.probe().registered
    os.kill(int((site.directory / "pid").read_text()), signal.SIGKILL)


def test_an_application_that_reads_its_input_finds_none(site: Site) -> None:
    site.write(**{"tasks.py": "import sys\nassert sys.stdin.read() == ''\n" + dedent(TASKS)})
    assert site.probe().errors == {}


def test_awkward_names_and_values_reach_the_probe_as_they_are(site: Site) -> None:
    value = 'it\'s "$(id)" \\ 😀 %s {x}'
    check = "import os, pathlib\npathlib.Path('seen').write_text(os.environ['X'], encoding='utf-8')\n"
    site.write(**{"tasks.py": check + dedent(TASKS)})
    site.probe(overrides={"X": value})
    assert (site.directory / "seen").read_text(encoding="utf-8") == value


def test_garbage_instead_of_an_answer_is_the_error_of_everything(site: Site) -> None:
    for out, error in ((b"", "it printed nothing"), (b"hello\n{broken\n", "hello\n{broken")):
        probe = facts.parse_imports(site.host, Answer(0, facts.BEGAN + out, ""), ())
        assert (probe.failed, probe.errors) == ("", {"": error})


def test_a_probe_that_did_not_come_so_far_has_failed_and_accuses_nothing(site: Site) -> None:
    probe = facts.parse_imports(site.host, Answer(1, b"", "celery_user is x, and there is no such user\n"), ())
    assert (probe.failed, probe.errors) == ("celery_user is x, and there is no such user", {})


# --- secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis://:********@host:6379/0"),
        ("amqp://user:hunter2@host//", "amqp://user:********@host//"),
        ("redis://:hun@ter2@host/0", "redis://:********@host/0"),
        ("redis://user@host/0 and me@example.org", "redis://user@host/0 and me@example.org"),
        ("redis://a:hunter2@h/0;redis://b:hunter2@h/1", "redis://a:********@h/0;redis://b:********@h/1"),
        ("http://host:8080/path?x=a@b", "http://host:8080/path?x=a@b"),
    ],
)
def test_a_password_in_a_url_is_hidden_and_the_rest_stays_readable(text: str, shown: str) -> None:
    assert facts.redact(text, ()) == shown


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=20), st.lists(st.text("abc*", min_size=4, max_size=8), max_size=3))
@example("xabcabcx", ["abca", "abcabc"])
def test_no_known_secret_survives(text: str, secrets: list[str]) -> None:
    shown = facts.redact("".join((text, *secrets, text)), secrets)
    assert not [secret for secret in secrets if secret in shown and set(secret) != {"*"}]


def test_a_secret_that_begins_with_another_is_hidden_whole() -> None:
    assert facts.redact("key abcdefgh", ["abcd", "abcdefgh"]) == "key ********"


def test_a_short_value_is_not_hidden_for_it_would_hide_everything() -> None:
    assert facts.redact("retry 1 of 10", ["1", "yes"]) == "retry 1 of 10"


# --- beat


SCHEDULE = """
import os, shelve, sys, dbm.{library}
import dbm
path = sys.argv[1]
store = shelve.Shelf(dbm.{library}.open(path, "c"), writeback=True)
store["entries"] = {{}}
store.sync()
for name in os.listdir(os.path.dirname(path)):
    os.utime(os.path.join(os.path.dirname(path), name), (5, 5))
store["entries"]["sent"] = 1
store.sync()
print("synced", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("library", ["dumb", "gnu", "ndbm"])
def test_when_beat_last_sent_is_known_where_its_schedule_is_written_then(library: str, tmp_path: Path) -> None:
    pytest.importorskip(f"dbm.{library}", exc_type=ImportError)
    host = make_host(beat_schedule=str(tmp_path / "schedule"))
    assert facts.parse_beat(ask(facts.ask_beat(host))) == (None, "")
    program = [sys.executable, "-c", SCHEDULE.format(library=library), str(tmp_path / "schedule")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as beat:
        assert beat.stdout is not None
        assert beat.stdout.readline() == b"synced\n"
        sent_at, untold = facts.parse_beat(ask(facts.ask_beat(host)))
    if untold:
        assert (library, sent_at) == ("ndbm", None)
    else:
        assert sent_at is not None
        assert sent_at > 5


ROUTED = """
app.conf.task_default_queue = "rest"
app.conf.task_routes = {"tasks.b*": {"queue": "bills", "priority": 3}}
app.conf.beat_schedule = {
    "nightly": {"task": "tasks.bill", "schedule": 60.0},
    "typo": {"task": "tasks.gone", "schedule": 60.0, "options": {"queue": "bils"}},
    "rest": {"task": "tasks.gone", "schedule": 60.0, "args": (1,)},
}
"""


def test_celerys_own_router_tells_which_queue_a_task_goes_to(site: Site) -> None:
    site.write(**{"shop.py": dedent(APP) + ROUTED})
    probe = site.probe()
    assert (probe.routes["tasks.bill"], probe.routes["celery.chord"]) == ("bills", "rest")
    assert [(one.name, one.queue) for one in probe.schedule] == [
        ("nightly", "bills"),
        ("typo", "bils"),
        ("rest", "rest"),
    ]
    site.write(**{"shop.py": dedent(APP) + ROUTED + "app.conf.task_create_missing_queues = False\n"})
    assert [one.error for one in site.probe().schedule if one.name == "typo"] == [
        "QueueNotFound: \"Queue 'bils' missing from task_queues\""
    ]


def test_what_a_router_of_the_applications_own_does_with_a_task_is_not_known_without_its_arguments(site: Site) -> None:
    own = "app.conf.task_routes = (lambda name, args, *_, **__: {'queue': 'one' if args else 'none'},)\n"
    site.write(**{"shop.py": dedent(APP) + ROUTED + own})
    probe = site.probe()
    assert probe.routes == {}
    assert [(one.name, one.queue) for one in probe.schedule] == [("nightly", "none"), ("typo", "bils"), ("rest", "one")]
