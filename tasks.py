"""The verbs of `inv` in a checkout: the runbooks', and those that only a checkout has."""

import gc
import signal

gc.set_threshold(200_000)  # as RunbooksProgram has it, which is not there yet
signal.signal(
    signal.SIGINT, signal.SIG_DFL
)  # ^C while all this is imported is answered with no traceback

import runbooks.cli  # noqa: F401 (first of all: it imports Invoke without what only tests need)

# isort: split
import os
import sys
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from runbooks import __version__
from runbooks.cli import verbs
from runbooks.cli.verbs.common import typed_program

CHECKOUT = Path(__file__).resolve().parent
# What runs in the application's Python on a host has to run on 3.6; its annotations are evaluated
# there, too.
ON_HOSTS = (
    "runbooks/hosts/import_probe.py",
    "runbooks/hosts/code_probe.py",
    "runbooks/hosts/describe_application.py",
    "runbooks/hosts/result_probe.py",
    "runbooks/hosts/schedule_probe.py",
    "runbooks/hosts/supervisor_probe.py",
)
OLD_PYTHONS = ("--target=3.6-", "--eval-annotations", "--violations", "--quiet", *ON_HOSTS)
TRIED_TWICE = ("--reruns=1", "-rR")
# In the order of their names: files with few tests are the slow ones, and these would come last.
FOUR_FILES_AT_A_TIME = ("--numprocesses=4", "--dist=loadfile", "--no-loadscope-reorder")
# What `inv test --fast` leaves out: whatever took more than five seconds in a run of all tests.
SLOW = (
    "tests/ansible",
    "tests/fleet",
    "tests/sandbox",
    "tests/unit/broker/messages/test_fast_parse.py",
    "tests/unit/broker/messages/test_parse.py",
    "tests/unit/broker/nodes",
    "tests/unit/broker/queues",
    "tests/unit/broker/server/test_connection.py",
    "tests/unit/broker/server/test_preflight.py",
    "tests/unit/broker/test_kinds_of_broker.py",
    "tests/unit/broker/views",
    "tests/unit/cli/test_flags.py",
    "tests/unit/cli/test_json.py",
    "tests/unit/cli/test_program.py",
    "tests/unit/core/envfile",
    "tests/unit/effects/test_files.py",
    "tests/unit/effects/test_take_over.py",
    "tests/unit/engine/test_apply.py",
    "tests/unit/engine/test_blocked.py",
    "tests/unit/engine/test_insertion.py",
    "tests/unit/engine/test_loaded.py",
    "tests/unit/engine/test_other_run.py",
    "tests/unit/engine/test_contents_killed.py",
    "tests/unit/engine/test_observe.py",
    "tests/unit/engine/test_rolling.py",
    "tests/unit/engine/test_undo.py",
    "tests/unit/hosts/test_application.py",
    "tests/unit/hosts/test_code_probe.py",
    "tests/unit/hosts/services/test_supervisor.py",
    "tests/unit/hosts/test_census_of_this_machine.py",
    "tests/unit/hosts/test_connection_tried.py",
    "tests/unit/hosts/test_facts.py",
    "tests/unit/logs",
    "tests/unit/monitoring/test_scrapes.py",
    "tests/unit/ssh",
    "tests/unit/task_runs/test_application.py",
    "tests/unit/pages",
    "tests/unit/test_contributing.py",
    "tests/unit/test_learned.py",
    "tests/unit/test_package.py",
    "tests/unit/test_what_findings_say.py",
    "tests/unit/test_frozen.py",
)


def text_of(error: Exception) -> str:
    """Return the text of an error, with its commands as the operator types them."""
    from runbooks.core.command import typed

    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; the folder must be writable"
    return typed(str(error), typed_program())


@task(
    help={
        "healthy": "create it without the incident's faults",
        "manager": (
            "what runs its workers: commands (its own scripts), supervisor or docker (a server of"
            " its own; docker needs root)"
        ),
        "down": "stop it and remove everything",
    },
    auto_shortflags=False,  # -h is help
)
def sandbox(
    c: Context, healthy: bool = False, manager: str = "commands", down: bool = False
) -> None:
    """Create a fleet that is broken as in the incident, under .sandbox/; needs no root."""
    from lab.docker import DockerError
    from lab.redis_server import ServerNotStartedError
    from lab.sandbox import MANAGERS, Sandbox, SandboxError
    from runbooks.core.command import typed

    if manager not in MANAGERS:
        raise Exit(
            f"--manager {manager!r} runs no sandbox; these do: {', '.join(MANAGERS)}", code=5
        )
    world = Sandbox(CHECKOUT)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # ends half a sandbox
    try:
        print(
            typed(
                world.down() if down else world.up(healthy=healthy, manager=manager),
                typed_program(),
            ),
            flush=True,
        )
    except (SandboxError, ServerNotStartedError, DockerError, OSError) as error:
        raise Exit(text_of(error), code=2) from None
    except KeyboardInterrupt:
        raise Exit("interrupted; the sandbox was taken down again", code=99) from None


@task(
    help={
        "hosts": "how many (6): the broker's, and those of the workers",
        "latency": "MS on every round trip: 20, or web1=20,web2=5",
        "down": "stop it and remove everything",
    },
    auto_shortflags=False,
)
def fleet(c: Context, hosts: int = 6, latency: str = "", down: bool = False) -> None:
    """Create real Debian hosts that are broken in several ways, under .fleet/; needs root."""
    from lab.fleet.fleet import Fleet, host_names
    from lab.fleet.latency import parse
    from lab.fleet.shell import FleetError
    from runbooks.core.command import typed

    world = Fleet(CHECKOUT)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # ends half a fleet
    try:
        names = host_names(hosts)
        print(
            typed(
                world.down() if down else world.up(names, parse(latency, names)), typed_program()
            ),
            flush=True,
        )
    except ValueError as error:
        raise Exit(str(error), code=5) from None
    except (FleetError, OSError) as error:
        raise Exit(text_of(error), code=2) from None
    except KeyboardInterrupt:
        raise Exit("interrupted; the fleet was taken down again", code=99) from None


def shellcheck() -> list[str]:
    """Return the command that checks the shell files; empty without shellcheck.

    In CI, as root, shellcheck is installed.
    """
    from lab import packages

    lacking = packages.lacking({"shellcheck": "shellcheck"})
    if lacking and os.environ.get("CI") and os.geteuid() == 0:
        try:
            packages.install(lacking)
        except packages.PackagesError as error:
            print(error, flush=True)
            return []
    elif lacking:
        return []
    scripts = (
        path
        for folder in ("bench", "lab", "runbooks")
        for path in sorted((CHECKOUT / folder).rglob("*.sh"))
    )
    return ["shellcheck", "inv", *(str(path.relative_to(CHECKOUT)) for path in scripts)]


def selection(only: str = "", fast: bool = False, thorough: bool = False) -> list[str]:
    """Return pytest's arguments for the tests that these flags of `inv test` select."""
    chosen = [
        *(["-k", only] if only else []),
        *([f"--ignore={path}" for path in SLOW] if fast else []),
    ]
    return chosen if thorough or only else [*chosen, "-m", "not thorough"]


@task(
    help={
        "only": "only tests whose names match this pytest EXPRESSION; without the checks",
        "fast": "skip the slow tests, and list them",
        "thorough": "also run longer variants of other tests",
    },
    auto_shortflags=False,
)
def test(c: Context, only: str = "", fast: bool = False, thorough: bool = False) -> None:
    """Check lint, types and layers, and run the tests, four files at a time."""
    python = sys.executable
    programs = Path(python).parent
    chosen = selection(only, fast, thorough)
    checks = {
        "lint": [python, "-m", "ruff", "check"],
        "format": [python, "-m", "ruff", "format", "--check", "--quiet"],
        "shell": [] if only else shellcheck(),
        "old Pythons": [str(programs / "vermin"), *OLD_PYTHONS],
        "types": [python, "-m", "mypy"],
        "layers": [str(programs / "lint-imports"), "--no-logo"],
        "tests": [python, "-m", "pytest", "-q", *TRIED_TWICE, *FOUR_FILES_AT_A_TIME, *chosen],
    }
    import subprocess

    # The tests start Python thousands of times: without bytecode each compiles all that it imports.
    unset = ("RUNBOOKS_TYPED", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    for name, command in checks.items():
        if only and name != "tests":
            continue
        print(f"--- {name}", flush=True)
        if not command:
            print("skipped: shellcheck is not installed (Debian's package: shellcheck)", flush=True)
        elif subprocess.run(command, cwd=CHECKOUT, env=environment, check=False).returncode:
            raise Exit(f"{name} failed", code=2)
    if not (thorough or only):
        print(
            f"\nskipped: the variants that only {typed_program()} test --thorough runs", flush=True
        )
    if fast:
        print(
            "\nskipped as slow: " + ", ".join(SLOW) + f"\nall tests: {typed_program()} test",
            flush=True,
        )


@task(
    help={
        "only": (
            "only rows whose names match this PATTERN (queue.*, healthy/*, *+*), even if they are"
            " done"
        ),
        "ground": "only rows on this GROUND: sandbox, supervisor, docker, fleet, ...",
        "pairs": "how many random pairs of faults (40)",
    },
    auto_shortflags=False,
)
def matrix(c: Context, only: str = "", ground: str = "", pairs: int = 40) -> None:
    """Inject every fault, and pairs, on healthy fleets; write the results into docs/."""
    from lab import findings_page
    from lab.faults.grounds import GROUNDS
    from lab.matrix import run

    if ground and ground not in GROUNDS:
        raise Exit(f"--ground {ground!r} is not known; these are: {', '.join(GROUNDS)}", code=5)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # takes the grounds down
    bad = 0
    try:
        for row in run(only, ground, pairs):
            bad += not row.well
            print(
                f"{'ok  ' if row.well else 'BAD '} {row.name}:"
                f" {row.trouble or ', '.join(row.found)}",
                flush=True,
            )
    except KeyboardInterrupt:
        raise Exit("interrupted; the next call goes on from here", code=99) from None
    finally:
        (CHECKOUT / "docs/findings.md").write_text(findings_page.page())
    if bad:
        raise Exit(f"{bad} rows are not as they should be", code=1)


@task()
def docs(c: Context) -> None:
    """Write the generated parts of docs/: findings, reference, JSON schema, man page."""
    from lab import findings_page, man_page, reference_page, schema_page

    (CHECKOUT / "docs/findings.md").write_text(findings_page.page())
    (CHECKOUT / "docs/reference.md").write_text(reference_page.page())
    (CHECKOUT / "docs/output.schema.json").write_text(schema_page.page())
    (CHECKOUT / "docs/celery-runbooks.1").write_text(man_page.page())


namespace = Collection.from_module(verbs)
namespace.add_task(sandbox)
namespace.add_task(fleet)
namespace.add_task(test)
namespace.add_task(matrix)
namespace.add_task(docs)

if __name__ == "__main__":
    from runbooks.cli.program import RunbooksProgram

    RunbooksProgram(
        version=__version__, namespace=namespace, name="inv", binary=typed_program()
    ).run()
