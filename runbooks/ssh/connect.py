"""Which way leads to a host, by Ansible's connection and become variables."""

import os
import pwd
import shlex
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING

from runbooks.core.errors import UsageError
from runbooks.core.fleet import FleetHost
from runbooks.hosts.transport import Become, LocalTransport, Transport, Transports
from runbooks.ssh.config import arguments_for, last, resolve

if TYPE_CHECKING:
    from runbooks.ssh.server import Jumps

# Of several names of one thing Ansible takes the last that is set.
_PASSWORD = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")
_PASSPHRASE = ("ansible_private_key_passphrase", "ansible_ssh_private_key_passphrase")
_BECOME_USER = ("ansible_become_user", "ansible_sudo_user")
_BECOME_EXE = ("ansible_become_exe", "ansible_sudo_exe")
_BECOME_FLAGS = ("ansible_become_flags", "ansible_sudo_flags")
_BECOME_PASSWORD = ("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass")

_MACHINE = (
    "name the machine that it runs on as the host, with `celery_service_manager: docker`"
    " (docs/docker.md)"
)
_IN_CONTAINERS = {
    "docker": _MACHINE,
    "docker_api": _MACHINE,
    "podman": (
        "and `celery_service_manager: docker` manages the containers of Docker alone, not those of"
        " podman"
    ),
}


def transports_to(
    hosts: Iterable[FleetHost],
    *,
    forks: int = 16,
    accept_new: bool = False,
    become_password: str | None = None,
) -> Transports:
    """The transport of each host, not connected yet; the servers on the way are shared.

    `accept_new` lets unknown host keys in and remembers them. `become_password` is for hosts whose
    inventory has none. Raises UsageError for variables that are not supported.
    """
    if forks < 1:
        raise UsageError(f"--forks {forks}: at least one host has to be worked on at a time")
    loading = threading.Lock()

    @cache
    def jumps() -> "Jumps":
        from runbooks.ssh.server import Jumps

        return Jumps(accept_new=accept_new)

    def way_to(host: FleetHost) -> Callable[[], Transport]:
        become = _become(host, become_password)
        if _connection(host) == "local":
            return lambda: _local(host, become)
        arguments = arguments_for(host.name, host.variables)
        password = last(host.variables, _PASSWORD)
        passphrase = last(host.variables, _PASSPHRASE)

        def ssh() -> Transport:
            # Before what follows is loaded: its processes and what follows are large.
            target = resolve(arguments)
            with loading:
                # Slow to load, and only some verbs ask a host.
                from runbooks.ssh.client import SshTransport
                from runbooks.ssh.login import Secrets

                return SshTransport(target, become, jumps(), Secrets(password, passphrase))

        return ssh

    return Transports({host.name: way_to(host) for host in hosts}, forks)


def _connection(host: FleetHost) -> str:
    connection = str(host.variables.get("ansible_connection", "ssh"))
    if advice := _IN_CONTAINERS.get(connection.rpartition(".")[2]):
        raise UsageError(
            f"host '{host.name}': ansible_connection '{connection}': a container is no host here",
            advice,
        )
    if connection not in ("local", "ssh", "paramiko", "smart"):
        raise UsageError(
            f"host '{host.name}': ansible_connection '{connection}' is not supported",
            "'ssh' and 'local' are",
        )
    if connection == "local":
        return "local"
    return "ssh"


def _local(host: FleetHost, become: Become | None) -> LocalTransport:
    """The way to this machine, only as whoever runs this. Raises UsageError."""
    if become and become.user not in _our_names():
        raise UsageError(
            f"host '{host.name}': ansible_become to {become.user} is not supported for a local"
            " connection",
            f"run this as {become.user}, or reach the host over ssh",
        )
    return LocalTransport()


def _our_names() -> list[str]:
    found = []
    for entry in pwd.getpwall():
        if entry.pw_uid == os.geteuid():
            found.append(entry.pw_name)
    return found


def _become(host: FleetHost, password: str | None) -> Become | None:
    wanted = str(host.variables.get("ansible_become", "false"))
    if wanted.lower() not in ("true", "yes", "1", "on"):
        return None
    method = host.variables.get("ansible_become_method", "sudo")
    if method not in ("sudo", "ansible.builtin.sudo"):
        raise UsageError(
            f"host '{host.name}': ansible_become_method '{method}' is not supported", "'sudo' is"
        )
    return Become(
        last(host.variables, _BECOME_USER) or "root",
        last(host.variables, _BECOME_PASSWORD) or password,
        last(host.variables, _BECOME_EXE) or "sudo",
        _become_flags(host),
    )


def _become_flags(host: FleetHost) -> tuple[str, ...]:
    """sudo's flags. Raises UsageError."""
    flags = last(host.variables, _BECOME_FLAGS)
    if flags is None:
        return ("-H",)
    try:
        return tuple(shlex.split(flags))
    except ValueError as error:
        raise UsageError(f"host '{host.name}': ansible_become_flags '{flags}': {error}") from None
