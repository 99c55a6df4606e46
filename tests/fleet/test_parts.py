"""What of the fleet lab can be tried anywhere: its addresses, its flags, and what it says where it
cannot work.
"""

import fcntl
import ipaddress
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import packages
from lab.fleet import image, machine
from lab.fleet.fleet import host_names
from lab.fleet.latency import parse
from lab.fleet.machine import require_root
from lab.fleet.record import free_network
from lab.fleet.shell import FleetError
from lab.world import CHECKOUT

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


def test_missing_debian_packages_are_named_and_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/ran\n')
    (tmp_path / "apt-get").chmod(0o755)
    told = list[str]()
    machine.require_tools(told.append)
    wanted = "systemd-container mmdebstrap debian-archive-keyring iproute2 openssh-client"
    assert told == [f"installing Debian packages: {wanted.replace(' ', ', ')}"]
    assert (tmp_path / "ran").read_text().endswith(f" {wanted}\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lock the package lists")
def test_another_apt_get_is_awaited_until_it_ends() -> None:
    with open("/var/lib/apt/lists/lock", "w") as lists, ThreadPoolExecutor() as pool:
        fcntl.lockf(lists, fcntl.LOCK_EX)
        installing = pool.submit(packages.install, ["coreutils"])
        try:
            with pytest.raises(TimeoutError):
                installing.result(timeout=3)
        finally:
            fcntl.lockf(lists, fcntl.LOCK_UN)
        installing.result(timeout=120)


def test_a_root_file_system_is_kept_in_the_cache_and_built_again_when_its_sources_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = list[Path]()

    def build(root: Path) -> None:
        root.mkdir()
        built.append(root)

    def made(*sources: str) -> Path:
        return image.cached("fleet", sources, print, build)

    first = made("a")
    assert (first, len(built)) == (made("a"), 1)
    assert str(first).startswith(f"{tmp_path}/celery-runbooks/fleet-")
    assert (made("b").is_dir(), len(built)) == (True, 2)
    first.rmdir()
    assert (made("a"), first.is_dir(), len(built)) == (first, True, 3)


@pytest.mark.parametrize("ci", ["", "1"])
def test_where_no_hosts_can_be_made_their_tests_are_skipped_and_fail_in_ci(ci: str) -> None:
    as_another_user = (
        "import os, sys, pytest; os.geteuid = lambda: 1000; sys.exit(pytest.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", as_another_user, "-rs", "-p", "no:cacheprovider"]
    test = "tests/fleet/test_fleet.py::test_the_operator_needs_the_password_for_sudo"
    done = subprocess.run(
        [*command, test], cwd=CHECKOUT, env=os.environ | {"CI": ci}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == (1 if ci else 0), done.stdout + done.stderr
    assert ("1 error" if ci else "1 skipped") in done.stdout
    assert "the fleet lab needs root" in done.stdout


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
