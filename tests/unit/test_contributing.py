"""What CONTRIBUTING.md says of adding something, done in a copy: it takes those files, no other,
and works.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest
import redis

from runbooks.core.operator import user_name

CHECKOUT = Path(__file__).parents[2]
NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
LEFT = shutil.ignore_patterns(".[!g]*", ".git", "__pycache__")

Edits = Mapping[str, tuple[tuple[str, str], ...]]
"""By file what is put before which text, its first; "" stands for a new file, or for the end of
one.
"""


def added(heading: str, **names: str) -> set[str]:
    """The files that CONTRIBUTING.md names under a heading, with these words for its NAME and NOUN."""
    text = (
        (CHECKOUT / "CONTRIBUTING.md")
        .read_text()
        .partition(f"## {heading}\n")[2]
        .partition("\n## ")[0]
    )
    files = re.findall(r"^\d\. `(\S+)`", text, re.MULTILINE)
    assert f"{NUMBERS[len(files)]} files:" in text
    return {re.sub("NAME|NOUN", lambda found: names[found[0]], file) for file in files}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKOUT, tmp_path / "copy", ignore=LEFT)


def apply(copy: Path, edits: Edits) -> None:
    for name, pairs in edits.items():
        path = copy / name
        text = path.read_text() if path.exists() else ""
        for before, new in pairs:
            assert before in text, f"{name}: {before!r}"
            text = text.replace(before, new + before, 1) if before else text + dedent(new)
        path.write_text(text)


def run(copy: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """A Python module in the copy, which imports nothing of this checkout."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- an effect


SET_MODE: Edits = {
    "runbooks/core/effects.py": (
        (
            "class RunTask(",
            (
                'class SetMode(_Effect, frozen=True, tag="set_mode"):\n'
                '    """Give a file another mode."""\n\n'
                "    path: str\n    mode: int\n    replaces: int\n\n\n"
            ),
        ),
        ("    | ReloadUnits\n    | EnableService", "    | SetMode\n"),
        (
            "WriteFile(path=path) | SetEnvironment(path=path) | LostContents(path=path):",
            "SetMode(path=path) | ",
        ),
        ("ControlService() | ReloadUnits() | EnableService() | EndProcesses()\n", "SetMode() | "),
    ),
    "runbooks/effects/modes.py": (
        (
            "",
            '''\
            """The modes of files."""

            from runbooks.core.effects import SetMode
            from runbooks.core.fleet import FleetHost
            from runbooks.core.model import FileState, HostState
            from runbooks.core.reporter import Outcome
            from runbooks.effects.base import STALE, Rank, ReverseOnHost
            from runbooks.hosts.script import quote


            class SetModeHandler(ReverseOnHost[SetMode]):
                rank = Rank.CHANGE
                leaves_nothing_after = Outcome.FAILED
                service = reads = ""
                stops = starts = waits = False

                @property
                def summary(self) -> str:
                    return f"set the mode of {self.effect.path} back"

                def fragment(self, host: FleetHost, read: FileState | None) -> str:
                    path, seen, wanted = quote(self.effect.path), self.effect.replaces, self.effect.mode
                    guard = f"case $(stat -c %a -- {path}) in {seen:o}|{wanted:o}) ;; *) exit {STALE};; esac"
                    return f"{guard}\\nchmod {wanted:o} -- {path}"

                def judge(self, state: HostState) -> tuple[Outcome, str]:
                    mode = state.files[self.effect.path].mode
                    if mode == self.effect.mode:
                        return Outcome.ALREADY, "nothing to undo"
                    return (Outcome.CHANGED if mode == self.effect.replaces else Outcome.CANNOT), ""
            ''',
        ),
    ),
    "runbooks/effects/dispatch.py": (
        (
            "from runbooks.effects.services import",
            "from runbooks.effects.modes import SetModeHandler\n",
        ),
        ("    SetRateLimit,\n    ShutDownNode,", "    SetMode,\n"),
        (
            "        case ReloadUnits():",
            "        case SetMode():\n            return SetModeHandler(effect)\n",
        ),
    ),
    "tests/unit/effects/test_modes.py": (
        (
            "",
            '''\
            """A mode is set, and restored."""

            from pathlib import Path

            from runbooks.core.effects import Change, SetMode
            from runbooks.core.errors import ExitCode
            from runbooks.engine.perform import perform
            from runbooks.engine.recap import Recap
            from runbooks.engine.run import recorded
            from runbooks.undo import undo
            from tests.unit.effects.made import mode_of
            from tests.unit.engine.conftest import World


            def test_a_mode_is_set_and_undone(tmp_path: Path) -> None:
                world = World(tmp_path)
                path = world.path("web1", "f")
                path.touch(0o644)
                do, back = SetMode(str(path), 0o600, 0o644), SetMode(str(path), 0o644, 0o600)
                session = world.session()
                with recorded(session, Recap()) as run:
                    perform(run, [Change("web1", "modes", "close f", do, back)])
                assert mode_of(path) == 0o600
                assert undo(session, "last", malformed=False) == ExitCode.OK
                assert mode_of(path) == 0o644
                assert world.reporter.changes[-1][1] == f"set the mode of {path} back"
            ''',
        ),
    ),
}


def test_an_effect_is_made_and_undone_once_the_files_that_are_named_have_it(copy: Path) -> None:
    assert set(SET_MODE) == added("Add an effect", NOUN="modes")
    apply(copy, SET_MODE)
    done = run(
        copy,
        "-m",
        "pytest",
        "-q",
        "tests/unit/effects/test_modes.py",
        "tests/unit/core/test_effects.py",
    )
    assert done.returncode == 0, done.stdout


def test_mypy_names_what_a_new_effect_lacks(copy: Path) -> None:
    apply(copy, SET_MODE)
    mypy = ("-m", "mypy", "--cache-dir", "../mypy", "runbooks/effects", "runbooks/core/effects.py")
    assert run(copy, *mypy).stdout.startswith("Success")
    unhandled = 'Argument 1 to "assert_never" has incompatible type "SetMode"'
    case = "case SetMode():\n            return SetModeHandler(effect)\n        "
    lacks = (
        ("runbooks/core/effects.py", "SetMode(path=path) | ", "", unhandled),
        ("runbooks/core/effects.py", "SetMode() | ", "", unhandled),
        ("runbooks/core/effects.py", "    | SetMode\n", "", '"WriteFile | SetEnvironment'),
        ("runbooks/effects/dispatch.py", case, "", 'incompatible type "SetMode | '),
        ("runbooks/effects/modes.py", "rank = Rank.CHANGE", "", 'abstract attribute "rank"'),
        ("runbooks/effects/modes.py", "def judge(", "def _judge(", 'abstract attribute "judge"'),
    )
    for name, part, instead, expected in lacks:
        path = copy / name
        whole = path.read_text()
        assert whole.count(part) == 1
        path.write_text(whole.replace(part, instead))
        assert expected in run(copy, *mypy).stdout
        path.write_text(whole)


# --- a finding, and a verb


INVENTORY = """
all:
  vars: {{celery_app: shop, celery_broker_url: "{url}", celery_directory: /srv/shop, celery_user: deploy,
    celery_python: /usr/bin/python3, celery_env_file: /etc/shop.env, celery_service_manager: commands,
    celery_commands: {{start: "false", stop: "false", status: "false"}},
    celery_expected_tasks: [], celery_workers: [{{name: high, queues: [high]}}]}}
  hosts: {{web1: {{ansible_connection: local}}}}
"""


def inv(copy: Path, url: str, *words: str) -> "subprocess.CompletedProcess[str]":
    (copy / "inventory.yaml").write_text(INVENTORY.format(url=url))
    return run(copy, "tasks.py", *words, "--state-dir", "state")


UNLUCKY: Edits = {
    "runbooks/diagnosis/queues.py": (
        (
            "        yield from _thresholds(fleet, snapshot, state)",
            "        yield from _unlucky(state)\n",
        ),
        (
            "def _too_large(",
            (
                "def _unlucky(state: QueueState) -> Iterator[Finding]:\n    if state.depth == 13:\n"
                '        yield Finding("queue.unlucky", state.name, f"{state.name} is'
                ' unlucky")\n\n\n'
            ),
        ),
    ),
    "runbooks/diagnosis/catalogue/queue.toml": (
        (
            "[unpolled]",
            (
                "[unlucky]\n"
                'title = "A queue holds thirteen messages."\n'
                'meaning = "Someone may be superstitious."\n'
                'known_by = "LLEN is 13."\n'
                'next_step = "Send one more."\n'
                'not_meant = "It does not say that the queue is slow."\n\n'
            ),
        ),
    ),
    "docs/findings.md": (),
    "tests/sentences/findings.toml": (
        (
            "",
            """
            ["queue.unlucky"]
            "A queue holds thirteen messages" = "tests/unit/diagnosis/test_diagnose.py::test_thirteen_messages_are_unlucky"
            "Someone may be superstitious" = "context"
            "LLEN is 13" = "tests/unit/diagnosis/test_diagnose.py::test_thirteen_messages_are_unlucky"
            "Send one more" = "guide"
            "It does not say that the queue is slow" = "tests/unit/diagnosis/test_diagnose.py::test_thirteen_messages_are_unlucky"
            """,
        ),
    ),
    "tests/unit/diagnosis/test_diagnose.py": (
        (
            "",
            """

            def test_thirteen_messages_are_unlucky() -> None:
                found = findings(broker=make_broker(FLEET, queues={"q": make_queue("q", 13)}))
                assert "queue.unlucky" in {finding.code for finding in found}
            """,
        ),
    ),
    "CHANGELOG.md": (
        ("- `inv diagnose`", "- `inv diagnose` names a queue of thirteen messages.\n"),
    ),
    "lab/faults/queue.py": (
        (
            "",
            """

            @fault("queue.unlucky", "thirteen messages of no task")
            @contextmanager
            def unlucky(ground: Sandbox) -> Iterator[None]:
                with ground.broker() as client:
                    client.lpush("low_priority", *(b"{}" for _ in range(13)))
                    yield
                    client.delete("low_priority")
            """,
        ),
    ),
}


def test_a_finding_is_reported_by_diagnose_once_the_files_that_are_named_have_it(
    copy: Path, url: str, client: "redis.Redis"
) -> None:
    assert set(UNLUCKY) == added("Add a finding")
    apply(copy, UNLUCKY)
    assert run(copy, "tasks.py", "docs").returncode == 0
    client.lpush("high", *(b"{}" for _ in range(13)))
    for verb in ("diagnose", "verify", "monitor"):
        assert "high is unlucky" in inv(copy, url, verb).stdout, verb
    tests = ("tests/unit/diagnosis/test_codes.py", "tests/unit/diagnosis/test_diagnose.py")
    done = run(copy, "-m", "pytest", "-q", *tests)
    assert done.returncode == 0, done.stdout
    done = run(copy, "-m", "pytest", "-q", "tests/unit/test_docs.py", "-k", "finding")
    assert done.returncode == 0, done.stdout


DEPTHS: Edits = {
    "runbooks/depths.py": (
        (
            "",
            '''\
            """`inv depths`: how many messages wait in each queue."""

            from runbooks.core.errors import ExitCode
            from runbooks.core.needs import Needs
            from runbooks.engine.context import Session


            def depths(session: Session) -> ExitCode:
                """Reads the queues, and contacts no host."""
                broker = session.observe(Needs.QUEUES).broker
                assert broker is not None
                session.reporter.table("depths", [{"queue": s.name, "depth": s.depth} for s in broker.queues.values()])
                return ExitCode.OK
            ''',
        ),
    ),
    "runbooks/cli/verbs/checks.py": (
        (
            "@verb(hosts=False)\ndef hosts",
            (
                "@verb()\ndef depths(flags: Flags) -> None:\n"
                '    """Say how many messages wait in each queue; changes nothing."""\n'
                "    from runbooks.depths import depths as page\n\n"
                "    on_fleet(flags, page)\n\n\n"
            ),
        ),
    ),
    "runbooks/cli/verbs/__init__.py": (
        ("diagnose, explain", "depths, "),
        ("    diagnose,\n", "    depths,\n"),
    ),
    "runbooks/cli/overview.py": (('        "queues",\n', '        "depths",\n'),),
    "pyproject.toml": (("verify | diagnose", "depths | "),),
    "README.md": (("| `verify [--fresh]", "| `depths` | the queues | nothing | |\n"),),
    "tests/sentences/README.toml": (
        (
            "",
            """
            "depths | the queues | nothing |" = "tests/sandbox/test_depths.py::test_the_depth_of_each_queue_is_said"
            """,
        ),
    ),
    "tests/sentences/reference.toml": (
        (
            "# DockerSettings\n",
            '"inv depths: Say how many" = '
            '"tests/sandbox/test_depths.py::test_the_depth_of_each_queue_is_said"\n',
        ),
    ),
    "tests/sandbox/test_depths.py": (
        (
            "",
            '''\
            """`inv depths` says how many messages wait."""

            from tests.sandbox.conftest import World


            def test_the_depth_of_each_queue_is_said(healthy: World) -> None:
                assert "low_priority" in healthy.inv("depths").out
            ''',
        ),
    ),
}


def test_a_verb_works_once_the_files_that_are_named_have_it(
    copy: Path, url: str, client: "redis.Redis"
) -> None:
    assert set(DEPTHS) == added("Add a verb", NAME="depths", NOUN="checks")
    apply(copy, DEPTHS)
    assert run(copy, "tasks.py", "docs").returncode == 0
    client.lpush("high", b"{}", b"{}")
    done = inv(copy, url, "depths", "--json")
    assert (done.returncode, json.loads(done.stdout)["depths"]) == (
        0,
        [{"queue": "high", "depth": 2}],
    )
    tests = ("tests/unit/test_docs.py", "tests/unit/cli/test_program.py", "-k", "docs or purpose")
    done = run(copy, "-m", "pytest", "-q", *tests)
    assert done.returncode == 0, done.stdout
    layers = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(cache_dir=None))"
    )
    done = run(copy, "-c", layers)
    assert done.returncode == 0, done.stdout
    project = copy / "pyproject.toml"
    project.write_text(project.read_text().replace("depths | ", ""))
    done = run(copy, "-c", layers)
    assert done.returncode == 1, done.stdout
    assert "depths" in done.stdout


# --- a service manager


PID_FILES: Edits = {
    "runbooks/core/managers.py": (
        (']\n"""What `celery_service_manager`', ', "pidfile"'),
        ('    "commands": Abilities(', '    "pidfile": Abilities(reported_by="its pid file"),\n'),
    ),
    "runbooks/hosts/services/pidfile.py": (
        (
            "",
            '''\
            """Workers that detach themselves, each with its pid in a file of the application's directory."""

            from collections.abc import Mapping, Sequence

            from runbooks.core.effects import ControlService
            from runbooks.core.fleet import FleetHost
            from runbooks.core.model import ServiceState
            from runbooks.hosts.facts import Clock
            from runbooks.hosts.log import Log
            from runbooks.hosts.script import Answer, quote
            from runbooks.hosts.services.manager import WithoutUnits


            class PidFiles(WithoutUnits):
                free_text = False
                own_groups = ()

                def ask(self, host: FleetHost, app: str, services: Sequence[str]) -> Mapping[str, str]:
                    look = 'read -r pid <"$file" && cat "/proc/$pid/stat"'
                    return {service: f"{_file(host, service)}\\n{look}" for service in services}

                def parse(
                    self, host: FleetHost, app: str, answers: Mapping[str, Answer], clock: Clock
                ) -> Mapping[str, ServiceState]:
                    return {service: _state(answer.out.decode(), clock) for service, answer in answers.items()}

                def control(self, host: FleetHost, effect: ControlService) -> str:
                    service, action = effect.service, effect.action
                    start = (
                        f"cd {quote(host.settings.directory)} && . ./env && export BROKER_URL\\n"
                        f"{quote(host.settings.python)} -m celery -A shop worker -n {quote(service)}@{host.name} "
                        f'-P solo -Q high --detach --pidfile="$file" --logfile="$file.log"'
                    )
                    stop = 'read -r pid <"$file" && kill "$pid"\\nwhile kill -0 "$pid" 2>/dev/null; do sleep 0.1; done'
                    steps = {"start": (start,), "stop": (stop,), "restart": (stop, start)}[action]
                    return "\\n".join((_file(host, service), *steps))

                def environment(self, host: FleetHost) -> str:
                    return ""

                def logs(self, host: FleetHost, services: Sequence[str]) -> Sequence[Log]:
                    return ()


            def _file(host: FleetHost, service: str) -> str:
                return f"file={quote(f'{host.settings.directory}/{service}.pid')}"


            def _state(stat: str, clock: Clock) -> ServiceState:
                fields = stat.rpartition(")")[2].split()
                if not fields or fields[0] == "Z":
                    return ServiceState(None, None, "there is no such process")
                pid = int(stat.split()[0])
                return ServiceState(pid, clock.at(int(fields[19])), str(pid), pids={pid: pid})
            ''',
        ),
    ),
    "runbooks/hosts/services/registry.py": (
        (
            '        case "commands":',
            """\
        case "pidfile":
            from runbooks.hosts.services.pidfile import PidFiles

            return PidFiles()
""",
        ),
    ),
    "docs/inventory.md": (("`commands`, with", "`pidfile`, or "),),
    "tests/unit/hosts/services/test_pidfile.py": (
        (
            "",
            '''\
            """A service whose pid stands in a file."""

            import os
            from pathlib import Path

            from runbooks.hosts.facts import ask_clock, parse_clock
            from runbooks.hosts.services.pidfile import PidFiles
            from tests.unit.fleets import make_host
            from tests.unit.hosts.test_facts import ask


            def test_a_service_runs_as_the_process_in_its_file(tmp_path: Path) -> None:
                host, clock = make_host(directory=str(tmp_path)), parse_clock(ask(ask_clock()))
                (tmp_path / "high.pid").write_text(f"{os.getpid()}\\n")
                asked = PidFiles().ask(host, "shop", ["high", "low"])
                answers = {service: ask(question) for service, question in asked.items()}
                found = PidFiles().parse(host, "shop", answers, clock)
                assert (found["high"].pid, found["low"].pid) == (os.getpid(), None)
            ''',
        ),
    ),
    "CHANGELOG.md": (
        (
            "- Hosts are reached over SSH",
            "- Workers that detach themselves are known by their pid files.\n",
        ),
    ),
}

DETACHED = """
all:
  vars: {{celery_app: shop, celery_broker_url: "{url}", celery_directory: {site}, celery_user: {user},
    celery_python: {python}, celery_env_file: {site}/env, celery_service_manager: pidfile,
    celery_expected_tasks: [shop.bill], celery_workers: [{{name: high, queues: [high], options: [-P, solo]}}]}}
  hosts: {{web1: {{ansible_connection: local}}}}
"""
SHOP = """
import os
from celery import Celery
app = Celery("shop", broker=os.environ["BROKER_URL"])
app.conf.task_default_queue = "high"
@app.task(name="shop.bill")
def bill(): pass
"""


def test_a_service_manager_controls_and_shows_a_worker_once_the_files_that_are_named_have_it(
    copy: Path, url: str
) -> None:
    assert set(PID_FILES) == added("Add a service manager", NAME="pidfile")
    apply(copy, PID_FILES)
    site = copy / "site"
    site.mkdir()
    (site / "shop.py").write_text(SHOP)
    (site / "env").write_text(f"BROKER_URL={url}\n")
    inventory = DETACHED.format(url=url, site=site, user=user_name(), python=sys.executable)
    (copy / "inventory.yaml").write_text(inventory)

    def ran(*words: str) -> tuple[int, str]:
        done = run(copy, "tasks.py", *words, "--state-dir", "state")
        return done.returncode, done.stdout + done.stderr

    def pid() -> int:
        return int((site / "high.pid").read_text())

    try:
        assert "its pid file says: there is no such process" in ran("diagnose")[1]
        healed = ran("remediate", "--yes")
        assert healed[0] == 0, healed[1]
        assert ran("verify")[0] == 0
        before = pid()
        assert ran("restart-workers", "--yes")[0] == 0
        assert pid() != before
        os.kill(pid(), signal.SIGKILL)
        assert "high is not running" in ran("diagnose")[1]
    finally:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(pid(), signal.SIGKILL)
    done = run(
        copy,
        "-m",
        "pytest",
        "-q",
        "tests/unit/hosts/services/test_pidfile.py",
        "tests/unit/core/test_managers.py",
    )
    assert done.returncode == 0, done.stdout


def test_mypy_names_what_a_new_service_manager_lacks(copy: Path) -> None:
    apply(copy, PID_FILES)
    path = copy / "runbooks/hosts/services/pidfile.py"
    mypy = ("-m", "mypy", "--cache-dir", "../mypy", "runbooks/hosts/services")
    assert run(copy, *mypy).stdout.startswith("Success")
    path.write_text(
        path.read_text().replace("def logs(", "def no_logs(").replace("free_text = False", "")
    )
    assert '"PidFiles" with abstract attributes "free_text" and "logs"' in run(copy, *mypy).stdout
