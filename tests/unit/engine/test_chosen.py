"""What of a fleet, and of its findings, belongs to the workers that a command line names."""

import pytest

from runbooks.core.effects import Change, ControlService
from runbooks.core.errors import UsageError
from runbooks.core.model import Block, Finding
from runbooks.core.settings import Worker
from runbooks.engine.chosen import chosen, of_these, part
from tests.unit.fleets import make_fleet, make_host, make_snapshot

WORKERS = (
    Worker(name="high", queues=("high_q", "shared_q")),
    Worker(name="low", queues=("low_q", "shared_q")),
)
FLEET = make_fleet(make_host(workers=WORKERS), make_host("web2", workers=WORKERS, beat=False))


def left(pattern: str, *findings: Finding) -> list[str]:
    return [one.subject for one in of_these(FLEET, findings, chosen(FLEET, pattern))]


def test_only_what_is_about_others_alone_is_left_out() -> None:
    subjects = ("high on web1", "low on web1", "high@web2", "low_q", "high_q", "shared_q", "web1", "web2", "broker",
                "process 7 on web1", "process 7 on web2", "beat on web1", "nightly")  # fmt: skip
    assert left("high@web1", *(Finding("x.y", subject, "") for subject in subjects)) == [
        "high on web1", "high_q", "shared_q", "web1", "broker", "process 7 on web1", "nightly",
    ]  # fmt: skip


def test_what_keeps_a_chosen_worker_back_or_changes_it_stays_whatever_it_is_about() -> None:
    change = Change(
        "web1",
        "workers",
        "restart",
        ControlService("high", "restart"),
        ControlService("high", "restart"),
    )
    blocking = Finding("x.y", "low on web1", "", blocks=(Block("web1"),))
    changing = Finding("x.y", "low on web1", "", fix=(change,))
    assert (
        left("high@web1", blocking, changing, Finding("x.y", "low on web1", ""))
        == ["low on web1"] * 2
    )


def test_a_part_of_the_fleet_has_only_the_chosen_services_and_their_hosts() -> None:
    fleet, snapshot = part(FLEET, make_snapshot(FLEET), chosen(FLEET, "low@web1"))
    assert [(host.name, host.services) for host in fleet.hosts] == [("web1", ("low",))]
    assert list(snapshot.hosts) == ["web1"]
    assert fleet.all_workers == FLEET.all_workers


def test_the_workers_of_one_unit_are_chosen_together_by_any_of_their_names() -> None:
    shared = tuple(one.model_copy(update={"unit": "shop.service"}) for one in WORKERS)
    fleet = make_fleet(
        make_host(workers=shared, beat=False, service_manager="systemd", commands=None)
    )
    assert chosen(fleet, "low") == chosen(fleet, "high@web1") == {("web1", "shop.service")}
    with pytest.raises(UsageError) as error:
        chosen(fleet, "hihg")
    assert "available: high, low" in error.value.advice
