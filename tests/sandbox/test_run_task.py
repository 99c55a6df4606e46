"""`inv run-task` and the probes on a healthy sandbox, as an operator drives them: one module, one
sandbox.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from runbooks.broker.nodes.control import switch_events
from tests.sandbox.conftest import Done, World
from tests.sandbox.test_bad_input import glpi, refused
from tests.transcripts import require_shown

CHECK = "integrations.tasks.check_all_devices_in_glpi"
CHECK_ONE = "integrations.tasks.check_single_device_in_glpi"
POLL = "inventory.tasks.poll_printer"
COUNTS = {"total": 60, "found": 44, "conflicts": 11, "not_found": 5, "errors": 0}


@pytest.fixture(autouse=True)
def _glpi_is_well(healthy: World) -> Iterator[None]:
    glpi(healthy, {})
    yield
    glpi(healthy, {})


def started(world: World, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        world.command("run-task", *arguments), cwd=world.path, env=world.environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def lines_until(process: "subprocess.Popen[str]", text: str) -> list[str]:
    """What it prints, up to the first line that holds `text`."""
    lines: list[str] = []
    assert process.stdout
    while not (lines and text in lines[-1]):
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    return lines


def sent_id(world: World) -> str:
    """The id of the task that the last run sent, as the record has it."""
    (change,) = world.inv("show", "last", "--json").json["changes"]
    return str(change["do"]["task_id"])


@pytest.mark.parametrize("verb", [("run-task", POLL, "--args", "[1]"), ("diagnose",)])
def test_the_application_is_loaded_as_after_a_login_whatever_the_operator_has_set(
    healthy: World, verb: tuple[str, ...]
) -> None:
    """Celery takes a broker of the environment before that of the settings."""
    own = {
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "DJANGO_SETTINGS_MODULE": "mine",
        "PYTHONPATH": "/mine",
    }
    done = subprocess.run(
        healthy.command(*verb), cwd=healthy.path, env=healthy.environment | own, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == healthy.inv(*verb).code == 0, done.stdout + done.stderr


def test_a_shortcut_is_watched_through_its_whole_progress_and_its_result_printed(
    healthy: World,
) -> None:
    glpi(healthy, {"latency_s": 0.03})
    done = healthy.inv("run-task", "check-glpi")
    assert done.code == 0, done.out + done.err
    require_shown("tasks.md", "./inv run-task check-glpi", done.out, numbers=False)
    progress = [line for line in done.out.splitlines() if line.startswith("PROGRESS")]
    assert len(progress) >= 5
    assert any("of 60, found " in line and " left · " in line for line in progress)
    assert all(f"    {name}: {count}\n" in done.out for name, count in COUNTS.items())
    shown = healthy.inv("show", "last")
    assert f"send {CHECK} to high_priority" in shown.out
    assert "SUCCESS: " in shown.out


def test_a_task_sent_without_watching_is_looked_up_later_by_its_id(healthy: World) -> None:
    glpi(healthy, {"latency_s": 0.1})
    sent = healthy.inv("run-task", "check-glpi", "--async", "--json")
    assert (sent.code, sent.json["task"]["state"]) == (0, "SENT")
    task_id = sent.json["task"]["id"]
    assert f"run-task --status {task_id}" in sent.json["task"]["note"]
    running = healthy.inv("run-task", "--status", task_id)
    assert running.code == 1
    assert "has been running on worker_high@sandbox for" in running.out
    glpi(healthy, {})
    watched = healthy.inv("run-task", "--status", task_id, "--sync")
    assert (watched.code, "SUCCESS" in watched.out) == (0, True)
    later = healthy.inv("run-task", task_id, "--status", "--json").json["task"]
    assert (later["state"], later["task"], later["elapsed_s"]) == ("SUCCESS", CHECK, None)
    assert later["result"].items() >= COUNTS.items()


def test_ctrl_c_leaves_the_task_running_and_says_how_to_look_again(healthy: World) -> None:
    glpi(healthy, {"latency_s": 0.03})
    process = started(healthy, "check-glpi")
    lines_until(process, "PROGRESS")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 99
    task_id = sent_id(healthy)
    assert f"the task goes on\n→ see its state: `inv run-task --status {task_id}`" in err
    assert healthy.inv("run-task", "--status", task_id, "--sync").code == 0


def test_a_reader_that_goes_away_does_not_keep_the_task_from_being_watched(healthy: World) -> None:
    glpi(healthy, {"latency_s": 0.02})
    command = (
        " ".join(healthy.command("run-task", "check-glpi")) + " | head -n 2; exit ${PIPESTATUS[0]}"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=healthy.path,
        env=healthy.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "SUCCESS" in healthy.inv("show", "last").out


def test_a_task_that_fails_is_reported_with_its_traceback_and_json_is_one_document(
    healthy: World,
) -> None:
    done = healthy.inv("run-task", CHECK_ONE, "--kwargs", '{"device_id": 99999}', "--json")
    assert (done.code, done.err) == (2, "")
    task = done.json["task"]
    assert (task["state"], task["queue"], task["ended"]) == ("FAILURE", "high_priority", True)
    assert 0 < task["elapsed_s"] < 60
    assert task["result"] == "Printer.DoesNotExist: Printer matching query does not exist."
    assert "device = Printer.objects.get(pk=device_id)" in task["traceback"]
    assert healthy.inv("runs", "--json").json["runs"][-1]["state"] == "failed"


def test_a_retry_is_reported_with_its_time_also_where_its_worker_is_stopped_and_nothing_more_is_sent_there(
    healthy: World,
) -> None:
    glpi(healthy, {"fail": 500})
    done = healthy.inv("run-task", "check-glpi", "--timeout", "2s")
    assert done.code == 1
    assert "retry 1 of 3 at " in done.out
    assert "in 4 min 5" in done.out
    assert "HTTP 500" in done.out
    assert "it has not ended within 2 s" in done.out
    task_id = sent_id(healthy)
    workers(healthy, "stop")
    try:
        status = healthy.inv("run-task", "--status", task_id)
        assert (status.code, "retry 1 at " in status.out) == (1, True)
        refusal = healthy.inv("run-task", "check-glpi")
        link = "the application's routes lead to high_priority, which no node consumes"
        refused(refusal, 2, "nothing was sent", link, "consumed queues: daemon, low_priority")
        assert len(healthy.queue("high_priority")) == 1, "the retry that the worker gave back"
    finally:
        with healthy.broker() as client:
            client.delete(*client.keys("high_priority*"))
        workers(healthy, "start")


def workers(world: World, action: str) -> None:
    scripts = {
        "PRINTER_INVENTORY_HOME": str(world.root / "app"),
        "PRINTER_INVENTORY_PYTHON": world.command()[0],
    }
    command = [str(world.path / f"lab/patient/{action}_workers.sh"), "worker_high"]
    subprocess.run(command, env=world.environment | scripts, check=True, capture_output=True)


def test_without_a_result_backend_the_workers_events_are_followed_and_that_is_said(
    healthy: World,
) -> None:
    backend = "celery_result_backend: >-"
    name = healthy.inventory((backend, "no_backend: >-"))
    glpi(healthy, {"latency_s": 0.02})
    done = healthy.inv("run-task", "check-glpi", "--inventory", name)
    assert done.code == 0, done.out + done.err
    assert "no celery_result_backend: following its workers' events" in done.out
    assert "STARTED" in done.out
    assert "'found': 44" in done.out
    log = (healthy.root / "app/logs/worker_high.log").read_text()
    assert log.count("Events of group {task} enabled by remote.") == 1
    assert log.count("Events of group {task} disabled by remote.") == 1
    unknown = healthy.inv("run-task", "--status", sent_id(healthy), "--inventory", name)
    refused(unknown, 5, "no trace of task", "without celery_result_backend its end is unknown")


def test_a_run_that_is_killed_has_it_on_record_at_which_workers_it_left_events_on(
    healthy: World,
) -> None:
    name = healthy.inventory(("celery_result_backend: >-", "no_backend: >-"))
    glpi(healthy, {"latency_s": 0.02})
    process = started(healthy, "check-glpi", "--inventory", name)
    lines_until(process, "Sent")
    process.kill()
    process.communicate(timeout=30)
    assert "task events are on at worker_high@sandbox;" in healthy.inv("show", "last").out
    url = (healthy.root / "broker.url").read_text()
    assert switch_events(url, ["worker_high@sandbox"], on=False) == ["worker_high@sandbox"], (
        "they were on"
    )


def test_a_dry_run_looks_at_the_way_and_sends_nothing(healthy: World) -> None:
    before = sorted((healthy.root / "state/runs").iterdir())
    done = healthy.inv("run-task", "check-glpi", "--dry-run")
    assert (
        done.code,
        f"Would send {CHECK} to high_priority, consumed by worker_high@sandbox." in done.out,
    ) == (
        0,
        True,
    )
    assert sorted((healthy.root / "state/runs").iterdir()) == before


# --- refused, and nothing sent


def nothing_sent(world: World, done: Done, code: int, *texts: str) -> None:
    refused(done, code, "nothing was sent", *texts)
    assert world.queue("nowhere") == world.queue("high_priority") == []


def test_an_unknown_task_is_refused_with_the_nearest_names(healthy: World) -> None:
    nothing_sent(healthy, healthy.inv("run-task", "check-gpli"), 5, "nearest names: check-glpi")
    done = healthy.inv("run-task", "integration.tasks.check_all_device_in_glpi")
    nothing_sent(healthy, done, 5, f"nearest names: {CHECK}")


def test_arguments_that_are_not_json_or_do_not_fit_are_refused(healthy: World) -> None:
    wrong = healthy.inv(
        "run-task", POLL, "--args", "[1", "--kwargs", "7", "--priority", "ten", "--timeout", "soon"
    )
    nothing_sent(
        healthy,
        wrong,
        5,
        "--args '[1': not JSON",
        "--kwargs '7': JSON, but not",
        "--priority:",
        "--timeout:",
    )
    unfit = healthy.inv("run-task", POLL)
    nothing_sent(
        healthy,
        unfit,
        5,
        f"{POLL}(printer_id: int) -> int",
        "missing a required argument: 'printer_id'",
    )


def test_flags_that_exclude_each_other_are_refused(healthy: World) -> None:
    refused(healthy.inv("run-task", POLL, "--sync", "--async"), 5, "exclude each other")
    refused(
        healthy.inv("run-task", "--status", "x", "--args", "[]"),
        5,
        "--status sends nothing, so it excludes --args",
    )
    refused(
        healthy.inv("run-task", "--status", "no-such-id"),
        5,
        "no trace of task no-such-id",
        "is the id right?",
    )
    elsewhere = healthy.inv("run-task", "--status", "no-such-id", "--inventory", "inventory.yaml")
    assert "tail-logs --grep no-such-id --inventory inventory.yaml`" in elsewhere.err


def test_a_queue_that_no_one_consumes_is_refused_with_those_that_are(healthy: World) -> None:
    done = healthy.inv("run-task", POLL, "--args", "[1]", "--queue", "nowhere")
    nothing_sent(
        healthy,
        done,
        5,
        "--queue names nowhere, which no node consumes",
        "daemon, high_priority, low_priority",
    )


# --- probes


def test_a_probe_that_fails_is_a_finding_with_its_output_and_fails_a_check(healthy: World) -> None:
    glpi(healthy, {"fail": 500})
    leaky = (
        "celery_probes:\n          - {name: leaky, command: \". '{{ celery_env_file }}' && set &&"
        ' exit 4"}'
    )
    done = healthy.inv(
        "verify", "--inventory", healthy.inventory(("celery_probes:", leaky)), "--json"
    )
    assert done.code == 1
    findings = {finding["subject"]: finding for finding in done.json["findings"]}
    assert "probe.failed" in {finding["code"] for finding in findings.values()}
    look_up, leak = findings["one look-up in GLPI on sandbox"], findings["leaky on sandbox"]
    assert look_up["summary"] == "the probe one look-up in GLPI exited with 1, not 0"
    assert any("HTTP 500" in line for line in look_up["evidence"])
    assert leak["summary"] == "the probe leaky exited with 4, not 0"
    secrets = [
        line.partition("=")[2]
        for line in healthy.env_file.read_text().splitlines()
        if "_TOKEN=" in line
    ]
    assert secrets
    assert not any(secret in done.out for secret in secrets)
    assert {check["what"] for check in done.json["checks"] if not check["ok"]} == {
        "probe one look-up in GLPI on sandbox", "probe leaky on sandbox", "no fault is left",
    }  # fmt: skip


def test_a_remediation_that_changes_something_fails_until_the_probe_passes(healthy: World) -> None:
    inventory = healthy.inventory(
        (
            "celery_probes:",
            "celery_probes:\n          - {name: migrated, command: test -e migrated}",
        ),
        ("celery_canary:", "no_canary:"),
    )
    mark, cron = healthy.path / "lab/patient/migrated", healthy.root / "root/etc/cron.d"

    def remediated() -> Done:
        return healthy.inv("remediate", "--yes", "--inventory", inventory)

    for code in (2, 0):
        for path in cron.iterdir():
            path.unlink()
        done = remediated()
        assert done.code == code, done.out + done.err
        assert ("the probe migrated exited with 1, not 0" in done.out) is bool(code)
        mark.touch()
    mark.unlink()
    nothing = remediated()
    assert (nothing.code, "Probes were not run" in nothing.out) == (0, True), nothing.out
    assert healthy.inv("verify", "--inventory", inventory).code == 1


# --- last, for the fleet takes its time to come back


def test_redis_restarted_in_the_middle_is_waited_for_and_the_result_still_reported(
    healthy: World,
) -> None:
    glpi(healthy, {"latency_s": 2})
    process = started(healthy, CHECK_ONE, "--args", "[1]")
    lines_until(process, "STARTED")
    with healthy.broker() as client:
        port = int(client.connection_pool.connection_kwargs["port"])
        client.shutdown(save=True)
    lines_until(process, "does not answer")
    start_redis(healthy, port)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), out + err
    assert "SUCCESS after" in out


def start_redis(world: World, port: int) -> None:
    """Start the sandbox's server again, as a part of the sandbox and no child of ours."""
    start = f"RedisServer.start(Path({str(world.root / 'redis')!r}), port={port})"
    program = f"from lab.redis_server import *; print({start}.pid)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=world.path, capture_output=True, text=True, check=True
    )
    parts = json.loads((world.root / "parts.json").read_text())
    redis = next(part for part in parts if part["name"] == "redis")
    redis |= {"pid": int(done.stdout), "created_at": psutil.Process(int(done.stdout)).create_time()}
    (world.root / "parts.json").write_text(json.dumps(parts))
