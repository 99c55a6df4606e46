"""What of the fleet lab can be tried anywhere: its addresses, its flags, and what it says where it
cannot work.
"""

import ipaddress
import os
import sys
from pathlib import Path

import pytest

from lab.fleet import machine
from lab.fleet.fleet import host_names
from lab.fleet.latency import parse
from lab.fleet.machine import require_root
from lab.fleet.record import free_network
from lab.fleet.shell import FleetError

NAMES = ["broker", "web1", "web2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("20", {"broker": 20, "web1": 20, "web2": 20}),
        ("web1=20,web2=2.5", {"web1": 20, "web2": 2.5}),
        ("20,web1=0", {"broker": 20, "web1": 0, "web2": 20}),
    ],
)
def test_latency_is_one_number_or_one_by_host(text: str, expected: dict[str, float]) -> None:
    assert parse(text, NAMES) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("web9=5", "no host 'web9'; there are broker, web1, web2"), ("fast", "'fast' is not a number"), ("-1", "'-1'"),
     ("web1=nan", "'nan'"), ("=5", "no host ''")],
)  # fmt: skip
def test_a_latency_that_means_nothing_is_reported(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"--latency: .*{expected}"):
        parse(text, NAMES)


def test_the_first_host_is_the_broker() -> None:
    assert host_names(3) == NAMES
    with pytest.raises(ValueError, match="--hosts: 1 is not a number from 2 to 100"):
        host_names(1)


def test_a_network_that_the_machine_knows_already_is_left_alone() -> None:
    own = free_network("00ffff", ["0.0.0.0/0", "192.0.2.0/24"])
    assert own == "10.255.255.0/24"
    assert free_network("00ffff", [own, "10.0.0.7", "10.0.1.0/24"]) == "10.0.2.0/24"
    assert ipaddress.IPv4Network(free_network("abcdef", ["10.0.0.0/9"])).subnet_of(
        ipaddress.IPv4Network("10.128.0.0/9")
    )


def test_a_machine_without_a_free_network_is_reported() -> None:
    with pytest.raises(FleetError, match=r"no free network 10.x.y.0/24"):
        free_network("000000", ["10.0.0.0/8"])


def test_without_root_or_linux_it_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(FleetError, match=r"needs root.*inv sandbox"):
        require_root()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(FleetError, match=r"needs Linux.*inv sandbox"):
        require_root()


@pytest.mark.parametrize("first", ["aaaaaa", "bbbbbb"])
def test_the_kernels_limit_is_put_back_whichever_fleet_goes_first(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "max_user_instances"
    limit.write_text("128\n")
    monkeypatch.setattr(machine, "_INOTIFY", limit)
    monkeypatch.setattr(machine, "_CLAIMS", tmp_path / "claims")
    for id, hosts in (("aaaaaa", 2), ("bbbbbb", 16), ("bbbbbb", 16)):
        machine.claim(id, hosts)
    raised = int(limit.read_text())
    assert raised >= 128 + 18 * 8
    machine.release(first)
    assert 128 < int(limit.read_text()) < raised
    for id in ("aaaaaa", "bbbbbb"):
        machine.release(id)
    assert (limit.read_text(), (tmp_path / "claims").exists()) == ("128", False)
