"""Choose the transport of a host by Ansible's connection and become variables."""

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

# If several names of a variable are set, Ansible uses the last one.
_PASSWORD = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")
_PASSPHRASE = ("ansible_private_key_passphrase", "ansible_ssh_private_key_passphrase")
_BECOME_USER = ("ansible_become_user", "ansible_sudo_user")
_BECOME_EXE = ("ansible_become_exe", "ansible_sudo_exe")
_BECOME_FLAGS = ("ansible_become_flags", "ansible_sudo_flags")
_BECOME_PASSWORD = ("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass")

_MACHINE = (
    "name the machine that runs it as the host, with `celery_service_manager: docker`"
    " (docs/docker.md)"
)
_IN_CONTAINERS = {
    "docker": _MACHINE,
    "docker_api": _MACHINE,
    "podman": ("`celery_service_manager: docker` manages only containers of Docker, not of podman"),
}


def transports_to(
    hosts: Iterable[FleetHost],
    *,
    forks: int = 16,
    accept_new: bool = False,
    become_password: str | None = None,
) -> Transports:
    """Return the transport of each host, not connected yet; hosts share their jump hosts.

    `accept_new` accepts unknown host keys and remembers them. `become_password` is for hosts whose
    inventory has none. Raises UsageError for variables that are not supported.
    """
    if forks < 1:
        raise UsageError(f"--forks expects a number of hosts, 1 or more; got {forks}")
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
            # First the processes of `ssh -G`, then the large libraries: both need memory.
            target = resolve(arguments)
            with loading:
                # Imported here: slow to load, and only some verbs contact a host.
                from runbooks.ssh.client import SshTransport
                from runbooks.ssh.login import Secrets

                return SshTransport(target, become, jumps(), Secrets(password, passphrase))

        return ssh

    return Transports({host.name: way_to(host) for host in hosts}, forks)


def _connection(host: FleetHost) -> str:
    connection = str(host.variables.get("ansible_connection", "ssh"))
    if advice := _IN_CONTAINERS.get(connection.rpartition(".")[2]):
        raise UsageError(
            f"host '{host.name}': ansible_connection '{connection}': a container cannot be a host",
            advice,
        )
    if connection not in ("local", "ssh", "paramiko", "smart"):
        raise UsageError(
            f"host '{host.name}': ansible_connection '{connection}' is not supported",
            "use 'ssh' or 'local'",
        )
    if connection == "local":
        return "local"
    return "ssh"


def _local(host: FleetHost, become: Become | None) -> LocalTransport:
    """Return the transport to this machine, as the user who runs this. Raises UsageError."""
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
            f"host '{host.name}': ansible_become_method '{method}' is not supported", "use 'sudo'"
        )
    return Become(
        last(host.variables, _BECOME_USER) or "root",
        last(host.variables, _BECOME_PASSWORD) or password,
        last(host.variables, _BECOME_EXE) or "sudo",
        _become_flags(host),
    )


def _become_flags(host: FleetHost) -> tuple[str, ...]:
    """Return sudo's flags. Raises UsageError."""
    flags = last(host.variables, _BECOME_FLAGS)
    if flags is None:
        return ("-H",)
    try:
        return tuple(shlex.split(flags))
    except ValueError as error:
        raise UsageError(f"host '{host.name}': ansible_become_flags '{flags}': {error}") from None
