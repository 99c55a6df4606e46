"""The connection variables of an inventory lead to the same place, by the same key, as with
Ansible.
"""

import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runbooks.ssh.config import Target, arguments_for, resolve
from tests.ansible.conftest import Run

HOSTS = 40


def draw_variables(draw: random.Random, directory: Path) -> dict[str, Any]:
    """Some of the connection variables, under old names and new ones."""
    pools: dict[str, Sequence[Any]] = {
        "ansible_host": ["10.0.0.1", "printers"],
        "ansible_ssh_host": ["10.0.0.2"],
        "ansible_port": [2222, "2223"],
        "ansible_ssh_port": [2224],
        "ansible_user": ["deploy", "de ploy"],
        "ansible_ssh_user": ["legacy"],
        "ansible_private_key_file": [str(directory / "key"), str(directory / "a key")],
        "ansible_ssh_private_key_file": [str(directory / "old")],
        "ansible_ssh_timeout": [7, "8"],
        "ansible_host_key_checking": [True, False, "no", "yes"],
        "ansible_ssh_host_key_checking": [True, False],
        "ansible_ssh_args": ["-o Port=9", "-o ProxyJump=gate"],
        "ansible_ssh_common_args": [
            f"-F '{directory}/config'",
            "-J me@first:22,second",
            "-o User=common",
        ],
        "ansible_ssh_extra_args": [
            "-o HostKeyAlias=alias",
            "-o ConnectTimeout=3 -o IdentitiesOnly=yes",
        ],
    }
    return {name: draw.choice(pool) for name, pool in pools.items() if draw.random() < 0.35}


def recorder(directory: Path, name: str) -> str:
    """A command in `ssh`'s place, which records its arguments and reaches no host."""
    path = directory / f"ssh-{name}"
    path.write_text(f"""#!/bin/sh\nprintf '%s\\0' "$@" >'{directory}/{name}.argv'\nexit 255\n""")
    path.chmod(0o755)
    return str(path)


def before_the_command(argv: Sequence[str]) -> list[str]:
    """What Ansible gives `ssh`, up to the host."""
    valued = {"-o", "-F", "-J", "-p", "-l", "-i"}
    at = 0
    while argv[at].startswith("-"):
        at += 2 if argv[at] in valued else 1
    return [*argv[:at], "--", argv[at]]


def comparable(target: Target) -> tuple[object, ...]:
    return (
        target.host, target.port, target.user, target.identities, target.identities_only, target.key_name,
        target.strict, target.jumps, target.connect_timeout_s,
    )  # fmt: skip


def test_the_connection_variables_mean_the_same(ansible: Run, tmp_path: Path) -> None:
    draw = random.Random(5)
    for name in ("key", "a key", "old"):
        (tmp_path / name).touch()
    (tmp_path / "config").write_text("Host printers\n  HostName 10.0.0.7\n  User from_the_file\n")
    hosts = {f"h{n}": draw_variables(draw, tmp_path) for n in range(HOSTS)}
    inventory = {
        name: {**variables, "ansible_ssh_executable": recorder(tmp_path, name)}
        for name, variables in hosts.items()
    }
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": inventory}}))
    with pytest.raises(subprocess.CalledProcessError):  # no host is reached
        ansible(
            "ansible",
            "-i",
            str(tmp_path / "inventory.json"),
            "-f",
            "4",
            "-m",
            "raw",
            "-a",
            "true",
            "all",
        )
    for name, variables in hosts.items():
        argv = (tmp_path / f"{name}.argv").read_text().split("\0")
        ours, theirs = resolve(arguments_for(name, variables)), resolve(before_the_command(argv))
        assert comparable(ours) == comparable(theirs), (name, variables, argv)
