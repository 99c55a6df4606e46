"""The inventory that is made of what was seen: its text comes to the fleet that it describes."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from runbooks.core.application import Application, DeclaredQueue
from runbooks.core.census import Ancestor, CeleryProcess, Census, Kind, Options
from runbooks.core.errors import RunbookError
from runbooks.core.survey import AppReport, HostSurvey, SeenProcess, SeenService
from runbooks.inventory.build import limited_fleet
from runbooks.inventory.draft import Draft, Value, fleet_of, host_draft, text_of
from runbooks.inventory.read import load_inventory

URL = "redis://localhost/3"
DIRECTORY, PYTHON, USER = (Value(*one, "seen") for one in
                           (("directory", "/srv/a b"), ("python", "/srv/v/bin/python"), ("user", "app")))  # fmt: skip


def process(pid: int, kind: Kind = Kind.MAIN, **options: object) -> CeleryProcess:
    role = "beat" if kind is Kind.BEAT else "worker"
    typed = Options(role, app="shop", **options)  # type: ignore[arg-type]
    return CeleryProcess(pid, pid, 0.0, "S", kind, typed, 1, user="app")


def surveyed(
    *mains: CeleryProcess, manager: str = "none", services: tuple[SeenService, ...] = ()
) -> HostSurvey:
    children = (
        tuple(replace(process(1000 + n, Kind.CHILD), parent=mains[0].pid) for n in range(3))
        if mains
        else ()
    )
    details = {
        one.pid: SeenProcess("/srv/a b", "/srv/v/bin/python", (f"/var/log/{one.pid}",))
        for one in mains
    }
    census = Census((*mains, *children))
    return HostSurvey(
        "web1",
        {"ansible_connection": "local"},
        "web1",
        census,
        "root",
        manager,
        mains,
        details=details,
        services=services,
    )


def drafted(survey: HostSurvey, report: AppReport | None = None) -> Draft:
    return Draft((Value("app", "shop", "-A"), Value("broker_url", URL, "")),
                 (host_draft(survey, DIRECTORY, PYTHON, USER, report),))  # fmt: skip


def read_back(draft: Draft, folder: Path) -> None:
    """The text is an inventory of the same fleet, whatever is in its values."""
    path = folder / "inventory.yaml"
    path.write_text(text_of(draft, ("What was seen",)))
    written, meant = limited_fleet(load_inventory(path), None), fleet_of(draft, URL, "", None)
    assert written.app == meant.app
    assert [(host.name, host.settings) for host in written.hosts] == [
        (host.name, host.settings) for host in meant.hosts
    ]


def test_workers_that_were_started_manually_have_what_their_commands_and_pools_say(
    tmp_path: Path,
) -> None:
    report = AppReport(Application(queues=(DeclaredQueue("mail"), DeclaredQueue("{{ odd }}: #1"))))
    draft = drafted(
        surveyed(
            process(7),
            process(8, node="low@%h", queues=("low",), pool="solo"),
            process(9, Kind.BEAT),
        ),
        report,
    )
    assert [one.value for one in draft.hosts[0].workers] == [
        {"name": "celery", "queues": ["mail", "{{ odd }}: #1"], "concurrency": 3},
        {"name": "low", "queues": ["low"], "concurrency": 1, "options": ["--pool=solo"]},
    ]
    values = {one.name: one.value for one in draft.hosts[0].values}
    assert (values["beat"], values["beat_schedule"]) == (True, "/srv/a b/celerybeat-schedule")
    assert (values["service_manager"], values["logrotate"]) == ("none", False)
    read_back(draft, tmp_path)


def test_two_nodes_of_one_unit_and_a_unit_that_does_not_run(tmp_path: Path) -> None:
    unit = SeenService(
        "celery.service", "/etc/systemd/system/celery.service", env_files=("/etc/default/celery",)
    )
    down = SeenService(
        "mail.service", "its file", Options("worker", node="mail@%h", queues=("mail",))
    )
    off = replace(down, name="old.service", wanted=False)
    two = (
        replace(process(pid, node=f"w{pid}@web9", queues=("q",)), unit=unit.name) for pid in (1, 2)
    )
    draft = drafted(surveyed(*two, manager="systemd", services=(unit, down, off)))
    assert [one.value for one in draft.hosts[0].workers] == [
        {
            "name": "w1",
            "node": "w1@web9",
            "unit": "celery.service",
            "queues": ["q"],
            "concurrency": 3,
        },
        {
            "name": "w2",
            "node": "w2@web9",
            "unit": "celery.service",
            "queues": ["q"],
            "concurrency": 1,
        },
        {"name": "mail", "unit": "mail.service", "queues": ["mail"], "concurrency": 1},
    ]
    read_back(draft, tmp_path)


def test_a_program_below_a_shell_and_workers_of_one_name(tmp_path: Path) -> None:
    programs = (
        SeenService("a", "a.conf", pids=(40,)),
        SeenService("shop:b", "b.conf", pids=(50,)),
        SeenService("beat", "beat.conf", Options("beat"), pids=()),
    )
    mains = (
        replace(process(41, queues=("q",)), parent=40, above=(Ancestor(40, "sh"),)),
        process(50, node="celery@x", queues=("q",)),
    )
    draft = drafted(surveyed(*mains, manager="supervisor", services=programs))
    assert [
        (one.value["name"], one.value["service"], one.value.get("node"))
        for one in draft.hosts[0].workers
    ] == [
        ("celery", "a", None),
        ("celery-2", "shop:b", "celery@x"),
    ]
    assert {one.name: one.value for one in draft.hosts[0].values}["beat_service"] == "beat:beat"
    read_back(draft, tmp_path)


def test_of_another_manager_the_processes_are_named_in_comments() -> None:
    other = process(9, node="w9@web1", queues=("q",))
    draft = drafted(replace(surveyed(process(7, queues=("q",))), others=(other,)))
    assert (
        "      # Not found: pid 9 (worker w9@web1) has another service manager than the others, and a"
        " host can have only one\n" in text_of(draft, ())
    )


def test_what_cannot_stand_in_an_inventory_is_reported_by_its_variable() -> None:
    with pytest.raises(
        RunbookError,
        match=r"cannot create an inventory from what was found: celery_workers\.0\.node: ",
    ):
        fleet_of(drafted(surveyed(process(1, node="a b@c d", queues=("q",)))), URL, "", None)
