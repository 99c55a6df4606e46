"""`--json` is one document, as docs/output.schema.json has it, whatever the verb."""

import json
from pathlib import Path

import pytest
from celery import Celery
from invoke.collection import Collection
from invoke.program import Program

from lab.world import SCHEMA
from runbooks.cli import verbs
from runbooks.cli.program import RunbooksProgram

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


def test_the_json_of_every_verb_is_one_document_as_the_schema_has_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The documents of fleets with workers are compared in tests/sandbox: `lab/world.py: Done`."""
    (tmp_path / "inventory.yaml").write_text(INVENTORY.replace("URL", url))
    monkeypatch.chdir(tmp_path)
    with Celery("producer", broker=url, set_as_current=False) as app:
        for n in range(3):
            app.send_task("shop.bill", (n,), queue="work")
    collection = Collection.from_module(verbs)
    seen: set[str] = set()
    for verb in sorted(collection.task_names, key=lambda name: name.startswith(AFTER_A_RUN)):
        words = ARGUMENTS.get(verb, "").format(url=url).split()
        program = RunbooksProgram(namespace=collection, name="inv", binary="inv")
        Program.run(program, ["inv", verb, *words, "--json"], exit=False)
        document = json.loads(capsys.readouterr().out)
        SCHEMA.validate(document)
        seen |= document.keys()
    assert seen >= {"archived", "broker", "changes", "findings", "look", "plan", "queue_messages"}
