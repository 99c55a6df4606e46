"""What keeps a real host from being worked with is a finding of its own, and whatever could be
asked is judged.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.fleet.conftest import FleetWorld


def found_on(fleet: FleetWorld, host: str) -> dict[str, Any]:
    """The findings whose subject is the host itself, by their codes."""
    done = fleet.inv("diagnose", "--json", "--inventory", ".fleet/inventory.yaml")
    return {one["code"]: one for one in done.json["findings"] if one["subject"] == host}


@contextmanager
def on(fleet: FleetWorld, host: str, breaks: str, mends: str) -> Iterator[None]:
    """A host that root breaks, and repairs after the block."""
    done = fleet.ssh(f"root@{host}", breaks)
    assert done.code == 0, done.out + done.err
    try:
        yield
    finally:
        done = fleet.ssh(f"root@{host}", mends)
        assert done.code == 0, done.out + done.err


def test_a_changed_host_key_is_reported_as_that_and_the_other_hosts_are_judged(
    fleet: FleetWorld,
) -> None:
    known_hosts = fleet.fleet / "known_hosts"
    before = known_hosts.read_text()
    web1, web2 = (
        next(line for line in before.splitlines() if f",{name} " in line)
        for name in ("web1", "web2")
    )
    other = " ".join([web1.split()[0], *web2.split()[1:]])
    known_hosts.write_text(before.replace(web1, other))
    try:
        found = found_on(fleet, "web1")
        assert found.keys() == {"host.key_changed"}
        assert "has CHANGED" in found["host.key_changed"]["evidence"][0]
        assert "host.key_changed" not in found_on(fleet, "web2")
    finally:
        known_hosts.write_text(before)


def test_what_sudo_refuses_is_reported_with_the_line_that_its_sudoers_lacks(
    fleet: FleetWorld,
) -> None:
    user = re.search(r"ansible_user: (\w+)", (fleet.fleet / "inventory.yaml").read_text())
    assert user
    rule = f"echo '{user[1]} ALL=(ALL) NOPASSWD: /bin/true, !/bin/sh' >/etc/sudoers.d/zz-refused"
    with on(fleet, "web1", rule, "rm /etc/sudoers.d/zz-refused"):
        found = found_on(fleet, "web1")
    assert found.keys() == {"host.sudo_refused"}
    assert "sudo refuses: " in found["host.sudo_refused"]["evidence"][0]
    assert "add to its sudoers: " in found["host.sudo_refused"]["evidence"][0]


def test_on_a_host_whose_tmp_is_full_that_is_one_finding_among_all_others(
    fleet: FleetWorld,
) -> None:
    before = found_on(fleet, "web1")
    fill = "mount -t tmpfs -o size=4k,mode=1777 tmpfs /tmp && head -c 4096 /dev/zero >/tmp/filler"
    with on(fleet, "web1", fill, "umount /tmp"):
        found = found_on(fleet, "web1")
    assert found.keys() == {*before, "host.no_room"}
    assert found["host.no_room"]["summary"].startswith("/tmp on web1 cannot be written")


def test_an_environment_file_that_is_a_folder_and_a_directory_that_is_gone_are_each_a_finding(
    fleet: FleetWorld,
) -> None:
    text = (fleet.fleet / "inventory.yaml").read_text()
    env, directory = (
        re.search(rf"{name}: (\S+)", text) for name in ("celery_env_file", "celery_directory")
    )
    assert env
    assert directory
    swap, back = (
        f"mv {env[1]} {env[1]}.aside && mkdir {env[1]}",
        f"rmdir {env[1]} && mv {env[1]}.aside {env[1]}",
    )
    with on(fleet, "web1", swap, back):
        found = found_on(fleet, "web1")
    assert "environment.is_folder" in found
    assert "host.unreachable" not in found
    with on(
        fleet,
        "web1",
        f"mv {directory[1]} {directory[1]}.aside",
        f"mv {directory[1]}.aside {directory[1]}",
    ):
        found = found_on(fleet, "web1")
    assert found["host.no_directory"]["summary"].startswith(
        f"{directory[1]} does not exist, so the application cannot be started on web1"
    )
