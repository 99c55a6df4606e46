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

# The command holds "ready-$1", and never the word itself: sudo's refusals quote it. `id` costs a
# small host a millisecond: it is asked only of a user that the shell was to become, and never for
# root's.
_OURS = """echo "ready-$1 ${2:+$(id -u)} ${2:+${3:-$(id -u "$2")}}" >&2; exec /bin/sh -s"""


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
    token, asks = secrets.token_hex(8), f"asks-{secrets.token_hex(8)}"
    wanted_user = become.user if become else ""
    shell = [
        "/bin/sh",
        "-c",
        _OURS,
        "sh",
        token,
        wanted_user,
        *(["0"] if wanted_user == "root" else []),
    ]
    command = [*_sudo(become, asks), "--", *shell] if become else shell
    channel.exec_command(f"exec {shlex.join(command)}")
    began = time.monotonic()
    said = _Said(channel, deadline if become else min(deadline, began + _PATIENCE_S))
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
    runs_as, wanted = found[1], found[2]
    if wanted and runs_as and runs_as != wanted:
        raise HostUnreachable(
            f"its shell runs with uid {runs_as}, and not as {become.user if become else user} (uid"
            f" {wanted})",
            "does a ForceCommand of its sshd, or a wrapper in place of sudo, change the command?"
            f" `ssh {user}@…`",
            HostTrouble.OTHER_SHELL,
        )
    took_s = time.monotonic() - began
    told = " ".join(said.text[: found.start()].replace(asks, "").split())[-_SAID:]
    return f"after {took_s:.0f} s, in which it said: {told}" if took_s > _SLOW_S and told else ""


class _Said:
    """What a channel says on standard error until its shell is there."""

    def __init__(self, channel: paramiko.Channel, deadline: float) -> None:
        self._channel, self._deadline = channel, deadline
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
    flags = [
        flag for flag in become.flags if flag not in ("-n", "-S", "--non-interactive", "--stdin")
    ]
    ask = ["-n"] if become.password is None else ["-S", "-p", asks]
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
    told = re.sub(r"/bin/sh -c.*?-s( \S+)* *", "/bin/sh", " ".join(said.split()))[-_SAID:]
    if become is None or not ("sudo" in said or "/bin/sh" in said):
        told = told or f"it said nothing; try `ssh` there as {user}"
        return HostUnreachable(f"its shell ended with {channel.exit_status}: {told}")
    if become.password is None and "password" in said:
        advice = "pass --ask-become-pass, or set ansible_become_password"
    elif "tty" in said or "terminal" in said:
        advice = f"its sudoers has to say: Defaults:{user} !requiretty"
    else:
        allow = (
            f"{user} ALL=({become.user}) {'NOPASSWD: ' if become.password is None else ''}/bin/sh"
        )
        advice = f"its sudoers has to say: {allow}"
    return HostUnreachable(
        f"sudo refuses: {told or 'it said nothing'}", advice, HostTrouble.SUDO_REFUSED
    )


def _no_shell(channel: paramiko.Channel, user: str, said: str, waited_s: float) -> HostUnreachable:
    """What reads there in place of /bin/sh, if it tells: every shell knows the question, which
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
