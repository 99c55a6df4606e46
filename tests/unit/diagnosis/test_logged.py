"""What logs prove, and what they do not."""

from typing import Any

from msgspec.structs import replace

from runbooks.core.command import Command
from runbooks.core.logged import Event, Logged, ServiceLog
from runbooks.core.model import Finding, ServiceState, Severity
from runbooks.diagnosis import logged
from tests.unit.fleets import NOW, make_fleet, make_host, make_snapshot, make_state

HOSTS = (make_host("web1"), make_host("web2"))
FLEET = make_fleet(*HOSTS)


def line(
    event: Event, count: int = 1, subject: str = "", text: str = "said", last_at: float = NOW
) -> Logged:
    return Logged(event, subject, count, text, NOW - 60, last_at)


def found(
    *events: Logged, on: str = "web1", other: ServiceLog | None = None, **log: Any
) -> dict[str, Finding]:
    """The findings by their codes, with the log of `high` on one host; `other` is that of the other."""
    logs = {host.name: other for host in HOSTS} | {on: ServiceLog(NOW - 60, events, **log)}
    hosts = {host.name: make_state(host, services=_services(logs[host.name])) for host in HOSTS}
    return {one.code: one for one in logged.faults(FLEET, make_snapshot(FLEET, hosts=hosts))}


def _services(log: ServiceLog | None) -> dict[str, ServiceState]:
    return {
        "high": ServiceState(101, NOW - 500, "", log=log),
        "beat": ServiceState(102, NOW - 500, ""),
    }


def failures(count: int) -> Logged:
    return line(
        Event.FAILED, count, "shop.bill", "Task shop.bill[t1] raised unexpected: OSError(28)"
    )


def test_a_task_of_which_half_fails_is_reported_with_its_share_and_the_first_exception() -> None:
    finding = found(failures(12), succeeded={"shop.bill": 3})["task.failing"]
    assert finding.summary == "12 of 15 runs of shop.bill have failed"
    assert finding.severity is Severity.WARNING
    assert "12 times" in finding.evidence[0]
    assert "OSError(28)" in finding.evidence[0]
    assert found(failures(12), succeeded={"shop.ok": 3})["task.failing"].severity is Severity.ERROR


def test_a_few_failures_or_less_than_half_are_not_a_fault() -> None:
    assert not found(failures(4))
    assert found(failures(5), succeeded={"shop.bill": 5})
    assert not found(failures(5), succeeded={"shop.bill": 6})


def test_below_the_level_info_the_share_is_not_known() -> None:
    finding = found(failures(12))["task.failing"]
    assert finding.summary == "12 runs of shop.bill have failed; successful runs are not logged"
    assert finding.severity is Severity.WARNING


def test_a_worker_on_which_a_task_fails_while_it_succeeds_elsewhere_is_named() -> None:
    well = ServiceLog(NOW - 60, succeeded={"shop.bill": 400})
    finding = found(failures(6), received={("shop.bill", "t2"): 1}, other=well)["task.failing"]
    assert finding.summary == "6 of 6 runs of shop.bill have failed on high on web1"


def test_a_message_that_comes_again_and_kills_again_is_named() -> None:
    killed = line(Event.KILLED, 3, text="Process 'F-2' pid:1 exited with 'signal 9 (SIGKILL)'")
    finding = found(killed, received={("shop.kill", "t2"): 4, ("shop.ok", "t3"): 1})[
        "task.kills_its_process"
    ]
    assert finding.subject == "shop.kill"
    assert finding.summary.startswith(
        "message t2 of shop.kill was received 4 times by high on web1 and never ended"
    )
    assert finding.evidence[-1].endswith(
        f"while the worker is stopped: {Command('clean-queues', '--id', 't2')}"
    )
    assert set(found(killed, received={("shop.ok", "t3"): 1})) == {"worker.processes_killed"}


def test_processes_that_a_time_limit_killed_are_not_reported_again() -> None:
    killed = line(Event.KILLED, 2, text="Process 'F-2' pid:1 exited with 'signal 9 (SIGKILL)'")
    limit = line(Event.FAILED, 2, "shop.slow", "Hard time limit (5s) exceeded for shop.slow[t1]")
    assert not found(killed, limit)
    finding = found(replace(killed, count=3), limit)["worker.processes_killed"]
    assert (
        finding.evidence[-1]
        == "journalctl -k --grep 'Killed process' shows whether it was the kernel"
    )


def test_what_was_discarded_is_reported_in_one_finding_for_each_kind() -> None:
    unknown = [line(Event.UNREGISTERED, 2, f"shop.new{n}") for n in range(7)]
    by_code = found(*unknown, line(Event.UNREADABLE, 3))
    assert "14 messages of 7 tasks of shop" in by_code["task.was_discarded"].summary
    assert "3 messages" in by_code["message.was_discarded"].summary
    assert "accept_content" in by_code["message.was_discarded"].evidence[1]
    lost = "discarded messages are lost: only their sender can send them again"
    assert all(one.evidence[-1] == lost for one in by_code.values())


def test_a_refused_password_counts_until_the_worker_gets_in_again() -> None:
    refused = line(Event.REFUSED, last_at=NOW - 10)
    finding = found(refused, line(Event.CONNECTED, last_at=NOW - 30))["worker.refused"]
    assert "open connections continue to work until they are lost" in finding.evidence
    assert not found(refused, line(Event.CONNECTED, last_at=NOW - 5))


def test_ends_of_tasks_that_could_not_be_handled_are_reported() -> None:
    finding = found(line(Event.NO_RESULT, 2))["worker.loses_results"]
    assert "2 tasks" in finding.summary
    log = Command("tail-logs", "--limit", "web1", "--since", "2025-06-15T15:06:40Z")
    assert finding.evidence[-1] == f"the traceback below that line names the server or file: {log}"
