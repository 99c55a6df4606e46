"""The first line of every output says which application, inventory and broker it is about, and how
much was seen.
"""

import re
from collections.abc import Sequence

import pytest

from tests.brokers import until
from tests.sandbox.conftest import World

LOOKED = "checked 1 host, 3 workers, 3 queues"


def where(world: World) -> str:
    with world.broker() as client:
        options = client.connection_pool.connection_kwargs
    return (
        f"printer_inventory at {options['host']}:{options['port']}/{options['db']}, inventory.yaml"
    )


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["diagnose"], LOOKED),
        pytest.param(["verify"], LOOKED, marks=pytest.mark.thorough),
        (["remediate", "--dry-run"], LOOKED),
        pytest.param(["restart-workers", "--dry-run"], LOOKED, marks=pytest.mark.thorough),
        (["install-units", "--dry-run"], "checked 1 host, 3 workers"),
        (["install-cron", "--dry-run"], "checked 1 host"),
        (["clean-queues", "--dry-run"], "checked 3 queues"),
        (["clean-queues", "--dry-run", "--queue", "low_priority"], "checked 1 queue"),
    ],
)
def test_a_verb_that_looks_says_at_what(words: Sequence[str], seen: str, healthy: World) -> None:
    assert healthy.inv(*words).out.splitlines()[0].startswith(f"{where(healthy)}: {seen}")
    about = healthy.inv(*words, "--json").json["about"]
    assert about["inventory"] == str(healthy.path / "inventory.yaml")
    assert about["application"] == "printer_inventory"


@pytest.mark.parametrize("words", [["hosts"], ["render"], ["tail-logs"], ["monitor", "--history"]])
def test_a_verb_that_only_shows_says_what_applies(words: Sequence[str], healthy: World) -> None:
    assert healthy.inv(*words).out.splitlines()[0] == "printer_inventory, inventory.yaml"


@pytest.mark.parametrize("words", [["runs"], ["archive.list"]])
def test_what_was_recorded_says_where(words: Sequence[str], healthy: World) -> None:
    done = healthy.inv(*words, "--state-dir", str(healthy.path / "none"))
    assert done.out.splitlines()[0] == f"records in {healthy.path / 'none'}"


def test_the_monitor_says_it_in_its_own_form(healthy: World) -> None:
    first, *others = healthy.inv("monitor").out.splitlines()
    broker, inventory = where(healthy).removeprefix("printer_inventory at ").split(", ")
    assert (
        first.partition(" printer_inventory ")[2]
        == f"LOOK broker={broker} inventory={healthy.path / inventory} hosts=1/1 workers=3/3"
        " queues=3/3"
    )
    assert not any(" LOOK " in line for line in others)


def test_a_host_that_does_not_answer_and_its_silent_workers_are_not_said_to_have_been_looked_at(
    healthy: World,
) -> None:
    local = "\n          ansible_connection: local"
    gone = (
        "{ansible_port: 9, ansible_host: 127.0.0.1, celery_workers: [{name: low, queues:"
        " [low_priority]}]}"
    )
    name = healthy.inventory((local, f"{local}\n        gone: {gone}"))
    done = healthy.inv("diagnose", "--inventory", name)
    looked, _, _ = done.out.splitlines()[0].partition("; application as loaded at ")
    assert looked.endswith(", changed.yaml: checked 1 of 2 hosts, 3 of 4 workers, 3 queues")
    assert done.code == 4


def test_what_an_application_said_earlier_is_said_to_be_of_then(healthy: World) -> None:
    until(lambda: "; application as loaded at " in healthy.inv("diagnose").out.splitlines()[0])
    assert "application as loaded" not in healthy.inv("diagnose", "--fresh").out.splitlines()[0]
    assert "application as loaded" not in healthy.inv("remediate", "--dry-run").out.splitlines()[0]


def test_a_broker_that_does_not_answer_is_named_and_none_of_its_queues_was_looked_at(
    healthy: World,
) -> None:
    with healthy.broker() as client:
        port = client.connection_pool.connection_kwargs["port"]
    url = (healthy.root / "broker.url").read_text()
    (healthy.root / "broker.url").write_text(url.replace(f":{port}/", ":1/"))
    try:
        done = healthy.inv("diagnose")
    finally:
        (healthy.root / "broker.url").write_text(url)
    first, *_ = done.out.splitlines()
    assert (
        first
        == "printer_inventory at 127.0.0.1:1/3, inventory.yaml: checked 1 host, 3 workers, 0 of 3"
        " queues"
    )
    assert done.code == 4


def test_nothing_is_said_to_be_well_or_checked_where_the_inventory_has_no_workers(
    healthy: World,
) -> None:
    (healthy.path / "bare.yaml").write_text(
        "all:\n  vars: {celery_app: bare, celery_directory: /, celery_user: daemon,"
        " celery_python: /usr/bin/python3,\n    celery_env_file: /etc/bare.env,"
        " celery_service_manager: commands,\n    celery_commands: {start: 'true', stop: 'true',"
        " status: 'true'},\n    celery_broker_url:"
        f" '{(healthy.root / 'broker.url').read_text().strip()}'}}\n  hosts: {{here:"
        " {ansible_connection: local}}\n"
    )
    for verb in ("diagnose", "verify", "monitor"):
        done = healthy.inv(verb, "--inventory", "bare.yaml")
        assert done.code == 1, done.err
        assert "inventory.no_workers" in done.out
        assert "Nothing is wrong" not in done.out
        assert not re.search(r"\b0 of 0\b|all 0 ", done.out)
