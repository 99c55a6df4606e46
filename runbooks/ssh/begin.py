"""Begins the shell of a host: through sudo where asked for, and trusted only when it says that it
is ours.

A start file of the user's may start another shell in place of the command, and a ForceCommand
anything at all: what they would make of a script nobody knows. So nothing is sent before /bin/sh
has said a word that only it can say.
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
"""How long start files may take before it is asked which shell is there; sudo may take all the time
there is.
"""

_SLOW_S = 4.0

_OURS = """echo "ready-$1 ${2:+$(id -u)} ${2:+${3:-$(id -u "$2")}}" >&2; exec /bin/sh -s"""
"""The command holds "ready-$1", and never the word itself: sudo's refusals quote it.

`id` costs a small host a millisecond: only a user that the shell was to become is looked up, and
root never is.
"""

_IGNORED_FLAGS = ("-n", "-S", "--non-interactive", "--stdin")
"""Flags for sudo's question, which this tool answers in its own way."""


class WrongPassword(HostUnreachable):
    """sudo does not accept the password; trying it again could lock the account."""

    def __init__(self) -> None:
        super().__init__(
            "sudo does not accept the become password (tried once)",
            trouble=HostTrouble.SUDO_REFUSED,
        )


def begin_shell(
    channel: paramiko.Channel, user: str, become: Become | None, deadline: float
) -> str:
    """Begin a POSIX shell that reads its scripts from the channel, as the user that they are to run
    as.

    `user` is who logged in, `deadline` of the monotonic clock. sudo's question is answered once: a
    wrong password that is repeated may lock the account. Returns how long it took and what was said
    meanwhile, "" where it took no time or was silent. Raises HostUnreachable, WrongPassword, and
    what paramiko raises.
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
    """The command whose shell says the token; through sudo where `become` asks for it."""
    shell = ["/bin/sh", "-c", _OURS, "sh", token]
    if become is None:
        return [*shell, ""]
    shell.append(become.user)
    if become.user == "root":
        shell.append("0")
    return [*_sudo(become, asks), "--", *shell]


def _check_user(found: re.Match[str], user: str, wanted_user: str) -> None:
    """Raise HostUnreachable where the shell runs as another user than `wanted_user`."""
    runs_as = found[1]
    wanted = found[2]
    if not wanted or not runs_as or runs_as == wanted:
        return
    raise HostUnreachable(
        f"its shell runs with uid {runs_as}, and not as {wanted_user} (uid {wanted})",
        "does a ForceCommand of its sshd, or a wrapper in place of sudo, change the command?"
        f" `ssh {user}@…`",
        HostTrouble.OTHER_SHELL,
    )


def _slowness(took_s: float, before: str) -> str:
    """What a shell that took its time said `before` it was there; "" of one that was fast."""
    told = " ".join(before.split())[-_SAID:]
    if took_s > _SLOW_S and told:
        return f"after {took_s:.0f} s, in which it said: {told}"
    return ""


class _Said:
    """What a channel says on standard error until its shell is there."""

    def __init__(self, channel: paramiko.Channel, deadline: float) -> None:
        self._channel = channel
        self._deadline = deadline
        self.text = ""

    def more(self) -> bool:
        """Wait for more; whether it has ended. Raises TimeoutError."""
        self._channel.settimeout(max(0.1, self._deadline - time.monotonic()))
        chunk = self._channel.recv_stderr(_CHUNK_BYTES)
        self.text += chunk.decode(errors="replace")
        return not chunk


def _sudo(become: Become, asks: str) -> list[str]:
    """**Source:** ansible-core 2.19 `plugins/become/sudo.py`: -H -S -n, but not -n where it has a
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
    """Why there is no shell: the host, or sudo, did not run it, or it is cut off.

    **Source:** RFC 4254, 6.10: of what was cut off there is no exit status.
    """
    channel.status_event.wait(_PATIENCE_S)
    if channel.exit_status == -1:
        return HostUnreachable("the connection was lost")
    shortened = re.sub(r"/bin/sh -c.*?-s( \S+)* *", "/bin/sh", " ".join(said.split()))
    told = shortened[-_SAID:]
    of_sudo = "sudo" in said or "/bin/sh" in said
    if become is None or not of_sudo:
        told = told or f"it said nothing; try `ssh` there as {user}"
        return HostUnreachable(f"its shell ended with {channel.exit_status}: {told}")
    return HostUnreachable(
        f"sudo refuses: {told or 'it said nothing'}",
        _sudo_advice(user, become, said),
        HostTrouble.SUDO_REFUSED,
    )


def _sudo_advice(user: str, become: Become, said: str) -> str:
    """What lets sudo run the shell, by what it said."""
    if become.password is None and "password" in said:
        return "pass --ask-become-pass, or set ansible_become_password"
    if "tty" in said or "terminal" in said:
        return f"its sudoers has to say: Defaults:{user} !requiretty"
    tag = ""
    if become.password is None:
        tag = "NOPASSWD: "
    return f"its sudoers has to say: {user} ALL=({become.user}) {tag}/bin/sh"


def _no_shell(channel: paramiko.Channel, user: str, said: str, waited_s: float) -> HostUnreachable:
    """What reads there in place of /bin/sh, if it says so: every shell knows the question, which
    changes nothing.
    """
    channel.sendall(b"echo $0 >&2\n")
    answer = _Said(channel, time.monotonic() + 2)
    with suppress(TimeoutError):
        while not answer.more():
            pass
    told = " ".join((said + answer.text).split())[-_SAID:]
    if not answer.text:
        return HostUnreachable(
            f"its shell did not begin within {waited_s:.0f} s, and was sent no script:"
            f" {told or 'nothing was said'}",
            f"does a start file of {user} read its input, or does sudo wait for somebody? try `ssh`"
            f" there as {user}",
        )
    return HostUnreachable(
        f"something else than /bin/sh answers there, and was sent no script: {told}",
        f"does a start file of {user} start a shell (exec zsh)? It must not where there is no"
        " terminal",
        HostTrouble.OTHER_SHELL,
    )
