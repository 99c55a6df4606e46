"""Ask OpenSSH how it would reach a host, with the command line that Ansible would use.

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
_ASKED_AT_ONCE = threading.BoundedSemaphore(os.cpu_count() or 1)
"""More processes at a time would not be faster."""

# If several names of a variable are set, Ansible uses the last one.
ADDRESS = ("ansible_host", "ansible_ssh_host")
_OPTIONS = {
    "Port": ("ansible_port", "ansible_ssh_port"),
    "IdentityFile": ("ansible_private_key_file", "ansible_ssh_private_key_file"),
    "User": ("ansible_user", "ansible_ssh_user"),
    "ConnectTimeout": ("ansible_timeout", "ansible_ssh_timeout"),
    "StrictHostKeyChecking": ("ansible_host_key_checking", "ansible_ssh_host_key_checking"),
}
_MORE_ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")


class Target(Struct, frozen=True):
    """One SSH server: its address, its host key, and the login."""

    host: str
    port: int
    user: str
    key_name: str
    known_hosts: tuple[Path, ...]
    remembered_in: Path | None
    """The file for new host keys; None for none."""
    strict: str
    """ssh's StrictHostKeyChecking."""
    hash_names: bool
    identities: tuple[Path, ...]
    certificates: tuple[Path, ...]
    agent: Path | None
    """The socket of the agent; None for none."""
    identities_only: bool
    connect_timeout_s: float
    jumps: tuple[tuple[str, ...], ...] = ()
    """The `ssh` arguments of its jump hosts, in their order."""
    proxy_command: str = ""
    """A shell command whose standard streams lead to the server; "" for none."""


def last(variables: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the value of the last of these variables that is set, as text; None if none is."""
    for name in reversed(names):
        value = variables.get(name)
        if value not in (None, ""):
            return str(value)
    return None


def arguments_for(host: str, variables: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the `ssh` arguments for a host's connection variables.

    The first mention of an option wins, as in Ansible.
    """
    arguments = shlex.split(str(variables.get("ansible_ssh_args", "")))
    for option, names in _OPTIONS.items():
        value = _option_value(option, last(variables, names))
        if value is not None:
            arguments += ["-o", f'{option}="{value}"']
    for name in _MORE_ARGUMENTS:
        arguments += shlex.split(str(variables.get(name, "")))
    return (*arguments, "--", last(variables, ADDRESS) or host)


def _option_value(option: str, value: str | None) -> str | None:
    """Return the value of an `ssh` option for the value of its variable; None if it is not set."""
    if option == "ConnectTimeout":
        return value or f"{SSH_TIMEOUT_S:.0f}"
    if option == "StrictHostKeyChecking":
        if str(value).lower() in ("false", "no", "0", "off"):
            return "no"
        return None
    if option == "IdentityFile" and value is not None:
        return str(Path(value).expanduser())
    return value


def resolve(arguments: Sequence[str]) -> Target:
    """Ask `ssh -G`, which reads ssh_config with its Include and Match. Raises UsageError."""
    options = _ssh_options(arguments)
    return _target(options, arguments)


def _ssh_options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each option in the output of `ssh -G`. Raises UsageError."""
    try:
        with _ASKED_AT_ONCE:
            done = subprocess.run(
                ["ssh", "-G", *arguments],
                capture_output=True,
                text=True,
                timeout=SSH_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
    except FileNotFoundError:
        raise UsageError(
            "this machine has no `ssh` command", "install the OpenSSH client"
        ) from None
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"`ssh -G` did not end within {SSH_TIMEOUT_S:.0f} s", "check Match exec in ssh_config"
        ) from None
    if done.returncode:
        raise UsageError(f"ssh does not accept these options: {done.stderr.strip()[-300:]}")
    options: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        options.setdefault(name, []).append(value)
    return options


def _target(options: Mapping[str, Sequence[str]], arguments: Sequence[str]) -> Target:
    option = {name: values[0] for name, values in options.items()}
    users = _files(option.get("userknownhostsfile", "none"))
    machines = _files(option.get("globalknownhostsfile", "none"))
    remembered_in = None
    if users:
        remembered_in = users[0]

    tokens = _tokens(option, arguments[-1])
    identities = _filled_in(options.get("identityfile", ()), tokens)
    certificates = _filled_in(options.get("certificatefile", ()), tokens)
    if not certificates:
        certificates = [path.with_name(f"{path.name}-cert.pub") for path in identities]

    timeout_s = SSH_TIMEOUT_S
    timeout = option.get("connecttimeout", "none")
    if timeout not in ("none", "0"):
        timeout_s = float(timeout)
    command = option.get("proxycommand", "none")
    if command == "none":
        command = ""

    return Target(
        host=option["hostname"],
        port=int(option["port"]),
        user=option["user"],
        key_name=option.get("hostkeyalias", ""),
        known_hosts=(*users, *machines),
        remembered_in=remembered_in,
        strict=option.get("stricthostkeychecking", "ask"),
        hash_names=option.get("hashknownhosts") == "yes",
        identities=tuple(filter(_stands, identities)),
        certificates=tuple(certificates),
        agent=_agent(option.get("identityagent", "SSH_AUTH_SOCK")),
        identities_only=option.get("identitiesonly") == "yes",
        connect_timeout_s=timeout_s,
        jumps=_jumps(option.get("proxyjump", "none"), arguments),
        proxy_command=command,
    )


def _jumps(jump: str, arguments: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the `ssh` arguments of each jump host in ProxyJump; it inherits only our `-F`."""
    if jump == "none":
        return ()
    config: list[str] = []
    for at, word in enumerate(arguments):
        if word == "-F":
            config += arguments[at : at + 2]
    return tuple((*config, *_hop(hop)) for hop in jump.split(","))


def _files(names: str) -> list[Path]:
    """Split a list of unquoted files: a word that does not begin a path continues one."""
    found = []
    for name in re.split(r" (?=[/~]|none)", names):
        if name != "none":
            found.append(Path(name))
    return found


def _stands(identity: Path) -> bool:
    """Whether this key, or its public half, exists: an agent may hold the private half."""
    return identity.is_file() or identity.with_name(identity.name + ".pub").is_file()


def _tokens(option: Mapping[str, str], asked_for: str) -> dict[str, str]:
    """Return the values of the tokens in file names, by the letter after their `%`.

    **Source:** ssh_config(5), "TOKENS".
    """
    our_name = socket.gethostname()
    return {
        "%": "%",
        "d": home_directory(),
        "h": option["hostname"],
        "i": str(os.getuid()),
        "k": option.get("hostkeyalias", asked_for),
        "L": our_name.split(".")[0],
        "l": our_name,
        "n": asked_for,
        "p": option["port"],
        "r": option["user"],
        "u": user_name(),
    }


def _filled_in(names: Sequence[str], tokens: Mapping[str, str]) -> list[Path]:
    """Return key files with variables and tokens filled in: `ssh -G` shows them as written.

    **Source:** ssh_config(5), "TOKENS" and "ENVIRONMENT VARIABLES".
    """
    paths = []
    for name in names:
        name = re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], found[0]), name)
        name = re.sub(r"^~(?=/|$)", home_directory(), name)
        name = re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), name)
        paths.append(Path(name).expanduser())
    return paths


def _agent(named: str) -> Path | None:
    """Return the agent's socket, None for none.

    **Source:** ssh_config(5), IdentityAgent: a socket, a variable after a `$`, or a word.
    """
    if variable := re.fullmatch(r"\$(\w+)|(SSH_AUTH_SOCK)", named):
        named = os.environ.get(variable[1] or variable[2], "")
    if named in ("", "none"):
        return None
    return Path(named)


def _hop(text: str) -> tuple[str, ...]:
    """Return the `ssh` arguments of `[USER@]HOST[:PORT]` or an `ssh://` URI.

    **Source:** ssh_config(5), ProxyJump.
    """
    found = re.fullmatch(r"(?:ssh://)?(?:(.+)@)?(\[[^]]+\]|[^:\[\]]+)(?::(\d+))?/?", text)
    if found is None:
        return "--", text.strip("[]")
    user, host, port = found.groups()
    arguments: list[str] = []
    if user:
        arguments += ["-l", user]
    if port:
        arguments += ["-p", port]
    return (*arguments, "--", host.strip("[]"))
