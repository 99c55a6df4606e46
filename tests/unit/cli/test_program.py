"""A command line that cannot be parsed is reported as any other bad input, and nothing is run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from invoke.collection import Collection

from lab.verb_help import verbs_by_purpose
from runbooks.cli import verbs
from runbooks.cli.overview import GROUPS

CHECKOUT = Path(__file__).parents[3]
NOBODY = "127.0.0.1:1"
INVENTORY_OF = f"""\
{{}} ansible_connection=local
[all:vars]
celery_app=shop
celery_broker_url=redis://{NOBODY}/0
celery_directory=/srv/shop
celery_python=/srv/shop/bin/python
celery_user=shop
celery_env_file=/etc/shop.env
"""


def inv(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(CHECKOUT / "tasks.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("diagnos", "there is no verb 'diagnos'; did you mean 'diagnose'?\n→ see: inv --list"),
        ("--help remediat", "there is no verb 'remediat'; did you mean 'remediate'?"),
        ("archive show", "there is no verb 'archive'; did you mean 'archive.show'?"),
        (
            "verify web1",
            "verify does not take 'web1', and there is no verb 'web1'\n→ see: inv --help verify",
        ),
        (
            "diagnose --limt web1",
            "diagnose has no flag '--limt'; did you mean '--limit'?\n→ see: inv --help diagnose",
        ),
        ("--frobnicate", "inv has no flag '--frobnicate'\n→ see: inv --list"),
        ("undo --dryrun last", "undo has no flag '--dryrun'; did you mean '--dry-run'?"),
        ("show -x", "show has no flag '-x'"),
        (
            "undo",
            "undo needs RUN: the id of the run, the beginning of its id, or `last`\n→ `inv runs` lists the runs",
        ),
        ("undo --yes", "undo needs RUN"),
        ("show", "`inv runs` lists the runs; see also: inv --help show"),
        ("archive.show", "`inv archive.list` lists the archives"),
        ("messages", "messages needs QUEUE: the QUEUE\n→ `inv queues` lists the queues"),
        ("consumer high@web1 add", "consumer needs QUEUE: the QUEUE"),
        (
            "task",
            "task needs ID: the ID of the task\n→ `inv messages QUEUE` shows the ids of waiting tasks",
        ),
        ("diagnose --only x", "diagnose has no flag '--only'\n→ see: inv --help diagnose"),
        ("diagnose --limit", "--limit expects a value"),
        ("clean-queues --dry-run --queue", "--queue expects a value"),
        ("clean-queues --task --queue low --yes", "--task expects a value"),
        ("clean-queues --task a --task --queue low --yes", "--task expects a value"),
        ("diagnose --limit many --forks many", "--forks expects a number, got 'many'"),
        ("remediate --max-fail=", "--max-fail expects a number, got ''"),
        ("--command-timeout x hosts", "--command-timeout expects a number, got 'x'"),
        ("-l", "'-l' belongs after the verb\n→ see: inv --list"),
        ("-i hosts.ini diagnose", "'-i' belongs after the verb"),
        ("-e x=1", "inv has no flag '-e'"),
        ("diagnose --check", "diagnose changes nothing, so it has no flag '--check'"),
        ("verify -C -D", "verify changes nothing, so it has no flag '-C'"),
        ("run-task x --diff", "run-task has no flag '--diff'"),
        ("diagnose -l", "--limit expects a value"),
        ("tail-logs --worker", "--worker expects a value"),
        ("diagnose -i -f 3", "-i expects a value"),
        ("diagnose -f many", "-f expects a number, got 'many'"),
    ],
)
def test_what_cannot_be_parsed_is_reported_with_what_was_meant(line: str, expected: str) -> None:
    done = inv(*line.split())
    assert (done.returncode, done.stdout) == (5, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_the_flags_of_ansible_mean_the_same(tmp_path: Path) -> None:
    for name in ("one.ini", "two.ini"):
        (tmp_path / name).write_text(INVENTORY_OF.format(name[:3]))
    sources = ("-i", str(tmp_path / "one.ini"), "-i", str(tmp_path / "two.ini"))
    listed = inv("hosts", "--json", *sources)
    assert [host["host"] for host in json.loads(listed.stdout)["hosts"]] == ["one", "two"]
    planned = inv("clean-queues", "-C", "-D", "-f", "1", "-l", "two", *sources)
    assert planned.returncode == 4
    assert f"the broker at {NOBODY} does not answer" in planned.stderr


def test_suggested_commands_name_every_source_so_that_they_can_be_typed_again(
    tmp_path: Path,
) -> None:
    name = tmp_path / "a fleet.ini"
    name.write_text(INVENTORY_OF.format("one"))
    stderr = inv("hosts", "-i", str(name), "-i", f"{tmp_path}/a fleet.ini", "-l", "nobody").stderr
    assert f"inv hosts --inventory '{name}' --inventory '{name}'`" in stderr


def test_a_script_that_asks_for_json_gets_it_also_of_a_mistyped_flag() -> None:
    done = inv("undo", "last", "--json", "--dryrun")
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (5, 5)


@pytest.mark.parametrize(
    "line", ["remediate --yes --dry", "--dry remediate --yes", "-R restart-workers --yes"]
)
def test_the_dry_flag_of_invoke_itself_is_not_taken_for_a_dry_run(line: str) -> None:
    done = inv(*line.split())
    assert done.returncode == 5
    assert "did you mean '--dry-run'?" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "undo --help",
        "run-task -h",
        "--help archive.restore",
        "clean-queues --task -h",
        "remediate --yes --frob -h",
    ],
)
def test_help_is_shown_also_for_a_verb_that_takes_a_word(line: str) -> None:
    done = inv(*line.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert "--state-dir=STRING" in done.stdout


def named_in(package: ModuleType) -> set[str]:
    return set(Collection.from_module(package).task_names)


def test_every_verb_of_the_package_has_a_purpose() -> None:
    own = {name for heading, names in GROUPS.items() if heading != "Try out" for name in names}
    assert own == named_in(verbs)


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_the_program_alone_shows_the_verbs_by_purpose_and_no_option_of_invokes(line: str) -> None:
    done = inv(*line.split())
    assert (done.returncode, done.stderr) == (0, "")
    headings = [text for text in done.stdout.splitlines() if text.endswith(":") and text[0] != " "]
    assert headings == ["Start:", "Inspect:", "Change:", "Undo:", "Try out:", "Develop:"]
    assert (
        done.stdout.index("diagnose ")
        < done.stdout.index("remediate ")
        < done.stdout.index("undo ")
    )
    assert "--prompt-for-sudo-password" not in done.stdout


def test_a_default_that_the_help_names_is_the_one_of_the_code() -> None:
    named = {}
    for context in Collection.from_module(verbs).to_contexts():
        for one in context.args.values():
            said = re.search(r"\(default: (\w+)\)", str(one.help))
            if said and one.default not in (None, ""):
                named[one.name] = (said[1], str(one.default))
    assert named.keys() >= {"forks", "budget", "limit", "per_second", "max_fail"}
    assert {name: pair for name, pair in named.items() if pair[0] != pair[1]} == {}


SAID = {
    verb.name: (verb.purpose, *(flag.meaning for flag in verb.flags))
    for _, listed in verbs_by_purpose()
    for verb in listed
}


@pytest.mark.parametrize("verb", ["sandbox", "fleet", "test", "docs", *sorted(named_in(verbs))])
def test_h_behind_a_verb_is_help_and_nothing_else(verb: str) -> None:
    """`-h` was `--healthy` for the sandbox, and put it up.

    What the reference says of a verb and its flags is there, too.
    """
    done = inv(verb, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: inv {verb} " in done.stdout
    words = "".join(done.stdout.split())
    for text in SAID.get(verb, ()):
        assert "".join(text.split()) in words


@pytest.mark.parametrize("line", ["show x --state-dir {0}", "show", "--frobnicate"])
def test_the_installed_command_suggests_itself(line: str, tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv[0] = '/usr/local/bin/celery-runbooks'; from runbooks.cli.program"
        " import main; main()"
    )
    command = [sys.executable, "-c", program, *line.format(tmp_path).split()]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert "celery-runbooks " in done.stderr
    assert "inv " not in done.stderr


def test_the_way_in_of_a_checkout_suggests_itself_as_it_was_called(tmp_path: Path) -> None:
    done = subprocess.run(
        ["../inv", "show", "x", "--state-dir", tmp_path],
        cwd=CHECKOUT / "docs", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert f"`../inv runs --state-dir {tmp_path}` lists the recorded runs" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_has_no_letters_for_is_shown_as_far_as_it_goes(
    encoding: str, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command: list[bytes | str | Path] = [sys.executable, CHECKOUT / "tasks.py", "show", b"\xff\xe2"]
    done = subprocess.run(
        [*command, "--state-dir", tmp_path / "→ä"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr
    listed = subprocess.run(
        [sys.executable, CHECKOUT / "tasks.py", "runs", "--state-dir", tmp_path / "→ä"],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert str(tmp_path).encode() in listed.stdout


def test_an_interrupt_before_a_verb_begins_is_not_a_finding() -> None:
    """Invoke would end with 1, which says that something was found."""
    program = (
        "import os, signal; from runbooks.cli.program import RunbooksProgram\n"
        "class Interrupted(RunbooksProgram):\n"
        "    def parse_collection(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "Interrupted(name='inv').run(['inv', 'hosts'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_an_interrupt_in_the_instant_before_waiting_for_a_thread_shows_no_traceback() -> None:
    """Python then releases the lock of the Condition twice, and raises RuntimeError."""
    program = (
        "import threading\n"
        "from runbooks.cli.verbs.common import Flags, run_verb\n"
        "condition = threading.Condition()\n"
        "def released_and_interrupted():\n"
        "    condition.release()\n"
        "    raise KeyboardInterrupt\n"
        "condition._release_save = released_and_interrupted\n"
        "def body(reporter):\n"
        "    with condition: condition.wait()\n"
        "try: run_verb(Flags('hosts'), body)\n"
        "except BaseException as error: print(error.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("99\n", "interrupted; nothing was changed\n")


def bash(line: str) -> "subprocess.CompletedProcess[str]":
    command = f"'{sys.executable}' '{CHECKOUT}/tasks.py' {line}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


ASKED = ["--list", "--help", "undo --help", "--version", "--print-completion-script bash"]


@pytest.mark.parametrize("asked", ASKED)
def test_a_reader_of_help_that_goes_away_does_not_trouble_it(asked: str) -> None:
    done = bash(f"{asked} | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("asked", ASKED)
def test_help_that_cannot_be_written_is_not_success(asked: str) -> None:
    done = bash(f"{asked} >/dev/full")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot write the output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_the_tools_own_shows_no_secret_and_forges_no_line() -> None:
    program = (
        "import logging; from runbooks.cli.program import RunbooksProgram\n"
        "from runbooks.core.redaction import keep_secret\n"
        "class Faulty(RunbooksProgram):\n"
        "    def create_config(self):\n"
        "        keep_secret('hunter2-x')\n"
        "        logging.getLogger('kombu').error('hunter2-x')\n"
        "        raise RuntimeError('hunter2-x\\nok     FORGED \\x1b[2J')\n"
        "Faulty(name='inv', binary='inv').run(['inv', 'runs'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "RuntimeError: ********\n  ok     FORGED \\x1b[2J\n" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_secret_of_the_operators_environment_is_not_shown() -> None:
    command = [sys.executable, str(CHECKOUT / "tasks.py"), "hosts", "-i", "/nowhere/Tr0ub4dor-x"]
    variables = {**os.environ, "SHOP_TOKEN": "Tr0ub4dor-x"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, "/nowhere/********: no such file" in done.stderr) == (5, True)
    assert "Tr0ub4dor" not in done.stdout + done.stderr


def test_a_finding_is_explained_without_an_inventory(tmp_path: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "tasks.py"), "explain"]

    def explain(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, *words], capture_output=True, text=True, check=False, cwd=tmp_path
        )

    one = explain("queue.selected")
    assert (one.returncode, one.stderr) == (0, "")
    assert [line for line in one.stdout.splitlines() if line and not line.startswith(" ")] == [
        "queue.selected  A rule of the inventory selects messages of the queue.",
        *("What it means", "How it is detected", "What to do", "Keep in mind"),
    ]
    assert "`inv clean-queues --dry-run`" in one.stdout
    text = " ".join(one.stdout.split())
    page = (CHECKOUT / "docs/findings.md").read_text().partition("### queue.selected\n")[2]
    for words in re.findall(r"^- \*([^*]+):\* (.+)$", page.partition("\n### ")[0], re.M):
        assert " ".join(words) in text
    assert json.loads(explain("queue.selected", "--json").stdout)["code"] == "queue.selected"
    assert "\nworker.stopped " in explain().stdout
    wrong = explain("worker.stoped")
    assert (wrong.returncode, wrong.stdout) == (5, "")
    assert "there is no finding 'worker.stoped'\n→ did you mean worker.stopped" in wrong.stderr


def test_what_a_verb_loads_is_compiled_for_the_next_run() -> None:
    """To compile all of it takes longer than most verbs do."""
    script = (
        "import sys; from runbooks.cli.program import main; sys.argv = ['celery-runbooks', 'hosts',"
        " '--help']\ntry: main()\nfinally: print('compiles' if not sys.dont_write_bytecode else"
        " 'does not')"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        cwd=CHECKOUT,
        check=True,
    )
    assert done.stdout.endswith(b"compiles\n")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (
            "mail",
            (
                "--limit expects hosts or groups, and 'mail' is a worker\n→ diagnose, verify,"
                " restart-workers and"
            ),
        ),
        ("mail@web1", "'mail@web1' is a worker"),
        ("outbox", "'outbox' is a queue that mail consumes\n→ show the queue: `inv queues outbox"),
        ("outbox", "accept --worker mail"),
        ("web9", "matches no host or group"),
    ],
)
def test_for_a_limit_that_names_a_worker_or_a_queue_the_error_says_what_takes_those(
    limit: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "fleet.ini"
    workers = "celery_workers=[{'name': 'mail', 'queues': ['outbox'], 'concurrency': 1}]\n"
    path.write_text(INVENTORY_OF.format("web1") + workers)
    done = inv("hosts", "-i", str(path), "--limit", limit)
    assert (done.returncode, done.stdout) == (5, "")
    assert expected in done.stderr


def test_an_example_of_an_inventory_is_written_once_and_is_one(tmp_path: Path) -> None:
    def inv_there(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(CHECKOUT / "tasks.py"), *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | environment,
        )

    written = inv_there("init")
    assert (written.returncode, written.stderr) == (0, "")
    assert "Wrote inventory.yaml" in written.stdout
    broker = {"CELERY_BROKER_URL": f"redis://{NOBODY}/0"}
    lacking = inv_there("hosts")
    assert (lacking.returncode, "export CELERY_BROKER_URL" in lacking.stderr) == (5, True)
    (host,) = json.loads(inv_there("hosts", "--json", **broker).stdout)["hosts"]
    assert host == {
        "host": "web1.example.com", "groups": "ungrouped", "connection": "ssh",
        "workers": "default: celery", "beat": "yes",
    }  # fmt: skip
    example = tmp_path / "inventory.yaml"
    before = example.read_text()
    again = inv_there("init")
    assert (again.returncode, again.stderr) == (
        5, "inventory.yaml already exists; not changed\n→ name another file\n",
    )  # fmt: skip
    assert example.read_text() == before
    other = inv_there("init", "other.yaml")
    assert "inv hosts --inventory other.yaml" in other.stdout
    uncommented = re.sub(
        r"# (- \{name: mail|celery_(?!service_manager)|ansible_become:)", r"\1", before
    )
    (tmp_path / "all.yaml").write_text(uncommented)
    everything = inv_there(
        "hosts", "--json", "--inventory", "all.yaml", **broker, CELERY_RESULT_BACKEND="redis://x/1"
    )
    assert everything.returncode == 0, everything.stderr


ALL = set(Collection.from_module(verbs).task_names)
CHANGING = {
    *(
        "remediate",
        "clean-queues",
        "archive.restore",
        "install-units",
        "install-cron",
        "fix-imports",
    ),
    *("restart-workers", "rate-limit", "pool", "consumer", "shutdown", "revoke", "retry", "undo"),
}
WITHOUT_INVENTORY = {
    *(
        "diagnose",
        "adopt",
        "verify",
        "workers",
        "tasks",
        "schedule",
        "queues",
        "messages",
        "broker",
    ),
    *("monitor", "run-task", "clean-queues", "undo"),
}


@pytest.mark.parametrize(
    ("flags", "accepted"),
    [
        (("inventory", "limit", "json", "state-dir"), ALL),
        (("dry-run",), {*CHANGING, "run-task"}),
        (("yes",), CHANGING),
        (("python", "container"), WITHOUT_INVENTORY),
        (("broker",), {*WITHOUT_INVENTORY, "task"}),
        (("watch",), {"queues", "messages", "broker", "tasks", "task", "schedule", "workers"}),
    ],
)
def test_the_verbs_that_the_pages_name_accept_these_flags(
    flags: tuple[str, ...], accepted: set[str]
) -> None:
    namespace = Collection.from_module(verbs)
    for flag in flags:
        arguments = {name: namespace[name].get_arguments() for name in ALL}
        assert {
            name for name in ALL if any(flag in one.names for one in arguments[name])
        } == accepted


def test_in_an_activated_environment_plain_inv_works_too() -> None:
    inv_of_it = Path(sys.executable).with_name("inv")
    done = subprocess.run(
        [inv_of_it, "explain", "queue.no_consumer"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (done.returncode, "queue.no_consumer" in done.stdout) == (0, True), done.stderr
