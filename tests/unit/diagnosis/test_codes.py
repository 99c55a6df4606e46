"""Every code is built in one place, is in the catalogue, and has a test."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from invoke.collection import Collection
from msgspec.structs import asdict, replace

from lab.faults.every import FAULTS
from lab.faults.grounds import GROUNDS
from lab.findings_page import page
from runbooks.cli import verbs
from runbooks.core.command import Command
from runbooks.core.errors import HostTrouble, Trouble
from runbooks.core.model import Block, Finding, ImportProbe, Selection
from runbooks.core.settings import AppSettings, HostSettings, Worker
from runbooks.diagnosis.code import would_discard
from runbooks.diagnosis.codes import catalogue
from runbooks.diagnosis.files import units_of_others
from runbooks.diagnosis.judge import judge
from runbooks.diagnosis.services import at_work
from runbooks.diagnosis.steps import worker_step
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
CODES = catalogue()
COMPOSED = {
    "{kind}.{what}": [
        f"{kind}.{what}"
        for kind in ("unit", "cron", "timer", "logrotate")
        for what in ("missing", "differs")
    ],
    "host.{state.trouble.value}": [f"host.{trouble.value}" for trouble in HostTrouble],
    "{kind}.not_ours": ["unit.not_ours", "cron.not_ours", "timer.not_ours", "logrotate.not_ours"],
    "{kind}.stale": ["unit.stale", "cron.stale", "timer.stale", "logrotate.stale"],
    "{kind}.not_running": ["worker.not_running", "beat.not_running"],
    "{kind}.other_broker": ["worker.other_broker", "beat.other_broker"],
    "{kind}.other_process": ["worker.other_process", "beat.other_process"],
    "application.{which}_differ": [
        f"application.{which}_differ" for which in ("tasks", "routes", "versions", "results")
    ],
    "broker.{why.trouble.value}": [f"broker.{trouble.value}" for trouble in Trouble],
}
"""Codes that are put together, by their source."""


def built() -> Iterator[str]:
    """The codes of all findings that the code makes."""
    for path in (ROOT / "runbooks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "Finding"
            ):
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    yield str(code.value)
                elif isinstance(code, ast.IfExp):
                    yield from (
                        str(one.value)
                        for one in (code.body, code.orelse)
                        if isinstance(one, ast.Constant)
                    )
                else:
                    yield from COMPOSED[ast.unparse(code)[2:-1]]


def test_the_catalogue_explains_every_code_and_no_other() -> None:
    assert set(built()) == set(CODES)
    assert list(CODES) == sorted(CODES)


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_next_step_or_says_why_there_is_none(code: str) -> None:
    one = CODES[code]
    assert bool(one.next_step) != bool(one.no_step)
    assert all((one.title, one.meaning, one.known_by, one.not_meant))


VERBS = set(Collection.from_module(verbs).task_names)


@pytest.mark.parametrize("code", CODES)
def test_what_the_catalogue_names_exists(code: str) -> None:
    text = " ".join(asdict(CODES[code]).values())
    assert set(re.findall(r"`inv (\S+?)[` ]", text)) <= VERBS
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", text)) <= CODES.keys()
    assert all((ROOT / path).exists() for path in re.findall(r"docs/\w+\.md", text))
    settings = {*AppSettings.model_fields, *HostSettings.model_fields}
    assert set(re.findall(r"celery_([a-z_]+)", text)) <= settings


def test_the_page_of_findings_is_up_to_date() -> None:
    assert (ROOT / "docs/findings.md").read_text() == page(), "./inv docs writes it"


def codes(findings: Iterator[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def test_a_restart_that_was_asked_for_is_not_proved_by_another_worker_of_that_name() -> None:
    fleet = make_fleet()
    broker = make_broker(fleet)
    twins = {name: replace(node, twins=2) for name, node in broker.nodes.items()}
    snapshot = make_snapshot(fleet, broker=replace(broker, nodes=twins))
    assert codes(at_work(fleet, snapshot, {"web1": NOW})) == {
        "service.restart_asked",
        "worker.answer_unknown",
    }
    restarted = {"web1": NOW - 600}
    assert codes(at_work(fleet, snapshot, restarted)) == {"worker.answer_unknown"}
    assert [change.service for change in worker_step(fleet, restarted).lacking(snapshot)] == [
        "high"
    ]


def test_a_unit_of_a_host_that_was_not_looked_at_blocks_the_host_that_has_it() -> None:
    fleet = replace(make_fleet(), all_nodes=("high@web1", "high@web2"))
    unit = in_place(
        b"# Managed by celery-runbooks for shop;\nExecStart=celery worker -n high@web2 -Q high_q\n"
    )
    state = make_state(
        fleet.hosts[0], managed={"/etc/systemd/system/celery-worker@high.service": unit}
    )
    found = units_of_others(fleet, make_snapshot(fleet, hosts={"web1": state}))
    assert codes(found) == {"inventory.units_of_another"}
    removed = replace(fleet, all_nodes=("high@web1",))
    assert codes(units_of_others(removed, make_snapshot(removed, hosts={"web1": state}))) == set()


def test_items_that_are_not_messages_are_taken_out_before_a_worker_is_started_on_them() -> None:
    fleet = make_fleet(make_host(workers=(Worker(name="high", queues=("high_q",)),)))
    queue = make_queue(depth=2, malformed=Selection("malformed", 2, {}))
    broker = make_broker(fleet, nodes={}, queues={"high_q": queue})
    probe = ImportProbe(frozenset(TASKS), {})
    state = make_state(fleet.hosts[0], imports_now=probe, imports_wanted=probe)
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    (finding,) = would_discard(fleet, snapshot, repaired=False)
    assert (finding.code, finding.blocks) == ("message.would_kill", (Block("web1", "high"),))
    assert str(Command("clean-queues", "--malformed")) in finding.summary
    taking = replace(snapshot, broker=make_broker(fleet, queues={"high_q": queue}))
    assert not list(would_discard(fleet, taking, repaired=False)), "it takes them already"


def test_every_code_is_named_by_a_test_or_found_in_snapshots_made_at_random() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = {code for code in CODES if f'"{code}"' in tests}
    found = {finding.code for seed in range(300) for finding in judge(*looks(Draw(seed)))}
    assert sorted(CODES.keys() - named - found) == []


def test_every_code_has_a_fault_that_makes_it() -> None:
    assert {fault.code for fault in FAULTS} == CODES.keys()
    assert {fault.ground for fault in FAULTS} <= GROUNDS.keys()
