"""`--json` is one document, as docs/output.schema.json has it, whatever the verb."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from invoke.collection import Collection
from invoke.program import Program
from msgspec.structs import asdict

from lab.world import SCHEMA
from runbooks.cli import verbs
from runbooks.cli.program import RunbooksProgram
from runbooks.diagnosis.codes import catalogue
from runbooks.explain import explain
from runbooks.reports.json_document import JsonReporter

ARGUMENTS = {
    "adopt": "--broker {url}",
    "archive.restore": "last --dry-run",
    "archive.show": "last",
    "archive.verify": "last",
    "clean-queues": "--task shop.bill --yes",
    "completion": "bash",
    "consumer": "w@* add work --dry-run",
    "fix-imports": "--dry-run",
    "init": "new.yaml",
    "install-cron": "--dry-run",
    "install-units": "--dry-run",
    "messages": "work --full",
    "pool": "w@* --grow 1 --dry-run",
    "rate-limit": "shop.bill 10/m --dry-run",
    "remediate": "--dry-run",
    "report": "last --markdown run.md",
    "restart-workers": "--dry-run",
    "retry": "--dry-run",
    "revoke": "--task shop.bill --dry-run",
    "run-task": "shop.bill",
    "show": "last",
    "shutdown": "w@* --dry-run",
    "task": "an-id",
    "undo": "last --dry-run",
}
AFTER_A_RUN = ("adopt", "archive.", "report", "show", "undo")
INVENTORY = """\
all:
  hosts:
    here: {ansible_connection: local}
  vars:
    runbooks_state_directory: "{{ inventory_dir }}/state"
    celery_app: shop
    celery_broker_url: URL
    celery_nodes: ["w@*"]
    celery_queues: [work]
"""


Documents = dict[str, Any]
"""What each verb printed."""


@pytest.fixture
def documents(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Documents:
    """All verbs on a broker without workers where three tasks wait."""
    (tmp_path / "inventory.yaml").write_text(INVENTORY.replace("URL", url))
    monkeypatch.chdir(tmp_path)
    with Celery("producer", broker=url, set_as_current=False) as app:
        with app.connection_for_read() as connection:
            connection.default_channel.client.flushdb()
        ids = [app.send_task("shop.bill", (n,), queue="work").id for n in range(3)]
    collection = Collection.from_module(verbs)
    printed: Documents = {}
    arguments = ARGUMENTS | {"task": ids[1]}
    for verb in sorted(collection.task_names, key=lambda name: name.startswith(AFTER_A_RUN)):
        words = arguments.get(verb, "").format(url=url).split()
        program = RunbooksProgram(namespace=collection, name="inv", binary="inv")
        begun = time.time()
        Program.run(program, ["inv", verb, *words, "--json"], exit=False)
        printed[verb] = json.loads(capsys.readouterr().out)
        if "at" in printed[verb]:
            assert begun <= printed[verb]["at"] <= time.time(), verb
    return printed


def test_the_json_of_every_verb_is_one_document_as_the_schema_has_it(documents: Documents) -> None:
    """The documents of fleets with workers are compared in tests/sandbox: `lab/world.py: Done`."""
    seen: set[str] = set()
    for document in documents.values():
        SCHEMA.validate(document)
        seen |= document.keys()
    assert seen >= {"archived", "broker", "changes", "findings", "look", "plan", "queue_messages"}


def test_what_the_verbs_look_at_and_record_stands_under_the_keys_of_the_reference(
    documents: Documents, url: str, tmp_path: Path
) -> None:
    about = documents["diagnose"]["about"]
    assert about["inventory"] == documents["diagnose"]["inventory"] == f"{tmp_path}/inventory.yaml"
    assert about["application"] == documents["diagnose"]["application"] == "shop"
    assert about["broker"] == documents["broker"]["about"]["broker"] == url.removeprefix("redis://")
    adopted = documents["adopt"]
    assert (adopted["application"], adopted["inventory"]) == ("broker", "no inventory")
    assert f"celery_broker_url: {url}" in adopted["adopted"]
    assert documents["runs"]["about"]["records"] == f"{tmp_path}/state"
    assert (documents["runs"]["application"], documents["runs"]["inventory"]) == (None, None)

    cleaned = documents["clean-queues"]
    assert (cleaned["dry_run"], documents["restart-workers"]["dry_run"]) == (False, True)
    assert cleaned["undo"].endswith(f" undo {cleaned['run']}")
    (run,) = documents["runs"]["runs"]
    assert (run["run"], run["verb"], run["state"]) == (cleaned["run"], "clean-queues", "ok")
    (archive,) = documents["archive.list"]["archives"]
    assert (archive["run"], archive["queue"], archive["in it"]) == (cleaned["run"], "work", 3)
    ids = [message["id"] for message in documents["archive.show"]["archived"]]
    (plan,) = cleaned["plan"]
    assert ids == [message["id"] for message in plan["messages"]]
    (recorded,) = documents["show"]["changes"]
    (made,) = cleaned["changes"]
    assert recorded == {**made, "undone": False}
    assert (made["host"], made["do"]["queue"]) == ("the broker", "work")
    (back,) = documents["undo"]["undo_plan"]
    assert back["do"]["kind"] == "restore_messages"
    assert list(documents["explain"]["codes"][0]) == ["code", "title"]

    refused = documents["rate-limit"]
    assert refused["error"] == {"problem": "no node is called '*'", "advice": "no node answers"}
    assert not {"plan", "changes"} & refused.keys()

    followed = documents["task"]
    assert (followed["id"], followed["name"]) == (ids[1], "shop.bill")
    assert (followed["holders"], followed["revoked_on"], followed["sent_by"]) == ([], [], None)
    assert "which node has it: no node answers" in followed["unknown"]
    assert followed["result"] is None
    listed = documents["tasks"]
    assert (listed["results"], listed["unnamed"], listed["results_complete"]) == (0, 0, None)
    assert "the inventory names no Redis as celery_result_backend" in listed["unknown"][-1]


def test_an_explanation_is_the_catalogues_under_its_own_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for code, one in catalogue().items():
        reporter = JsonReporter()
        explain(reporter, code)
        reporter.close(0)
        said = json.loads(capsys.readouterr().out)
        assert said["code"] == code
        for name, text in asdict(one).items():
            assert said[name].replace("`", "") == text.replace("`", ""), (code, name)
