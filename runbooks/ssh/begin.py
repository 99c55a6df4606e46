"""Begin the shell of a host, through sudo if asked for.

A user's start file may start another shell instead of the command, and a ForceCommand may start
anything. Either could do harm with a script. So no script is sent before /bin/sh has printed a word
that only it can print.
"""

import re
import secrets
import shlex
import time
from contextlib import suppress

import paramiko

from runbooks.core.errors import HostTrouble, HostUnreachable
from runbooks.hosts.transport import Become

_CHUNK_BYTES = 65536
_SAID = 300
_PATIENCE_S = 10.0
"""How long start files may take before this tool asks which shell it is; sudo may take longer."""

_SLOW_S = 4.0

_OURS = """echo "ready-$1 ${2:+$(id -u)} ${2:+${3:-$(id -u "$2")}}" >&2; exec /bin/sh -s"""
"""The command contains "ready-$1", never the word itself, because sudo's refusals quote it.

`id` costs a small host a millisecond, so it is only called for the user of sudo, and not for root.
"""

_IGNORED_FLAGS = ("-n", "-S", "--non-interactive", "--stdin")
"""Flags about sudo's password prompt, which this tool sets itself."""


class WrongPassword(HostUnreachable):
    """sudo does not accept the password; another attempt could lock the account."""

    def __init__(self) -> None:
        super().__init__(
            "sudo does not accept the become password (tried once)",
            trouble=HostTrouble.SUDO_REFUSED,
        )


def begin_shell(
    channel: paramiko.Channel, user: str, become: Become | None, deadline: float
) -> str:
    """Begin a POSIX shell that reads its scripts from the channel and runs as the right user.

    `user` is the login, `deadline` a time of the monotonic clock. sudo's prompt is answered once:
    repeating a wrong password may lock the account. Returns how long the shell took and what was
    printed meanwhile, "" if it was fast or silent. Raises HostUnreachable, WrongPassword, and
    paramiko's errors.
    """
    token = secrets.token_hex(8)
    asks = f"asks-{secrets.token_hex(8)}"
    command = _command(token, asks, become)
    channel.exec_command(f"exec {shlex.join(command)}")

    began = time.monotonic()
    if become is None:
        deadline = min(deadline, began + _PATIENCE_S)
    said = _Said(channel, deadline)
    ready = re.compile(rf"ready-{token} (\d*) (\d*)\n")
    answered = 0
    while not (found := ready.search(said.text)):
        if become and become.password is not None and said.text.count(asks) > answered:
            if answered:
                raise WrongPassword
            channel.sendall(f"{become.password}\n".encode())
            answered = 1
        try:
            ended = said.more()
        except TimeoutError:
            raise _no_shell(channel, user, said.text, time.monotonic() - began) from None
        if ended:
            raise _refusal(channel, user, become, said.text.replace(asks, ""))

    if become:
        _check_user(found, user, become.user)
    took_s = time.monotonic() - began
    before = said.text[: found.start()].replace(asks, "")
    return _slowness(took_s, before)


def _command(token: str, asks: str, become: Become | None) -> list[str]:
    """Return the command whose shell prints the token, through sudo if `become` is given."""
    shell = ["/bin/sh", "-c", _OURS, "sh", token]
    if become is None:
        return [*shell, ""]
    shell.append(become.user)
    if become.user == "root":
        shell.append("0")
    return [*_sudo(become, asks), "--", *shell]


def _check_user(found: re.Match[str], user: str, wanted_user: str) -> None:
    """Raise HostUnreachable if the shell runs as another user than `wanted_user`."""
    runs_as = found[1]
    wanted = found[2]
    if not wanted or not runs_as or runs_as == wanted:
        return
    raise HostUnreachable(
        f"its shell runs with uid {runs_as}, not as {wanted_user} (uid {wanted})",
        "does a ForceCommand of its sshd, or a wrapper in place of sudo, change the command?"
        f" `ssh {user}@…`",
        HostTrouble.OTHER_SHELL,
    )


def _slowness(took_s: float, before: str) -> str:
    """Report a slow start, and its output `before` the shell was ready; "" if fast or silent."""
    output = " ".join(before.split())[-_SAID:]
    if took_s > _SLOW_S and output:
        return f"after {took_s:.0f} s, with this output: {output}"
    return ""


class _Said:
    """The standard error of a channel until its shell is ready."""

    def __init__(self, channel: paramiko.Channel, deadline: float) -> None:
        self._channel = channel
        self._deadline = deadline
        self.text = ""

    def more(self) -> bool:
        """Wait for more output; return whether it has ended. Raises TimeoutError."""
        self._channel.settimeout(max(0.1, self._deadline - time.monotonic()))
        chunk = self._channel.recv_stderr(_CHUNK_BYTES)
        self.text += chunk.decode(errors="replace")
        return not chunk


def _sudo(become: Become, asks: str) -> list[str]:
    """Return sudo's part of the command.

    **Source:** ansible-core 2.19 `plugins/become/sudo.py`: -H -S -n, without -n if it has a
    password.
    """
    flags = []
    for flag in become.flags:
        if flag not in _IGNORED_FLAGS:
            flags.append(flag)
    if become.password is None:
        ask = ["-n"]
    else:
        ask = ["-S", "-p", asks]
    return [become.exe, *flags, "-u", become.user, *ask]


def _refusal(
    channel: paramiko.Channel, user: str, become: Become | None, said: str
) -> HostUnreachable:
    """Say why there is no shell: the host or sudo refused it, or the connection was lost.

    **Source:** RFC 4254, 6.10: a lost connection leaves no exit status.
    """
    channel.status_event.wait(_PATIENCE_S)
    if channel.exit_status == -1:
        return HostUnreachable("the connection was lost")
    shortened = re.sub(r"/bin/sh -c.*?-s( \S+)* *", "/bin/sh", " ".join(said.split()))
    output = shortened[-_SAID:]
    of_sudo = "sudo" in said or "/bin/sh" in said
    if become is None or not of_sudo:
        output = output or f"no output; try `ssh` there as {user}"
        return HostUnreachable(f"its shell ended with exit code {channel.exit_status}: {output}")
    return HostUnreachable(
        f"sudo refuses: {output or 'no output'}",
        _sudo_advice(user, become, said),
        HostTrouble.SUDO_REFUSED,
    )


def _sudo_advice(user: str, become: Become, said: str) -> str:
    """Say how to make sudo run the shell, by its output."""
    if become.password is None and "password" in said:
        return "pass --ask-become-pass, or set ansible_become_password"
    if "tty" in said or "terminal" in said:
        return f"add to its sudoers: Defaults:{user} !requiretty"
    tag = ""
    if become.password is None:
        tag = "NOPASSWD: "
    return f"add to its sudoers: {user} ALL=({become.user}) {tag}/bin/sh"


def _no_shell(channel: paramiko.Channel, user: str, said: str, waited_s: float) -> HostUnreachable:
    """Ask which program answers instead of /bin/sh, with a question that any shell understands."""
    channel.sendall(b"echo $0 >&2\n")
    answer = _Said(channel, time.monotonic() + 2)
    with suppress(TimeoutError):
        while not answer.more():
            pass
    output = " ".join((said + answer.text).split())[-_SAID:]
    if not answer.text:
        return HostUnreachable(
            f"its shell was not ready after {waited_s:.0f} s, so no script was sent:"
            f" {output or 'no output'}",
            f"does a start file of {user} read its input, or does sudo wait for an answer? try"
            f" `ssh` there as {user}",
        )
    return HostUnreachable(
        f"another program than /bin/sh answers there, so no script was sent: {output}",
        f"does a start file of {user} start a shell (exec zsh)? It must not do so without a"
        " terminal",
        HostTrouble.OTHER_SHELL,
    )
