"""The list of codes: each is built somewhere, none is built that is not listed, and each has a test."""

import ast
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from runbooks.core.model import Finding, ImportProbe, Selection
from runbooks.core.settings import Worker
from runbooks.diagnosis.code import would_discard
from runbooks.diagnosis.codes import CODES
from runbooks.diagnosis.files import units_of_others
from runbooks.diagnosis.judge import judge
from runbooks.diagnosis.services import at_work
from tests.unit.diagnosis.test_one_judgement import Draw, looks
from tests.unit.fleets import (
    NOW,
    TASKS,
    in_place,
    make_broker,
    make_fleet,
    make_host,
    make_queue,
    make_snapshot,
    make_state,
)

ROOT = Path(__file__).parents[3]
COMPOSED = {
    "{kind}.{what}": [f"{kind}.{what}" for kind in ("unit", "cron", "logrotate") for what in ("missing", "differs")],
    "{kind}.stale": ["unit.stale", "cron.stale", "logrotate.stale"],
    "{kind}.not_running": ["worker.not_running", "beat.not_running"],
    "{kind}.other_process": ["worker.other_process", "beat.other_process"],
}
"""Codes that are put together, by their source."""


def built() -> Iterator[str]:
    """The codes of all findings that the code makes."""
    for path in (ROOT / "runbooks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    yield str(code.value)
                else:
                    yield from COMPOSED[ast.unparse(code)[2:-1]]


def test_the_list_has_every_code_and_no_other() -> None:
    assert set(built()) == set(CODES)
    assert list(CODES) == sorted(CODES)


def codes(findings: Iterator[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def test_a_restart_that_was_asked_for_is_not_proved_by_another_worker_of_that_name() -> None:
    fleet = make_fleet()
    broker = make_broker(fleet)
    twins = {name: replace(node, twins=2) for name, node in broker.nodes.items()}
    snapshot = make_snapshot(fleet, broker=replace(broker, nodes=twins))
    assert codes(at_work(fleet, snapshot, {"web1": NOW})) == {"service.restart_asked", "worker.answer_unknown"}


def test_a_unit_of_a_host_that_was_not_looked_at_blocks_the_host_that_has_it() -> None:
    fleet = replace(make_fleet(), all_nodes=("high@web1", "high@web2"))
    unit = in_place(b"# Managed by celery-runbooks for shop;\nExecStart=celery worker -n high@web2 -Q high_q\n")
    state = make_state(fleet.hosts[0], managed={"/etc/systemd/system/celery-worker@high.service": unit})
    found = units_of_others(fleet, make_snapshot(fleet, hosts={"web1": state}))
    assert codes(found) == {"inventory.units_of_another"}


def test_items_that_are_no_messages_are_taken_out_before_a_worker_is_started_on_them() -> None:
    fleet = make_fleet(make_host(workers=(Worker(name="high", queues=("high_q",)),)))
    queue = make_queue(depth=2, malformed=Selection("malformed", 2, {}))
    broker = make_broker(fleet, nodes={}, queues={"high_q": queue})
    probe = ImportProbe(frozenset(TASKS), {})
    state = make_state(fleet.hosts[0], imports_now=probe, imports_wanted=probe)
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    assert codes(would_discard(fleet, snapshot, repaired=False)) == {"message.would_kill"}


def test_every_code_is_named_by_a_test_or_found_in_snapshots_made_at_random() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = {code for code in CODES if f'"{code}"' in tests}
    found = {finding.code for seed in range(300) for finding in judge(*looks(Draw(seed)))}
    assert sorted(CODES.keys() - named - found) == []
