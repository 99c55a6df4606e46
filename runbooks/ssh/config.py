"""What OpenSSH would do to reach a host: its own answer, for the command line that Ansible would
give it.

**Source:** ssh(1), `-G`; ssh_config(5); ansible-core's connection plugin `ssh` for the options and
their order.
"""

import os
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from runbooks.core.errors import UsageError
from runbooks.core.operator import home_directory, user_name

SSH_TIMEOUT_S = 10.0
_ASKED_AT_ONCE = threading.BoundedSemaphore(
    os.cpu_count() or 1
)  # more processes would be no faster


class Target(Struct, frozen=True):
    """One SSH server: where it is, how its key is checked, and how we log in.

    `jumps` are the `ssh` arguments of the servers on the way to it, in their order; `proxy_command`
    is a shell command whose standard streams lead there. `strict` is ssh's StrictHostKeyChecking,
    `remembered_in` the file that a new host key is written to, `agent` the socket of the agent to
    ask.
    """

    host: str
    port: int
    user: str
    key_name: str
    known_hosts: tuple[Path, ...]
    remembered_in: Path | None
    strict: str
    hash_names: bool
    identities: tuple[Path, ...]
    certificates: tuple[Path, ...]
    agent: Path | None
    identities_only: bool
    connect_timeout_s: float
    jumps: tuple[tuple[str, ...], ...] = ()
    proxy_command: str = ""


# Of several names of one thing Ansible takes the last that is set.
ADDRESS = ("ansible_host", "ansible_ssh_host")
_OPTIONS = {
    "Port": ("ansible_port", "ansible_ssh_port"),
    "IdentityFile": ("ansible_private_key_file", "ansible_ssh_private_key_file"),
    "User": ("ansible_user", "ansible_ssh_user"),
    "ConnectTimeout": ("ansible_timeout", "ansible_ssh_timeout"),
    "StrictHostKeyChecking": ("ansible_host_key_checking", "ansible_ssh_host_key_checking"),
}


def last(variables: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The value of the last of these that is set, as text."""
    values = [str(variables[name]) for name in names if variables.get(name) not in (None, "")]
    return values[-1] if values else None


def arguments_for(host: str, variables: Mapping[str, Any]) -> tuple[str, ...]:
    """The `ssh` arguments of a host's connection variables; the first mention of an option wins, as
    in Ansible.
    """
    arguments = shlex.split(str(variables.get("ansible_ssh_args", "")))
    for option, names in _OPTIONS.items():
        value = last(variables, names)
        if option == "ConnectTimeout":
            value = value or f"{SSH_TIMEOUT_S:.0f}"
        if option == "StrictHostKeyChecking":
            value = "no" if str(value).lower() in ("false", "no", "0", "off") else None
        if value is not None:
            shown = Path(value).expanduser() if option == "IdentityFile" else value
            arguments += ["-o", f'{option}="{shown}"']
    for name in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
        arguments += shlex.split(str(variables.get(name, "")))
    return (*arguments, "--", last(variables, ADDRESS) or host)


def resolve(arguments: Sequence[str]) -> Target:
    """Ask `ssh -G`, which reads ssh_config with its Include and Match. Raises UsageError."""
    try:
        with _ASKED_AT_ONCE:
            done = subprocess.run(
                ["ssh", "-G", *arguments], capture_output=True, text=True, timeout=SSH_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
    except FileNotFoundError:
        raise UsageError(
            "there is no `ssh` command on this machine", "install the OpenSSH client"
        ) from None
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"`ssh -G` did not end within {SSH_TIMEOUT_S:.0f} s; see Match exec in ssh_config"
        ) from None
    if done.returncode:
        raise UsageError(f"ssh does not take these options: {done.stderr.strip()[-300:]}")
    options: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name, []).append(value)
    config = tuple(
        arguments[n] for at, word in enumerate(arguments) if word == "-F" for n in (at, at + 1)
    )
    option = {name: values[0] for name, values in options.items()}
    identities, certificates = (
        [_filled_in(name, option, arguments[-1]) for name in options.get(kind, [])]
        for kind in ("identityfile", "certificatefile")
    )
    return _target(option, identities, certificates, config)


def _target(
    option: Mapping[str, str],
    identities: Sequence[Path],
    certificates: Sequence[Path],
    config: tuple[str, ...],
) -> Target:
    users, machines = (
        _files(option.get(f"{whose}knownhostsfile", "none")) for whose in ("user", "global")
    )
    timeout = option.get("connecttimeout", "none")
    jump, command = option.get("proxyjump", "none"), option.get("proxycommand", "none")
    return Target(
        host=option["hostname"],
        port=int(option["port"]),
        user=option["user"],
        key_name=option.get("hostkeyalias", ""),
        known_hosts=(*users, *machines),
        remembered_in=users[0] if users else None,
        strict=option.get("stricthostkeychecking", "ask"),
        hash_names=option.get("hashknownhosts") == "yes",
        identities=tuple(filter(_stands, identities)),
        certificates=tuple(
            certificates or (path.with_name(f"{path.name}-cert.pub") for path in identities)
        ),
        agent=_agent(option.get("identityagent", "SSH_AUTH_SOCK")),
        identities_only=option.get("identitiesonly") == "yes",
        connect_timeout_s=SSH_TIMEOUT_S if timeout in ("none", "0") else float(timeout),
        jumps=() if jump == "none" else tuple((*config, *_hop(hop)) for hop in jump.split(",")),
        proxy_command="" if command == "none" else command,
    )


def _files(names: str) -> list[Path]:
    """They are not quoted: a name with a space in it goes on where the next word begins no path."""
    return [Path(name) for name in re.split(r" (?=[/~]|none)", names) if name != "none"]


def _stands(identity: Path) -> bool:
    """Whether there is such a key, or its public half alone: an agent may hold the other."""
    return identity.is_file() or identity.with_name(identity.name + ".pub").is_file()


def _filled_in(name: str, option: Mapping[str, str], asked_for: str) -> Path:
    """The name of a key's file with what ssh fills in at its use, so that `ssh -G` shows it as it
    was written.

    **Source:** ssh_config(5), "TOKENS" and "ENVIRONMENT VARIABLES".
    """
    tokens = {
        "%": "%", "d": home_directory(), "h": option["hostname"], "i": str(os.getuid()), "n": asked_for,
        "k": option.get("hostkeyalias", asked_for), "l": socket.gethostname(), "L": socket.gethostname().split(".")[0],
        "p": option["port"], "r": option["user"], "u": user_name(),
    }  # fmt: skip
    name = re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], found[0]), name)
    name = re.sub(r"^~(?=/|$)", home_directory(), name)
    return Path(re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), name)).expanduser()


def _agent(named: str) -> Path | None:
    """**Source:** ssh_config(5), IdentityAgent: a socket, the name of a variable after a `$`, or a
    word.
    """
    if variable := re.fullmatch(r"\$(\w+)|(SSH_AUTH_SOCK)", named):
        named = os.environ.get(variable[1] or variable[2], "")
    return Path(named) if named not in ("", "none") else None


def _hop(text: str) -> tuple[str, ...]:
    """The `ssh` arguments of `[USER@]HOST[:PORT]` or an `ssh://` URI; of ours it inherits `-F`
    alone.

    **Source:** ssh_config(5), ProxyJump.
    """
    found = re.fullmatch(r"(?:ssh://)?(?:(.+)@)?(\[[^]]+\]|[^:\[\]]+)(?::(\d+))?/?", text)
    user, host, port = found.groups() if found else (None, text, None)
    return (
        *(("-l", user) if user else ()),
        *(("-p", port) if port else ()),
        "--",
        host.strip("[]"),
    )
