"""`inv workers`: what runs, beside what the inventory expects."""

import os
import signal
from pathlib import Path
from typing import Any

from tests.brokers import until
from tests.sandbox.conftest import World
from tests.transcripts import require_shown


def pid_of(world: World, worker: str) -> int:
    return int((world.root / f"app/run/{worker}.pid").read_text().split()[0])


def lines(world: World) -> dict[str, Any]:
    return {line["service"]: line for line in world.inv("workers", "--json").json["workers"]}


def test_a_worker_that_answers_is_one_line_with_its_process_its_tasks_and_its_broker(
    healthy: World,
) -> None:
    shown = healthy.inv("workers", "--json").json
    high = next(line for line in shown["workers"] if line["service"] == "worker_high")
    assert (high["host"], high["worker"], high["state"]) == (
        "sandbox",
        "worker_high@sandbox",
        "answers",
    )
    assert (high["pid"], high["pool"], high["size"], high["processes"]) == (
        pid_of(healthy, "worker_high"),
        "prefork",
        2,
        3,
    )
    assert (high["queues"], high["active"], high["reserved"], high["scheduled"]) == (
        ["high_priority"],
        0,
        0,
        0,
    )
    assert (high["broker"], high["broker_seen_by"]) == (
        shown["about"]["broker"],
        "it answers through it",
    )
    assert (high["twins"], high["rate_limits"]) == ([], {})
    (total,) = shown["totals"]
    assert abs(total["clock_ahead_s"]) <= total["clock_margin_s"] < 10, "it is this machine"
    assert total["processes"] == sum(line["processes"] for line in shown["workers"])
    assert (
        total["memory_bytes"] == sum(line["memory_bytes"] for line in shown["workers"]) > 100 << 20
    )


def test_what_is_stopped_or_not_there_is_reported_as_that_and_is_not_a_failure(
    healthy: World,
) -> None:
    low, daemon = pid_of(healthy, "worker_low"), pid_of(healthy, "worker_daemon")
    os.kill(daemon, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{daemon}").exists())
    os.kill(low, signal.SIGSTOP)
    try:
        until(lambda: lines(healthy)["worker_low"]["state"] == "stopped")
        seen = lines(healthy)
        done = healthy.inv("workers")
    finally:
        os.kill(low, signal.SIGCONT)
        assert healthy.inv("remediate", "--yes").code == 0
    assert done.code == 0, done.err
    require_shown("workers.md", "inv workers", done.out, numbers=False)
    (row,) = (line for line in done.out.splitlines() if line.startswith("worker_low@sandbox"))
    assert row.split()[1:3] == ["stopped", str(low)]
    gone = seen["worker_daemon"]
    assert (gone["state"], gone["pid"], gone["processes"], gone["age_s"]) == (
        "not running",
        None,
        0,
        None,
    )
    assert (seen["beat"]["worker"], seen["beat"]["state"]) == ("beat", "runs")


def test_without_a_broker_the_processes_are_shown_and_who_answers_is_not_known(
    healthy: World,
) -> None:
    text = (healthy.path / "inventory.yaml").read_text()
    url = text[
        text.index("        celery_broker_url:") : text.index("        celery_result_backend:")
    ]
    inventory = healthy.inventory((url, "        celery_broker_url: redis://127.0.0.1:1/0\n"))
    done = healthy.inv("workers", "--json", "-i", inventory)
    assert done.code == 4
    assert {line["state"] for line in done.json["workers"]} == {"runs"}
    assert any("unknown which answer" in one["problem"] for one in done.json["warnings"])
