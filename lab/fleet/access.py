"""The ways into a fleet, under its `.fleet`: key, known hosts, ssh_config, inventory and the
operator's password.
"""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from lab.fleet.host import in_root
from lab.fleet.record import Host, Record
from lab.fleet.shell import run

_INVENTORY = Path(__file__).with_name("inventory.template.yaml")
KEY, PASSWORD = "id_ed25519", "operator.password"
USERS = ("root", "deploy", "operator")


def make_secrets(fleet: Path) -> None:
    """The key that all users of all hosts accept, and the password that `operator` needs for sudo."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fleet", "-f", fleet / KEY)
    write_secret(fleet / PASSWORD, secrets.token_urlsafe(12))


def let_in(fleet: Path, record: Record, root: Path) -> None:
    """Put key and password into a root file system."""
    key = (fleet / f"{KEY}.pub").read_text()
    for user in USERS:
        in_root(record, root, f"ssh=~{user}/.ssh; install -d -m 700 -o {user} $ssh; umask 77; "
                f"cat >$ssh/authorized_keys; chown {user} $ssh/authorized_keys", stdin=key)  # fmt: skip
    in_root(record, root, "chpasswd", stdin=f"operator:{(fleet / PASSWORD).read_text()}\n")


def write_known_hosts(fleet: Path, public_keys: Mapping[Host, str]) -> None:
    lines = (
        f"{host.address},{host.name} {' '.join(key.split()[:2])}\n"
        for host, key in public_keys.items()
    )
    (fleet / "known_hosts").write_text("".join(lines))


def write_ssh_config(fleet: Path, hosts: Sequence[Host]) -> None:
    """For `ssh -F .fleet/ssh_config web1`."""
    lines = ["Host *", "  User deploy", f'  IdentityFile "{fleet / KEY}"', "  IdentitiesOnly yes",
             f'  UserKnownHostsFile "{fleet / "known_hosts"}"', "  StrictHostKeyChecking yes"]  # fmt: skip
    for host in hosts:
        lines += [f"Host {host.name}", f"  HostName {host.address}"]
    (fleet / "ssh_config").write_text("\n".join(lines) + "\n")


def write_inventory(fleet: Path, hosts: Sequence[Host]) -> None:
    """The fleet as an Ansible YAML inventory: the first host is the broker, the others run the
    workers.
    """
    lines = [f"            {host.name}: {{ansible_host: {host.address}}}" for host in hosts]
    text = Template(_INVENTORY.read_text()).substitute(
        broker=lines[0], workers="\n".join(lines[1:])
    )
    (fleet / "inventory.yaml").write_text(text)


def write_secret(path: Path, text: str) -> None:
    """Write a new file that only its owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
