"""What OpenSSH would do to reach a host: its own answer, for the command line that Ansible would give it.

**Source:** ssh(1), `-G`; ssh_config(5); ansible-core's connection plugin `ssh` for the options and their order.
"""

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbooks.core.errors import UsageError

SSH_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """One SSH server: where it is, how its key is checked, and how we log in.

    `jumps` are the `ssh` arguments of the servers on the way to it, in their order; `proxy_command` is a shell command
    whose standard streams lead there. `strict` is ssh's StrictHostKeyChecking.
    """

    host: str
    port: int
    user: str
    key_name: str
    known_hosts: tuple[Path, ...]
    strict: str
    hash_names: bool
    identities: tuple[Path, ...]
    use_agent: bool
    connect_timeout_s: float
    jumps: tuple[tuple[str, ...], ...] = ()
    proxy_command: str = ""


def arguments_for(host: str, variables: Mapping[str, Any]) -> tuple[str, ...]:
    """The `ssh` arguments of a host's connection variables; the first mention of an option wins, as in Ansible."""
    address = variables.get("ansible_host", host)
    arguments: list[str] = []
    for name, option in (
        ("ansible_port", "Port"),
        ("ansible_ssh_private_key_file", "IdentityFile"),
        ("ansible_private_key_file", "IdentityFile"),
        ("ansible_user", "User"),
        ("ansible_timeout", "ConnectTimeout"),
    ):
        if variables.get(name) not in (None, ""):
            value = Path(variables[name]).expanduser() if option == "IdentityFile" else variables[name]
            arguments += ["-o", f'{option}="{value}"']
    if str(variables.get("ansible_host_key_checking", "true")).lower() in ("false", "no", "0"):
        arguments += ["-o", "StrictHostKeyChecking=no"]
    for name in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
        arguments += shlex.split(str(variables.get(name, "")))
    return (*arguments, "--", str(address))


def resolve(arguments: Sequence[str]) -> Target:
    """Ask `ssh -G`, which reads ssh_config with its Include and Match. Raises UsageError."""
    try:
        done = subprocess.run(
            ["ssh", "-G", *arguments], capture_output=True, text=True, timeout=SSH_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise UsageError("there is no `ssh` command on this machine", "install the OpenSSH client") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"`ssh -G` did not end within {SSH_TIMEOUT_S:.0f} s; see Match exec in ssh_config") from None
    if done.returncode:
        raise UsageError(f"ssh does not take these options: {done.stderr.strip()[-300:]}")
    options: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name, []).append(value)
    config = tuple(arguments[n] for at, word in enumerate(arguments) if word == "-F" for n in (at, at + 1))
    return _target({name: values[0] for name, values in options.items()}, options.get("identityfile", []), config)


def _target(option: Mapping[str, str], identities: Sequence[str], config: tuple[str, ...]) -> Target:
    files = f"{option.get('userknownhostsfile', '')} {option.get('globalknownhostsfile', '')}".split()
    timeout = option.get("connecttimeout", "none")
    jump, command = option.get("proxyjump", "none"), option.get("proxycommand", "none")
    return Target(
        host=option["hostname"],
        port=int(option["port"]),
        user=option["user"],
        key_name=option.get("hostkeyalias", ""),
        known_hosts=tuple(Path(name).expanduser() for name in files if name != "none"),
        strict=option.get("stricthostkeychecking", "ask"),
        hash_names=option.get("hashknownhosts") == "yes",
        identities=tuple(path for name in identities if (path := Path(name).expanduser()).is_file()),
        use_agent=option.get("identitiesonly") != "yes" and option.get("identityagent") != "none",
        connect_timeout_s=SSH_TIMEOUT_S if timeout in ("none", "0") else float(timeout),
        jumps=() if jump == "none" else tuple((*config, *_hop(hop)) for hop in jump.split(",")),
        proxy_command="" if command == "none" else command,
    )


def _hop(text: str) -> tuple[str, ...]:
    """The `ssh` arguments of `[USER@]HOST[:PORT]` or an `ssh://` URI; of ours it inherits `-F` alone.

    **Source:** ssh_config(5), ProxyJump.
    """
    found = re.fullmatch(r"(?:ssh://)?(?:(.+)@)?(\[[^]]+\]|[^:\[\]]+)(?::(\d+))?/?", text)
    user, host, port = found.groups() if found else (None, text, None)
    return (*(("-l", user) if user else ()), *(("-p", port) if port else ()), "--", host.strip("[]"))
