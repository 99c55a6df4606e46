"""What the application says, held against the inventory, between hosts, and against what nodes
know.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from pydantic import SecretStr

from runbooks.core.application import Application, Place, RegisteredTask, Route, Variable
from runbooks.core.fleet import Fleet
from runbooks.core.model import (
    Block,
    BrokerState,
    FileState,
    Finding,
    ImportProbe,
    NodeState,
    Severity,
    Snapshot,
)
from runbooks.core.settings import Worker
from runbooks.diagnosis.judge import judge
from tests.unit.fleets import (
    ENV_FILE,
    NOW,
    TASKS,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
    nothing_wanted,
)

OURS = Place("redis", "127.0.0.1", 1, "0")
HOSTS = (make_host("web1"), make_host("web2", beat=False))
FLEET = make_fleet(*HOSTS, queue_rules=())
SILENT = make_broker(FLEET, nodes={})


def says(*tasks: str, queue: str = "high_q", **changes: Any) -> Application:
    own = tuple(RegisteredTask(name, Route(queue)) for name in tasks or TASKS)
    return replace(
        Application(broker=(OURS,), publishes_to=(OURS,), backend=(Place("disabled"),), tasks=own),
        **changes,
    )


def look(
    *said: Application | None,
    fleet: Fleet = FLEET,
    broker: BrokerState | None = None,
    env: str = "",
    **changes: Any,
) -> Snapshot:
    states = {}
    for host, one in zip(fleet.hosts, said, strict=True):
        content = "".join(f"{name}={value}\n" for name, value in host.settings.env.items()) + env
        files = {ENV_FILE: FileState(content.encode(), 0o640, NOW - 1000)}
        states[host.name] = make_state(host, application=one, files=files, **changes)
    return make_snapshot(fleet, broker=broker, hosts=states)


def found(snapshot: Snapshot, fleet: Fleet = FLEET) -> Sequence[Finding]:
    wanted = {kind: nothing_wanted(fleet) for kind in ("unit", "cron", "logrotate")}
    return judge(fleet, snapshot, wanted)  # type: ignore[arg-type]


def only(findings: Sequence[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_hosts_that_say_the_same_as_the_inventory_are_well() -> None:
    assert found(look(says(), says())) == ()


# --- the broker


def test_silent_workers_whose_application_uses_another_broker_are_one_finding_with_both_sides() -> (
    None
):
    read = (
        Variable("REDIS_DB", "/srv/shop/settings.py:12"),
        Variable("REDIS_HOST", "/srv/shop/settings.py:11"),
    )
    said = says(
        broker=(Place("redis", "127.0.0.1", 1, "5"),),
        variables=(*read, Variable("TIMEOUT", "/srv/shop/x.py:1")),
    )
    finding = only(
        found(look(said, said, broker=SILENT, env="REDIS_DB=5\nCACHE_URL=redis://127.0.0.1:1/0\n"))
    )
    assert (finding.code, finding.subject) == ("broker.not_the_workers", "web1, web2")
    assert (
        "do not answer at 127.0.0.1:1/0, the broker that the inventory names; their application uses"
        " 127.0.0.1:1/5: correct one of the two" in (finding.summary)
    )
    assert finding.evidence == (
        f"{ENV_FILE}: REDIS_DB is '5', read at /srv/shop/settings.py:12",
        f"{ENV_FILE}: REDIS_HOST is not set, read at /srv/shop/settings.py:11",
        "celery_broker_url of the inventory: 127.0.0.1:1/0",
    )
    assert finding.blocks == (Block("web1"), Block("web2"))


def test_where_no_variable_names_it_the_settings_are_named() -> None:
    said = says(broker=(Place("redis", "elsewhere", None, ""),))
    finding = only(found(look(said, said, broker=SILENT)))
    assert "their application uses elsewhere:6379/0" in finding.summary
    assert "look for it in the application's settings" in finding.evidence[0]


def test_a_url_that_names_it_is_reported_without_its_password() -> None:
    said = says(
        broker=(Place("redis", "r2", 1, "5"),),
        variables=(Variable("BROKER", "/srv/shop/settings.py:3"),),
    )
    finding = only(found(look(said, said, broker=SILENT, env="BROKER=redis://:s3cret@r2:1/5\n")))
    assert (
        finding.evidence[0] == f"{ENV_FILE}: BROKER is at r2:1/5, read at /srv/shop/settings.py:3"
    )


@pytest.mark.parametrize(
    ("theirs", "code"),
    [
        (
            Place("redis", "redis.internal", 6380, "0"),
            "",
        ),  # another name of the server that they answer at
        (Place("redis", "127.0.0.1", 1, "5"), "broker.would_be_another"),
        (Place("amqp", "localhost"), "broker.would_be_another"),
        (Place("rediss", "localhost", 1, ""), ""),
    ],
)
def test_of_workers_that_answer_another_name_of_the_server_proves_nothing_and_another_db_does(
    theirs: Place, code: str
) -> None:
    said = says(broker=(theirs,))
    findings = found(look(said, said))
    assert [finding.code for finding in findings] == [code] * bool(code)
    assert all(finding.blocks for finding in findings)


def test_a_name_that_leads_to_the_same_server_from_there_is_the_same_broker() -> None:
    there = Place("redis", "redis.internal", 6380, "0")
    tried = ImportProbe(
        frozenset(TASKS), {}, broker_run_id="abc", application=says(broker=(there,))
    )
    snapshot = look(says(broker=(there,)), says(), broker=replace(SILENT, run_id="abc"),
                    imports_now=tried, imports_wanted=tried)  # fmt: skip
    codes = {finding.code for finding in found(snapshot)}
    assert "broker.not_the_workers" not in codes
    assert "worker.not_answering" in codes


def test_nothing_is_started_that_would_use_another_broker() -> None:
    said = says(broker=(Place("redis", "127.0.0.1", 1, "5"),))
    down = {
        name: replace(state, pid=None, started_at=None)
        for name, state in make_state(HOSTS[0]).services.items()
    }
    fleet = make_fleet(HOSTS[0], queue_rules=())
    findings = found(
        look(said, fleet=fleet, broker=make_broker(fleet, nodes={}), services=down), fleet
    )
    (finding,) = [one for one in findings if one.code == "broker.would_be_another"]
    assert finding.blocks == (Block("web1"),)


def test_where_the_inventorys_environment_leads_to_its_broker_that_is_the_remedy_and_nothing_is_blocked() -> (
    None
):
    fleet = make_fleet(HOSTS[0], queue_rules=())
    now = ImportProbe(
        frozenset(TASKS), {}, application=says(broker=(Place("redis", "127.0.0.1", 1, "5"),))
    )
    wanted = replace(now, application=says())
    snapshot = look(now.application, fleet=fleet, broker=make_broker(fleet, nodes={}), imports_now=now,
                    imports_wanted=wanted)  # fmt: skip
    files = {ENV_FILE: FileState(b"TIMEOUT=1\n", 0o640, NOW - 1000)}
    host = replace(snapshot.reachable()["web1"], files=files)
    findings = found(replace(snapshot, hosts={"web1": host}), fleet)
    (finding,) = [one for one in findings if one.code == "broker.not_the_workers"]
    answering = found(replace(snapshot, hosts={"web1": host}, broker=make_broker(fleet)), fleet)
    (later,) = [one for one in answering if one.code == "broker.would_be_another"]
    for one in (finding, later):
        assert not one.blocks
        assert one.fix
        assert "with the inventory's celery_env it uses that" in one.summary


@pytest.mark.parametrize(
    ("env", "reported"),
    [
        ("CELERY_BROKER_URL=redis://127.0.0.1:1/5\nCACHE_URL=redis://127.0.0.1:1/0\n", True),
        ("CELERY_BROKER_URL=redis://127.0.0.1:1/0\nCACHE_URL=redis://127.0.0.1:1/5\n", False),
        ("SOME_URL=redis://127.0.0.1:1/5\n", True),
    ],
)
def test_where_it_cannot_be_loaded_a_url_of_a_cache_hides_no_wrong_broker(
    env: str, reported: bool
) -> None:
    codes = [finding.code for finding in found(look(None, None, broker=SILENT, env=env))]
    assert ("broker.not_the_workers" in codes) is reported


# --- results


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (Place("redis", "127.0.0.1", 1, "2"), ""),
        (Place("redis", "127.0.0.1", 1, "3"), "keeps them at 127.0.0.1:1/3"),
        (Place("redis", "r2", 1, "2"), "keeps them at r2:1/2"),
        (Place("django-db"), "keeps them at django-db"),
        (Place("disabled"), "keeps none"),
    ],
)
def test_results_that_are_kept_elsewhere_are_reported_with_both_places(
    theirs: Place, expected: str
) -> None:
    fleet = make_fleet(
        *HOSTS, queue_rules=(), result_backend=SecretStr("redis://:hunter2@127.0.0.1:1/2")
    )
    said = says(backend=(theirs,))
    findings = found(look(said, said, fleet=fleet), fleet)
    assert [finding.code for finding in findings] == ["results.elsewhere"] * bool(expected)
    assert all(
        expected in finding.summary and "hunter2" not in repr(finding) for finding in findings
    )
    advice = "correct celery_result_backend, or the application's result_backend"
    assert all(finding.summary.endswith(advice) for finding in findings)


@pytest.mark.parametrize(
    ("named", "theirs", "reported"),
    [
        ("django-db", Place("django-db"), False),
        (
            "db+postgresql://shop:hunter2@db1/shop",
            Place("db+postgresql", "10.0.0.7", 5432, "shop"),
            False,
        ),
        (
            "db+postgresql://shop:hunter2@db1/shop",
            Place("db+postgresql", "db1", None, "mail"),
            True,
        ),
        ("django-db", Place("django-cache"), True),
    ],
)
def test_results_in_a_database_are_reported_only_if_the_inventory_names_another(
    named: str, theirs: Place, reported: bool
) -> None:
    fleet = make_fleet(*HOSTS, queue_rules=(), result_backend=SecretStr(named))
    said = says(backend=(theirs,))
    findings = found(look(said, said, fleet=fleet), fleet)
    assert [finding.code for finding in findings] == ["results.elsewhere"] * reported


# --- between hosts


def test_what_hosts_say_otherwise_is_one_finding_of_each_kind_that_names_who_says_what() -> None:
    one = says(
        "a",
        "b",
        queue="x",
        versions={"celery": "5.4.0", "python": "3.11.2"},
        backend=(Place("redis", "r", 1, "2"),),
    )
    other = says("a", "c", queue="y", versions={"celery": "5.7.0", "python": "3.11.9"})
    findings = {finding.code: finding for finding in found(look(one, other))}
    assert set(findings) == {
        f"application.{which}_differ" for which in ("tasks", "routes", "versions", "results")
    }
    assert findings["application.tasks_differ"].evidence == (
        "b: registered on web1; missing on web2",
        "c: missing on web1; registered on web2",
    )
    assert findings["application.routes_differ"].evidence == ("a: to x on web1; to y on web2",)
    assert findings["application.versions_differ"].evidence == (
        "celery: 5.4.0 on web1; 5.7.0 on web2",
    )
    assert findings["application.results_differ"].evidence == (
        "result_backend: r:1/2 on web1; disabled on web2",
    )
    assert {finding.severity for finding in findings.values()} == {Severity.WARNING}
    assert all(
        finding.summary.endswith("deploy the same code and settings to all of them")
        for finding in findings.values()
    )


def test_hosts_are_compared_where_it_was_loaded_and_not_by_celerys_tasks_or_pythons_last_number() -> (
    None
):
    one = says(versions={"python": "3.11.2"})
    celerys = RegisteredTask("celery.chord", Route("high_q"))
    other = replace(one, tasks=(*one.tasks, celerys), versions={"python": "3.11.9"})
    assert found(look(one, other)) == ()
    newer = replace(one, versions={"python": "3.12.1"})
    assert only(found(look(one, newer))).evidence == ("python: 3.11 on web1; 3.12 on web2",)
    assert found(look(one, None)) == ()


def test_routes_that_both_depend_on_arguments_count_as_equal() -> None:
    there, elsewhere = (
        says(tasks=(RegisteredTask("a", Route(queue, looks_at_arguments=True)),))
        for queue in ("x", "y")
    )
    assert found(look(there, elsewhere)) == ()


def test_results_of_one_host_alone_that_are_kept_elsewhere_follow_from_the_difference() -> None:
    fleet = make_fleet(*HOSTS, queue_rules=(), result_backend=SecretStr("redis://127.0.0.1:1/2"))
    ours, theirs = (says(backend=(Place("redis", "127.0.0.1", 1, db),)) for db in ("2", "8"))
    cause, effect = found(look(ours, theirs, fleet=fleet), fleet)
    assert (cause.code, effect.code, effect.subject) == (
        "application.results_differ",
        "results.elsewhere",
        "web2",
    )
    assert [one.code for one in effect.caused_by] == ["application.results_differ"]


def test_another_prefix_on_several_hosts_is_one_fault() -> None:
    said = says(transport_options={"global_keyprefix": "shop:"})
    finding = only(found(look(said, said, broker=SILENT)))
    assert (finding.code, finding.subject) == ("broker.options_differ", "web1, web2")
    assert finding.blocks == (Block("web1"), Block("web2"))


# --- what nodes have to know

UNTYPED = make_fleet(*HOSTS, queue_rules=(), expected_tasks=())


def nodes(**registered: Sequence[str]) -> BrokerState:
    known = {f"high@{name}": frozenset(tasks) for name, tasks in registered.items()}
    return make_broker(
        UNTYPED, nodes={n: NodeState(n, own, frozenset({"high_q"})) for n, own in known.items()}
    )


def test_a_worker_has_to_know_what_is_routed_to_its_queues_and_is_restarted_where_its_host_has_it() -> (
    None
):
    broker = nodes(web1=["a", "b"], web2=["a"])
    finding = only(
        found(look(says("a", "b"), says("a", "b"), fleet=UNTYPED, broker=broker), UNTYPED)
    )
    assert (finding.code, finding.subject) == ("task.not_registered", "high@web2")
    assert [(change.host, change.summary) for change in finding.fix] == [("web2", "restart high")]


def test_a_restart_is_not_a_remedy_where_the_host_has_other_code() -> None:
    broker = nodes(web1=["a", "b"], web2=["a"])
    findings = found(look(says("a", "b"), says("a"), fleet=UNTYPED, broker=broker), UNTYPED)
    assert [finding.code for finding in findings] == [
        "application.tasks_differ",
        "task.not_registered",
    ]
    assert [cause.code for cause in findings[1].caused_by] == ["application.tasks_differ"]
    assert not any(finding.fix for finding in findings)


@pytest.mark.parametrize(
    "route", [Route("low_q"), Route(looks_at_arguments=True), Route(error="QueueNotFound: x")]
)
def test_what_may_not_come_to_a_worker_is_not_expected_of_it(route: Route) -> None:
    other = says("a", tasks=(RegisteredTask("a", Route("high_q")), RegisteredTask("b", route)))
    findings = found(
        look(other, other, fleet=UNTYPED, broker=nodes(web1=["a"], web2=["a"])), UNTYPED
    )
    assert {finding.code for finding in findings} <= {"route.no_consumer"}


def test_a_queue_that_a_node_consumes_besides_counts_too() -> None:
    low = make_host("web1", workers=(Worker(name="high", queues=("high_q",)),))
    fleet = make_fleet(low, queue_rules=(), expected_tasks=())
    node = NodeState("high@web1", frozenset(), frozenset({"high_q", "low_q"}))
    broker = make_broker(fleet, nodes={node.name: node})
    finding = only(found(look(says("a", queue="low_q"), fleet=fleet, broker=broker), fleet))
    assert finding.code == "task.not_registered"
