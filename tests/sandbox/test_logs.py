"""Logs and files as an operator looks at them: `inv tail-logs` and `inv render`."""

import json
import logging
import logging.handlers
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from runbooks.core.redaction import redact
from tests.sandbox.conftest import World

LOGS = ("beat.log", "worker_daemon.log", "worker_high.log", "worker_low.log")


def test_the_logs_of_all_services_are_one_in_the_order_of_time(healthy: World) -> None:
    done = healthy.inv("tail-logs", "--since", "1h", "--json")
    assert done.code == 0, done.err
    lines = done.json["logs"]
    assert {line["log"] for line in lines} == set(LOGS)
    times = [line["time"] for line in lines if line["time"]]
    assert times == sorted(times)
    for name in LOGS:
        written = [
            redact(line) for line in (healthy.root / "app/logs" / name).read_text().splitlines()
        ]
        shown = [line["line"] for line in lines if line["log"] == name]
        assert shown == written[-len(shown) :] or shown == written[-len(shown) - 1 : -1], (
            "each as it is, in its own order"
        )
    last = Counter(line["log"] for line in healthy.inv("tail-logs", "--json").json["logs"])
    assert (
        last["worker_high.log"]
        == 20
        < len([one for one in lines if one["log"] == "worker_high.log"])
    )
    assert healthy.inv("tail-logs", "--since", "2100-01-01", "--json").json["logs"] == []


def test_only_so_many_lines_of_each_log_that_match_are_shown(healthy: World) -> None:
    done = healthy.inv(
        "tail-logs", "--grep", r"(worker_\w+@sandbox) ready|beat: Starting", "--lines", "1"
    )
    assert done.code == 0, done.err
    _, *shown = done.out.splitlines()
    assert sorted(line.split()[3] for line in shown) == list(LOGS)
    assert all(line.split()[2] == "sandbox" for line in shown)
    of_beat = healthy.inv("tail-logs", "beat", "--grep", "beat: Starting", "--json").json["logs"]
    assert {line["log"] for line in of_beat} == {"beat.log"}
    for options, expected in {
        ("--grep", "no such line"): "No line matches --grep 'no such line'.",
        ("--since", "2100-01-01"): "No line since 2100-01-01 to show.",
    }.items():
        nothing = healthy.inv("tail-logs", *options)
        assert (nothing.code, nothing.out.splitlines()[1:]) == (0, [expected]), nothing.err


def test_an_error_log_of_django_is_shown_since_a_time_and_on_from_the_file_before_it(
    healthy: World,
) -> None:
    """As Django's documentation writes it: `verbose`, whose lines begin with the level, and
    logging's own rotation.
    """
    log = healthy.root / "app/logs/error.log"
    writer = logging.handlers.RotatingFileHandler(
        log, maxBytes=20_000, backupCount=3, encoding="latin-1"
    )
    writer.setFormatter(
        logging.Formatter(
            "{levelname} {asctime} {module} {process:d} {thread:d} {message}", style="{"
        )
    )
    logger = logging.Logger("printers")
    logger.addHandler(writer)
    begin = datetime.now().astimezone().replace(microsecond=0)
    for n in range(100):
        try:
            raise ConnectionError(f"kein Weg für Drucker {n}")
        except ConnectionError as error:
            logger.exception(error)
    writer.close()
    both = [path.read_bytes().count(b"ERROR ") for path in (log, log.with_name("error.log.1"))]
    name = healthy.inventory(("worker_daemon.log", "error.log"))
    shown = ("tail-logs", "--inventory", name, "--grep", "^ERROR .* für", "--json")
    for options in (("--since", "10m"), ("--lines", "100")):
        lines = [
            line
            for line in healthy.inv(*shown, *options).json["logs"]
            if line["log"] == "error.log"
        ]
        numbers = [int(line["line"].split()[-1]) for line in lines]
        assert numbers == list(range(100 - sum(both), 100)), both
        assert all(begin <= datetime.fromisoformat(line["time"]) for line in lines)
    assert healthy.inv(*shown, "--since", "2100-01-01").json["logs"] == []


def test_followed_logs_show_what_is_written_from_now_on_as_json_lines(healthy: World) -> None:
    log = healthy.root / "app/logs/worker_high.log"
    command = healthy.command("tail-logs", "--follow", "--json", "--grep", "here|there")
    with subprocess.Popen(
        command,
        cwd=healthy.path,
        env=healthy.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        lines = _growing(healthy, tail)
        about, here = next(lines), next(lines)
        with log.open("a") as file:
            file.write("[2030-01-01 00:00:00,500: INFO/MainProcess] there redis://:hunter2@h\n")
        there = next(line for line in lines if "there" in line)
        tail.send_signal(signal.SIGINT)
        rest, err = tail.communicate(timeout=60)
    assert json.loads(about)["about"]["application"] == "printer_inventory"
    assert json.loads(here)["log"] == "worker_high.log"
    document = json.loads(there)
    assert (document["host"], document["line"].partition("] ")[2]) == (
        "sandbox",
        "there redis://********@h",
    )
    assert document["time"][14:] == "00:00.500000+00:00"
    assert json.loads(rest.splitlines()[-1])["exit_code"] == 99
    assert (tail.returncode, err) == (99, "")


def _growing(world: World, tail: "subprocess.Popen[str]") -> Iterator[str]:
    """The printed lines, from the first that shows that the log is followed."""
    log = world.root / "app/logs/worker_high.log"
    with log.open("a") as file:
        file.write("[2030-01-01 00:00:00,000: INFO/MainProcess] here\n")
    assert tail.stdout is not None
    yield from tail.stdout


def test_the_files_of_a_host_are_shown_as_they_would_be_installed(healthy: World) -> None:
    done = healthy.inv("render", "--json")
    assert done.code == 0, done.err
    assert {file["host"] for file in done.json["files"]} == {"sandbox"}
    installed = {path for path in (healthy.root / "root/etc").rglob("*") if path.is_file()}
    assert {file["path"] for file in done.json["files"]} == {str(path) for path in installed}
    for file in done.json["files"]:
        with open(file["path"]) as there:
            assert file["content"] == there.read()
    (only,) = healthy.inv("render", "--json", "--only", "celery-worker@*high*").json["files"]
    assert only["path"].endswith("/celery-worker@worker_high.service")
    assert "ExecStart=" in healthy.inv("render", "--only", "*/system/celery-beat.service").out


def test_files_are_shown_while_neither_the_broker_nor_a_host_is_there(world: World) -> None:
    (world.root).mkdir()
    (world.root / "broker.url").write_text("redis://127.0.0.1:1/0")
    (world.root / "results.url").write_text("redis://127.0.0.1:1/1")
    name = world.inventory(("ansible_connection: local", "ansible_host: 192.0.2.1"))
    done = world.inv("render", "--inventory", name, "--only", "celery.target")
    assert done.code == 0, done.err
    file = f"[sandbox] {world.root}/root/etc/systemd/system/celery.target\n# Managed by"
    assert done.out.startswith(f"printer_inventory, changed.yaml\n{file}")


def test_a_template_of_ones_own_counts_before_the_shipped_one(healthy: World) -> None:
    own = healthy.path / "own/systemd"
    own.mkdir(parents=True)
    (own / "celery.target.j2").write_text("{{ mark }}\n[Unit]\nDescription=ours on {{ host }}\n")
    state = "    runbooks_state_directory:"
    name = healthy.inventory((state, f"    runbooks_templates_directory: {own.parent}\n{state}"))
    (target,) = healthy.inv(
        "render", "--inventory", name, "--only", "celery.target", "--json"
    ).json["files"]
    assert target["content"].endswith("[Unit]\nDescription=ours on sandbox\n")
    (change,) = healthy.inv("install-units", "--inventory", name, "--dry-run", "--json").json[
        "plan"
    ]
    assert change["summary"].endswith("celery.target")


def test_a_log_that_is_missing_is_named_and_for_hosts_without_logs_the_error_says_what_to_name(
    healthy: World,
) -> None:
    logs = "celery_logs: \"{{ sandbox_logs if celery_service_manager == 'commands' else [] }}\""
    missing = healthy.inv(
        "tail-logs", "-i", healthy.inventory((logs, "celery_logs: [/nowhere/celery.log]"))
    )
    assert "/nowhere/celery.log" in missing.out
    nothing = healthy.inv("tail-logs", "-i", healthy.inventory((logs, "celery_logs: []")))
    assert nothing.code == 5
    assert "these hosts have no logs" in nothing.err
    assert "name log files in celery_logs" in nothing.err
