"""Which service managers are known, and which service one of their files describes."""

from typing import get_args

import pytest

from runbooks.core.managers import (
    ABILITIES,
    SUPERVISOR_PROGRAMS,
    SYSTEMD_UNITS,
    ManagerName,
    service_of_unit,
)
from runbooks.hosts.services.registry import manager_named


def test_each_manager_that_the_inventory_may_name_can_be_asked_and_judged() -> None:
    assert set(get_args(ManagerName)) == ABILITIES.keys()
    assert all(manager_named(name) for name in ABILITIES)


@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("celery-worker@high.service", "high"),
        ("celery-worker@a.b-c.service", "a.b-c"),
        ("celery-beat.service", "beat"),
        ("celery.service", ""),
        ("celery-worker@.service", ""),
        ("celery.target", ""),
        ("celery-worker@high.service.d", ""),
        ("celery-shop", ""),
        ("beat", ""),
    ],
)
def test_a_unit_file_shows_its_service_by_its_name(name: str, service: str) -> None:
    assert service_of_unit(name) == service
    if service:
        assert SYSTEMD_UNITS.name(service) == name


@pytest.mark.parametrize(
    ("name", "service"), [("celery-worker-a.b.conf", "a.b"), ("celery-beat.conf", "beat")]
)
def test_so_does_a_conf_file_of_supervisords(name: str, service: str) -> None:
    assert service_of_unit(name) == service
    assert SUPERVISOR_PROGRAMS.name(service) == name
