"""A fleet that is described without its hosts: by patterns of its nodes, and by how many consume
each queue.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.redis_server import RedisServer
from lab.world import celery_command
from tests.brokers import until
from tests.sandbox.conftest import Done, World, make_world
from tests.transcripts import DOCS, require_shown

CLOUD = """\
all:
  hosts:
    cloud: {{ansible_connection: local}}
  vars:
    runbooks_state_directory: "{{{{ inventory_dir }}}}/.sandbox/cloud"
    celery_app: printer_inventory
    celery_broker_url: "{{{{ lookup('file', inventory_dir ~ '/.sandbox/broker.url') }}}}"
    celery_result_backend: "{{{{ lookup('file', inventory_dir ~ '/.sandbox/results.url') }}}}"
    celery_expected_tasks: [integrations.tasks.check_all_devices_in_glpi]
    celery_nodes: {nodes}
    celery_queues: {queues}
    celery_service_manager: none
    celery_restart_hint: kubectl rollout restart deployment/worker
    celery_queue_rules: [{{reason: not wanted, queue: {cleaned}, task: none.such}}]
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A healthy sandbox, whose workers are called worker_high@sandbox and so on."""
    world = make_world(tmp_path_factory.mktemp("cloud"))
    up = world.inv("sandbox", "--healthy")
    assert up.code == 0, up.err
    yield world
    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err


def inv(
    world: World,
    verb: str,
    *arguments: str,
    nodes: str = '["worker_*@%h"]',
    queues: str = "",
    cleaned: str = "low_priority",
) -> Done:
    queues = queues or "[high_priority, low_priority, daemon]"
    text = CLOUD.format(nodes=nodes, queues=queues, cleaned=cleaned)
    Path(world.path, "cloud.yaml").write_text(text)
    return world.inv(verb, *arguments, "--inventory", "cloud.yaml")


def test_such_a_fleet_is_looked_at_verified_and_monitored_through_its_broker_alone(
    cloud: World,
) -> None:
    looked = inv(cloud, "diagnose")
    assert (looked.code, "Nothing is wrong." in looked.out) == (0, True), looked.out + looked.err
    assert "cloud.yaml: checked 3 workers, 3 queues" in looked.out
    checked = inv(cloud, "verify")
    assert checked.code == 0, checked.out + checked.err
    for text in (
        "patterns of nodes are matched: 1 of 1",
        "nodes register all 1 expected task: 3 of 3",
        "queues are consumed: 3 of 3",
    ):
        assert text in checked.out, checked.out
    watched = inv(cloud, "monitor")
    assert watched.code == 0, watched.out + watched.err
    for verb, shown in {
        "queues": "low_priority",
        "workers": "worker_low@sandbox",
        "broker": "127.0.0.1:",
    }.items():
        viewed = inv(cloud, verb)
        assert (viewed.code, shown in viewed.out) == (0, True), viewed.out + viewed.err


PARKED = {
    "body": "W1tdLCB7fSwge31d",
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {"id": "1", "task": "none.such", "lang": "py", "timelimit": [None, None]},
    "properties": {
        "delivery_tag": "1",
        "delivery_info": {"exchange": "", "routing_key": "parked"},
        "body_encoding": "base64",
    },
}
"""A message that the inventory's rule does not want; no worker consumes the queue `parked`."""


def test_its_queues_are_cleaned_and_a_task_is_looked_up(cloud: World) -> None:
    with cloud.broker() as broker:
        broker.lpush("parked", json.dumps(PARKED))
        assert "none.such" in inv(cloud, "messages", "parked").out
        cleaned = inv(cloud, "clean-queues", "--queue", "parked", "--task", "none.such", "--yes")
        assert cleaned.code == 0, cleaned.out + cleaned.err
        assert broker.llen("parked") == 0, cleaned.out
        assert "none.such" in inv(cloud, "archive.show", "last").out
        undone = inv(cloud, "undo", "last", "--yes")
        assert undone.code == 0, undone.out + undone.err
        assert broker.llen("parked") == 1
        broker.delete("parked")
    status = inv(cloud, "run-task", "--status", "00000000-0000-0000-0000-000000000000")
    assert (status.code, "no trace of task" in status.err) == (5, True), status.err
    sent = inv(cloud, "run-task", "integrations.tasks.check_all_devices_in_glpi")
    assert sent.code == 5, sent.out + sent.err
    assert "no host of the inventory has the application" in sent.err


@pytest.mark.parametrize("verb", ["diagnose", "verify", "monitor"])
def test_too_few_consumers_and_a_pattern_that_no_node_fits_are_found(
    cloud: World, verb: str
) -> None:
    done = inv(
        cloud,
        verb,
        nodes='["worker_*@*", "celery@*"]',
        queues="{high_priority: {consumers: 2}, low_priority: }",
    )
    assert done.code == 1, done.out + done.err
    output = " ".join(done.out.split())
    if verb == "verify":
        assert "patterns of nodes are matched: 1 of 2; not celery@*" in output
        assert "queues are consumed: 1 of 2; not high_priority" in output
    else:
        assert "1 worker consumes high_priority, and the inventory expects 2" in output, output
        assert "no node that answers matches celery@*" in output


def test_the_page_on_kubernetes_shows_what_is_printed_of_a_pod(
    cloud: World, redis_server: RedisServer, tmp_path: Path
) -> None:
    url = redis_server.url(8)
    (tmp_path / "shop.py").write_text(
        'from celery import Celery\napp = Celery("shop")\nfor name in ("bill", "ship"):\n   '
        ' @app.task(name=f"shop.tasks.{name}")\n    def work(): ...\n'
    )
    example = (DOCS / "kubernetes.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    example = example.replace("{{ lookup('env', 'BROKER_URL') }}", url).replace(
        "/var/lib/celery-runbooks", str(tmp_path)
    )
    (cloud.path / "pods.yaml").write_text(example)
    command = celery_command("-A shop -b", url, "worker", "-n", "celery@worker-6d4b9c-x2x7p")
    pod = subprocess.Popen(
        [*command, "-Q", "high,low", "-P", "solo"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    printed = ""

    def is_seen() -> bool:
        nonlocal printed
        printed = cloud.inv("diagnose", "--inventory", "pods.yaml").out
        return "checked 1 worker" in printed

    try:
        until(is_seen, timeout_s=90)
        printed = printed.replace("pods.yaml", "inventory.yaml").replace(
            url.removeprefix("redis://"), "redis:6379/0"
        )
        require_shown("kubernetes.md", "inv diagnose", printed)
    finally:
        pod.terminate()
        pod.wait()


HINT = "to restart their workers: kubectl rollout restart deployment/worker"


def test_a_remediation_cleans_the_queues_and_leaves_restarts_to_the_platform(cloud: World) -> None:
    few = inv(cloud, "remediate", "--yes", queues="{high_priority: {consumers: 2}}")
    assert (few.code, "Nothing to change." in few.out) == (1, True), few.out + few.err
    with cloud.broker() as broker:
        broker.lpush("parked", json.dumps(PARKED))
        assert "not wanted" in inv(cloud, "diagnose", cleaned="parked").out
        done = inv(
            cloud,
            "remediate",
            "--yes",
            queues="{high_priority: {consumers: 2}, low_priority: , parked: {consumers: 0}}",
            cleaned="parked",
        )
        assert broker.llen("parked") == 0
    output = " ".join(done.out.split())
    assert done.code == 2, done.out + done.err
    assert HINT in output
    assert "restart worker" not in output
    assert "queues are consumed: 1 of 2; not high_priority" in output
    restarted = inv(cloud, "restart-workers", "--yes")
    assert (restarted.code, "Nothing to change." in restarted.out) == (0, True), restarted.out


def test_a_node_that_fits_no_pattern_is_a_stranger(cloud: World) -> None:
    done = inv(cloud, "diagnose", nodes='["worker_high@*", "worker_low@*"]')
    assert "worker_daemon@sandbox is not a worker of the inventory and consumes daemon" in " ".join(
        done.out.split()
    )


@pytest.mark.parametrize(
    ("queues", "expected"),
    [
        ("{daemon: {consumer: 2}}", "celery_queues.daemon.consumer: unknown key; did you mean 'consumers'?"),
        ("{daemon: 2}", "celery_queues.daemon: expected keys with values"),
        ("daemon", "celery_queues: expected keys with values"),
    ],
)  # fmt: skip
def test_what_is_misspelt_is_reported_with_its_place(
    cloud: World, queues: str, expected: str
) -> None:
    done = inv(cloud, "diagnose", queues=queues)
    assert (done.code, expected in done.err) == (5, True), done.err
