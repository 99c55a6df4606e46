"""A fleet of which only the broker's address is known: `--broker`, without an inventory."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from tests.brokers import Kind, fetch_and_die, servers, until, worker
from tests.sandbox.conftest import Done

CHECKOUT = Path(__file__).parents[2]
PASSWORD = "br0ker-s3cret"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with a worker of `mail`, messages in `mails`, and one of `mail` that a killed worker
    had fetched.
    """
    folder = tmp_path_factory.mktemp("broker")
    with servers(folder) as start:
        server = start("--requirepass", PASSWORD)
        kind = Kind(server.url(3))
        send(kind.url, "mail", 1)
        fetch_and_die(kind, "mail", 1)
        send(kind.url, "mails", 3)
        send(kind.url, "mails", 1, priority=5)
        with redis.Redis.from_url(kind.url) as client:
            client.rpush("notes", "no message")
            client.lpush("mails\x06\x164", client.lrange("mails", 0, 0)[0])
            ago = datetime.now(UTC) - timedelta(hours=2)
            send(kind.url, "letters", 1, retries=9, eta=ago)
            client.lpush("letters", "no message")
            client.delete("_kombu.binding.letters")
        with worker(kind, folder):
            yield kind.url


def send(url: str, queue: str, count: int, **options: Any) -> None:
    with Celery("producer", broker=url, set_as_current=False) as app:
        for n in range(count):
            app.send_task("shop.send", (n,), queue=queue, **options)


def inv(*words: str, cwd: Path, **environment: str) -> Done:
    """Run in a folder without an inventory. No output contains the password."""
    done = subprocess.run(
        [sys.executable, CHECKOUT / "tasks.py", *words, "--state-dir", cwd / "state"],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert PASSWORD not in done.stdout + done.stderr
    assert not [
        path
        for path in (cwd / "state").rglob("*")
        if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ]
    return Done(done.returncode, done.stdout, done.stderr)


def test_one_command_names_what_is_wrong_with_a_fleet_that_no_inventory_describes(
    url: str, tmp_path: Path
) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory", 2**30)
        client.config_set("maxmemory-policy", "allkeys-lru")
        done = inv("diagnose", "--broker", url, "--html", "page.html", cwd=tmp_path)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 0)
    text = " ".join(done.out.split())
    page = (tmp_path / "page.html").read_text()
    assert "4 messages wait in mails and no node consumes it; did you mean &#39;mail&#39;?" in page
    assert "w@here" in page
    assert PASSWORD not in page
    assert not re.search(r"<script|<link|<img|<iframe|src=|url\(|@import", page), "self-contained"
    assert done.code == 1, done.err
    assert "/3, no inventory: checked 1 worker, 3 queues" in text
    assert "4 messages wait in mails and no node consumes it; did you mean 'mail'?" in text
    assert "1 node answers and none lists it in active_queues; w@here: mail" in text
    assert "1 message of mail was fetched, and no node that answers holds it" in text
    assert "or runs a task in a pool that answers nothing meanwhile (solo)" in text
    assert (
        "1 message waits as priority 4 of mails, which no worker with Celery's own"
        " priority_steps polls" in text
    )
    assert "the list 'notes' (1 item) does not belong to Celery" in text
    for found in (
        "queue.malformed letters",
        "queue.retries letters",
        "queue.eta_overdue letters",
        "broker.evicts",
    ):
        assert found in text, text
    unseen = done.out.partition("Not checked")[2]
    for part, variable in {
        "hosts, their processes": "celery_directory",
        "tasks, routes, schedule": "celery_app",
        "workers and queues should": "celery_workers or celery_nodes",
        "results": "celery_result_backend",
    }.items():
        assert re.search(f"{part}.*: .*{variable}", unseen), unseen
    assert "the inventory expects" not in text


def test_the_url_comes_from_a_variable_and_each_view_takes_it(url: str, tmp_path: Path) -> None:
    by = ("--broker", "env:SHOPS_BROKER")
    for words, shown in {
        ("queues",): "mails",
        ("messages", "mails"): "shop.send",
        ("workers",): "w@here",
        ("broker",): "uptime",
        ("tasks",): "tiny.known",
    }.items():
        done = inv(*words, *by, cwd=tmp_path, SHOPS_BROKER=url)
        assert (done.code, shown in done.out) == (0, True), done.out + done.err
    assert (
        "routes, limits and retries: unknown without an inventory"
        in inv("tasks", *by, cwd=tmp_path, SHOPS_BROKER=url).out
    )
    nowhere = inv("task", "no-such-id", *by, cwd=tmp_path, SHOPS_BROKER=url)
    assert (nowhere.code, "in no queue and on no node" in nowhere.out) == (1, True), (
        nowhere.out + nowhere.err
    )
    assert "what became of it: the result backend is unknown without an inventory" in nowhere.out
    watched = inv("monitor", *by, cwd=tmp_path, SHOPS_BROKER=url)
    assert (watched.code, "CROSSED queue.no_consumer mails" in watched.out) == (1, True), (
        watched.out + watched.err
    )
    refused = inv("monitor", *by, cwd=tmp_path, SHOPS_BROKER=url.replace(PASSWORD, "wrong"))
    assert (refused.code, " CROSSED broker." in refused.out) == (1, True), refused.out
    unset = inv("diagnose", *by, cwd=tmp_path)
    assert (unset.code, "the environment variable SHOPS_BROKER is not set" in unset.err) == (
        5,
        True,
    )


def test_the_live_page_works_with_the_broker_alone(url: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(CHECKOUT / "tasks.py"),
        "monitor",
        "--listen",
        "0",
        "--state-dir",
        str(tmp_path),
    ]
    environment = os.environ | {"SHOPS_BROKER": url}
    process = subprocess.Popen(
        [*command, "--broker", "env:SHOPS_BROKER"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        at = r"a look every 1 min; a page for browsers at (\S+)"
        found = next(filter(None, (re.search(at, line) for line in process.stdout)))
        assert any(" CROSSED queue.no_consumer mails " in line for line in process.stdout)
        until(lambda: "mails" in read(found[1]))
        page = read(found[1])
        for text in (
            "w@here",
            "the monitor checks beat on its hosts",
            "No worker that answers consumes the queue",
            "queue.no_consumer",
        ):
            assert text in page
        assert PASSWORD not in page
    finally:
        process.kill()
        process.communicate()


def read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: bytes = answer.read()
    return text.decode()


def test_a_db_that_celery_does_not_use_is_not_called_well(url: str, tmp_path: Path) -> None:
    done = inv("diagnose", "--broker", url.removesuffix("3") + "5", "--json", cwd=tmp_path)
    document = json.loads(done.out)
    assert done.code == 1
    assert [(one["code"], one["evidence"][-1]) for one in document["findings"]] == [
        ("worker.none_fits", "queues in this db: none")
    ]
    assert "db 3, which Celery also uses: --broker with /3 at its end" in document["messages"][0]


def test_where_queues_may_not_be_looked_for_none_is_said_to_be_missing(
    url: str, tmp_path: Path
) -> None:
    with redis.Redis.from_url(url) as client:
        client.acl_setuser(
            "limited", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"],
            categories=["+@all"], commands=["-scan"],
        )  # fmt: skip
    done = inv("diagnose", "--broker", url.replace("redis://", "redis://limited"), cwd=tmp_path)
    assert (done.code, "'scan'" in done.err, done.out) == (5, True, ""), done.out + done.err


def test_queues_under_a_key_prefix_are_found_and_others_named(url: str, tmp_path: Path) -> None:
    for prefix in ("blue:", "red:"):
        with Celery("producer", broker=url[:-1] + "6", set_as_current=False) as app:
            app.conf.broker_transport_options = {"global_keyprefix": prefix}
            app.send_task("shop.send", queue=f"{prefix[:-1]}-mail")
    done = inv("diagnose", "--broker", url[:-1] + "6", cwd=tmp_path)
    assert "1 message waits in blue-mail and no node consumes it" in done.out
    assert (
        "queues under the key prefix 'red:': celery_broker_options: {global_keyprefix: 'red:'}"
        in done.out
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://127.0.0.1:1/0", "the broker at 127.0.0.1:1 does not answer"),
        (f"amqp://shop:{PASSWORD}@127.0.0.1/0", "is not a Redis URL"),
        (
            f"sentinel://:{PASSWORD}@127.0.0.1:1/0",
            "a Sentinel URL also needs the name of the master",
        ),
        ("", "is not a URL"),
    ],
)
def test_what_is_not_a_broker_is_reported(given: str, expected: str, tmp_path: Path) -> None:
    done = inv("diagnose", "--broker", given, cwd=tmp_path)
    assert (done.code, expected in " ".join((done.out + done.err).split())) == (
        4 if "answer" in expected else 5,
        True,
    ), done.err


def test_of_two_applications_in_one_inventory_each_is_diagnosed_in_turn(
    url: str, tmp_path: Path
) -> None:
    nodes = {"one": (url, "w@here", "mail"), "two": (url[:-1] + "7", "x@there", "post")}
    lines = (
        f'    {app}: {{celery_app: {app}, celery_broker_url: "{broker}", '
        f'celery_nodes: ["{node}"], celery_queues: [{queue}]}}'
        for app, (broker, node, queue) in nodes.items()
    )
    (tmp_path / "inventory.yaml").write_text("\n".join(["all:", "  hosts:", *lines]))
    done = inv("diagnose", cwd=tmp_path)
    first, _, second = done.out.partition("two at ")
    assert (done.code, first.startswith("one at "), "x@there" in first) == (1, True, False), (
        done.out + done.err
    )
    assert "x@there" in second
    documents = [
        json.loads(line) for line in inv("diagnose", "--json", cwd=tmp_path).out.splitlines()
    ]
    assert [(one["application"], one["exit_code"]) for one in documents] == [("one", 1), ("two", 1)]
    chosen = inv("diagnose", "--app", "two", cwd=tmp_path)
    assert (chosen.code, "one at " in chosen.out, "x@there" in chosen.out) == (1, False, True), (
        chosen.out + chosen.err
    )
    undecided = inv("diagnose", "--html", "page.html", cwd=tmp_path)
    assert (undecided.code, "choose one with -A one" in undecided.err) == (5, True), (
        undecided.out + undecided.err
    )


def test_what_a_host_lacks_is_asked_for_only_where_it_is_needed(url: str, tmp_path: Path) -> None:
    (tmp_path / "inventory.yaml").write_text(
        f'all: {{hosts: {{here: {{celery_app: shop, celery_broker_url: "{url}", '
        "celery_workers: [{name: w, queues: [mail]}, {name: lost, queues: [mail]}]}}}"
    )
    looked = inv("diagnose", cwd=tmp_path)
    assert (
        "not checked: services, files and application of here, because celery_directory, "
        in looked.err
    )
    assert "docs/inventory.md#a-host has an example of each" in looked.err
    assert "no node that answers matches lost@here" in looked.out
    assert "fits w@here" not in looked.out
    shown = inv("queues", cwd=tmp_path)
    assert (shown.code, "not checked" in shown.err) == (0, False), shown.err
    planned = inv("remediate", "--dry-run", cwd=tmp_path)
    assert (planned.code, "host 'here' lacks the variable 'celery_directory'" in planned.err) == (
        5,
        True,
    ), planned.err


def test_a_broker_and_an_inventory_exclude_each_other(tmp_path: Path) -> None:
    done = inv(
        "diagnose", "--broker", "redis://127.0.0.1:1/0", "--inventory", "x.yaml", cwd=tmp_path
    )
    assert (done.code, "--broker replaces the inventory" in done.err) == (5, True)


def test_the_inventory_of_a_broker_alone_has_no_finding_where_all_is_well(
    url: str, tmp_path: Path
) -> None:
    """The last of this file: what is wrong there is taken away."""
    with redis.Redis.from_url(url) as client:
        keys = [
            key
            for key in client.scan_iter()
            if key.startswith((b"mails", b"letters", b"unacked", b"_kombu.binding.mails"))
        ]
        client.delete("notes", *keys)
    adopted = inv("adopt", "--broker", "env:CELERY_BROKER_URL", cwd=tmp_path, CELERY_BROKER_URL=url)
    assert (adopted.code, "Nothing is wrong." in adopted.err) == (0, True), (
        adopted.out + adopted.err
    )
    assert "celery_nodes: [w@here]  # " in adopted.out
    assert "celery_queues: [mail]  # " in adopted.out
    (tmp_path / "inventory.yaml").write_text(adopted.out)
    looked = inv("diagnose", "--json", cwd=tmp_path, CELERY_BROKER_URL=url)
    assert (looked.code, looked.json["findings"]) == (0, []), looked.out + looked.err
    planned = inv("remediate", "--dry-run", cwd=tmp_path, CELERY_BROKER_URL=url)
    assert (planned.code, "Nothing to change." in planned.out) == (0, True), (
        planned.out + planned.err
    )
    secret = tmp_path / "broker.secret"
    kept = ("adopt", "--broker", "env:CELERY_BROKER_URL", "--secrets-file", secret.name)
    adopted = inv(*kept, cwd=tmp_path, CELERY_BROKER_URL=url)
    assert (adopted.code, secret.stat().st_mode & 0o777) == (0, 0o600), adopted.out + adopted.err
    assert secret.read_text().strip() == url
    (tmp_path / "inventory.yaml").write_text(adopted.out)
    looked = inv("diagnose", "--json", cwd=tmp_path)
    assert (looked.code, looked.json["findings"]) == (0, []), looked.out + looked.err
    again = inv(*kept, cwd=tmp_path, CELERY_BROKER_URL=url)
    assert (again.code, secret.name in again.err) == (5, True), again.out + again.err
