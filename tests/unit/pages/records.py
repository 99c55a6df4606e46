"""Records of runs, made as a run makes them: by its own journal and archives."""

import json
from collections.abc import Sequence
from pathlib import Path

from runbooks.broker.archive.search import archive_name
from runbooks.broker.archive.writer import Archive, Victim
from runbooks.core.effects import (
    BROKER,
    Change,
    ControlService,
    SetEnvironment,
    TakeMessages,
    WriteFile,
)
from runbooks.core.errors import ExitCode
from runbooks.core.model import Cause, Finding, Severity
from runbooks.core.reporter import Check, Outcome
from runbooks.engine.journal import Journal, RunRecord, Where, find_run
from runbooks.engine.seen import Seen

RUN = "20250615-150640-0000"
DIFF = "--- /etc/shop.env\n+++ /etc/shop.env\n@@ -1 +1 @@\n-TIMEOUT=30s\n+TIMEOUT=30\n"
NOT_RUNNING = Finding(
    "worker.not_running", "low on web1", "low is not running", ("it said: stopped",), "start it"
)
NO_CONSUMER = Finding(
    "queue.no_consumer", "low_q", "5,000 messages wait in low_q and no node consumes it", ("LLEN 'low_q' = 5,000",),
    "start its workers", caused_by=(Cause.of(NOT_RUNNING),),
)  # fmt: skip
NOTED = Finding("queue.selected", "low_q", "300 are to be taken out", severity=Severity.WARNING)
CHECKS = (
    Check("hosts answer", True, "1 of 1"),
    Check("no fault is left", None, "not all was seen"),
)


def message(task: str, args: str = "[]", id_: str = "0") -> bytes:
    """A message of Celery's, as far as it is read."""
    headers = {
        "task": task,
        "id": id_,
        "retries": 3,
        "eta": None,
        "argsrepr": args,
        "kwargsrepr": "{}",
        "lang": "py",
    }
    properties = {
        "delivery_tag": id_,
        "delivery_info": {"exchange": "", "routing_key": "q"},
        "body_encoding": "base64",
    }
    return json.dumps({
        "body": "W1tdLCB7fSwge31d", "content-encoding": "utf-8", "content-type": "application/json",
        "headers": headers, "properties": properties,
    }).encode()  # fmt: skip


def changes_of(host: str, texts: Sequence[str] = ()) -> list[Change]:
    """What a remediation changes on a host; `texts` stand in for what is outside's."""
    text = texts[0] if texts else "celery-worker@low.service"
    environment = SetEnvironment("/etc/shop.env", {"TIMEOUT": "30"}, {"TIMEOUT": "30s"}, "systemd")
    unit = WriteFile(f"/etc/systemd/system/{text}", b"x", 0o644, "absent")
    return [
        Change(host, "environment", "set TIMEOUT in /etc/shop.env", environment, detail=DIFF),
        Change(
            host, "units", f"create {text}", unit, WriteFile(unit.path, None, 0, "x"), f"+{text}\n"
        ),
        Change(host, "workers", f"restart {text}", ControlService("low", "restart")),
    ]


def record(
    state: Path,
    hosts: Sequence[str],
    queues: dict[str, Sequence[bytes]],
    texts: Sequence[str] = (),
    *,
    complete: bool = True,
) -> RunRecord:
    """A remediation of these hosts that archived these messages."""
    journal = Journal.create(
        state, RUN, "remediate", Where("/etc/shop/inventory.yaml", "127.0.0.1:6379/3", "shop")
    )
    findings = [
        NOT_RUNNING,
        NO_CONSUMER,
        NOTED,
        *(Finding("host.slow", text, text, (text,), text) for text in texts),
    ]
    at = 1_750_000_000.0
    if complete:
        journal.saw(
            Seen(
                at,
                {queue: len(messages) + 10 for queue, messages in queues.items()},
                tuple(findings),
            )
        )
    for host in hosts:
        intended = journal.intend_all(changes_of(host, texts))
        for n, _ in intended:
            failed = host == "web2" and n % 3 != 0
            journal.finished(
                n,
                Outcome.FAILED if failed else Outcome.CHANGED,
                "exit code 1: no such unit" * failed,
            )
        if host == "web2":
            journal.unproved([(intended[-1][1], "done, but a second look still finds: start it")])
    for queue, messages in queues.items():
        take(journal, queue, messages, texts[0] if texts else "too late")
    if complete:
        journal.saw(Seen(at + 20, dict.fromkeys(queues, 10)))
        journal.saw(Seen(at + 30, dict.fromkeys(queues, 4), (NOTED,), CHECKS))
    journal.end_with(ExitCode.OK)
    journal.close()
    return find_run(state, RUN)


def take(journal: Journal, queue: str, messages: Sequence[bytes], reason: str) -> None:
    """Take messages out, as far as the record goes."""
    name = archive_name(queue)
    (n, _), = journal.intend_all(
        [Change(BROKER, "queues", f"archive {len(messages)} messages from {queue}", TakeMessages(queue, name, ()))]
    )  # fmt: skip
    with Archive.create(journal.directory / name, journal.run_id, 1_750_000_000.0) as archive:
        older: bytes | None = None
        victims = []
        for place, raw in enumerate(messages):
            victims.append(Victim(raw, place, older, reason, malformed=False))
            older = raw
        batch = archive.taking(queue, victims)
        archive.done(batch, list(batch.messages))
    journal.finished(n, Outcome.CHANGED)
