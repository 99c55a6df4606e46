"""sudo as real hosts have it: a refusal is reported with what sudoers lacks, and nothing runs as
another user.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fleet.conftest import FleetWorld
from tests.sandbox.conftest import Done

SUDOERS = "/etc/sudoers.d/zz-test"


@contextmanager
def changed(world: FleetWorld, change: str, back: str) -> Iterator[None]:
    """A host with something changed by root, and put back by the machine's root, whatever sudo says
    by then.
    """
    assert world.ssh("root@web1", change).code == 0
    try:
        yield
    finally:
        assert world.ssh("root@web1", back).code == 0


def look(world: FleetWorld, inventory: str = ".fleet/inventory.yaml") -> Done:
    return world.inv("diagnose", "--inventory", inventory)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            "deploy ALL=(root) NOPASSWD: /usr/bin/true, !/bin/sh, !/usr/bin/sh",
            "deploy ALL=(root) NOPASSWD: /bin/sh",
        ),
        ("Defaults:deploy requiretty", "Defaults:deploy !requiretty"),
        ("deploy ALL=(ALL) PASSWD: ALL", "--ask-become-pass"),
    ],
)
def test_what_sudo_refuses_is_reported_with_what_sudoers_lacks(
    fleet: FleetWorld, rule: str, expected: str
) -> None:
    write = f"echo {shlex.quote(rule)} >{SUDOERS}; chmod 440 {SUDOERS}; visudo -c -q"
    with changed(fleet, write, f"rm {SUDOERS}"):
        done = look(fleet)
    assert done.code == 4
    assert "sudo refuses" in done.out
    assert expected in done.out
    assert "ready-" not in done.out


def test_a_secure_path_without_the_tools_is_reported_as_that(fleet: FleetWorld) -> None:
    write = f"echo 'Defaults secure_path=/opt' >{SUDOERS}; chmod 440 {SUDOERS}"
    with changed(fleet, write, f"rm {SUDOERS}"):
        done = look(fleet)
    assert "does sudo's secure_path, or a start file, leave out /usr/bin and /bin?" in done.out


def test_scripts_that_run_as_someone_else_than_was_asked_for_are_refused(
    fleet: FleetWorld,
) -> None:
    line = 'ForceCommand sh -c "${SSH_ORIGINAL_COMMAND#*-- }"'
    config = "/etc/ssh/sshd_config.d/zz-test.conf"
    write = (
        f"printf 'Match User deploy\\n%s\\n' {shlex.quote(line)} >{config}; systemctl reload ssh"
    )
    with changed(fleet, write, f"rm {config}; systemctl reload ssh"):
        done = look(fleet)
    assert "its shell runs with uid 1000, not as root (uid 0)" in done.out
    assert "Nothing is wrong" not in done.out


def test_who_may_not_write_where_files_go_is_found_while_planning(fleet: FleetWorld) -> None:
    text = (fleet.fleet / "inventory.yaml").read_text()
    assert "ansible_become: true" in text
    (fleet.fleet / "plain.yaml").write_text(
        text.replace("ansible_become: true", "ansible_become: false")
    )
    done = fleet.inv("remediate", "--dry-run", "--inventory", ".fleet/plain.yaml")
    assert "deploy may not write in /etc/cron.d" in done.out
    assert "ansible_become: true runs them as root" in done.out


def test_a_host_whose_sudo_waits_for_a_name_is_named_with_what_it_says(fleet: FleetWorld) -> None:
    silent = "nameserver 192.0.2.1"  # reserved for documentation: no server answers there
    change = "cp /etc/hosts /root/hosts; cp -L /etc/resolv.conf /root/resolv; : >/etc/hosts; "
    change += f"echo {silent} >/etc/resolv.conf"
    with changed(fleet, change, "cat /root/hosts >/etc/hosts; cat /root/resolv >/etc/resolv.conf"):
        done = look(fleet)
    assert "the shell on web1 starts slowly" in done.out
    assert "unable to resolve host web1" in done.out
