"""Sends commands to nodes, and checks the effect: a reply alone does not prove it.

A node is addressed by its name, so a command is refused if several processes answer to it.

**Source:** celery 5.7.0 `worker/control.py`: rate_limit, pool_grow, pool_shrink, add_consumer,
cancel_consumer, revoke, shutdown (which is not answered).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from runbooks.broker.nodes.answers import rate_limits_in
from runbooks.broker.nodes.control import answers_to, remote
from runbooks.broker.server.connection import connect
from runbooks.core.errors import NodesSilent, RunbookError
from runbooks.core.wording import counted

_TIMEOUT_S = 2.0
_SHOWS_S = 15.0
_PAUSE_S = 0.2
_IDS_AT_ONCE = 500
_REVOKING_S = 30.0
"""Long, because a node asks the result backend for each id before it answers."""
_SEE = "see its state: inv workers NODE"


class OneNode:
    """Addresses a node that alone answers to its name."""

    def __init__(self, mailbox: Any, name: str) -> None:
        self.mailbox = mailbox
        self.name = name

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return its answer. Raises NodesSilent if there is none."""
        one = {self.name: 1}
        answers = answers_to(self.mailbox, one, command, _TIMEOUT_S, arguments)
        if not answers[self.name]:
            raise NodesSilent(f"{self.name} no longer answers {command}", _SEE)
        return answers[self.name][0]

    def tell(self, command: str, **arguments: Any) -> None:
        """Send a command. Raises RunbookError with the node's refusal, or if it does not answer."""
        replies = self.mailbox.ask(
            [self.name],
            command,
            1,
            _TIMEOUT_S,
            arguments,
        )
        said = next((reply[self.name] for reply in replies if self.name in reply), None)
        if isinstance(said, dict) and "ok" in said:
            return
        why = "it does not answer"
        if isinstance(said, dict):
            why = str(said.get("error"))
        raise RunbookError(f"{self.name} did not run {command}: {why}", _SEE)

    def shows(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait for the effect. Raises RunbookError if it does not show in time."""
        deadline = time.monotonic() + _SHOWS_S
        while not is_so():
            if time.monotonic() >= deadline:
                problem = f"{self.name} accepted it, but a second look does not show {what}"
                raise RunbookError(problem, _SEE)
            time.sleep(_PAUSE_S)

    def rate_limit(self, task: str) -> str:
        """Return the rate limit of a task, "" for none.

        Raises RunbookError if the node does not register the task.
        """
        limits = rate_limits_in(self.ask("registered"))
        if task not in limits:
            raise RunbookError(f"{self.name} does not register {task}", _SEE)
        return limits[task]

    def size(self) -> int:
        """Return the size of its pool. Raises RunbookError if it is not a prefork pool."""
        pool = self.ask("stats").get("pool")
        processes = None
        if isinstance(pool, dict):
            processes = pool.get("processes")
        if not isinstance(processes, list):
            raise RunbookError(f"the pool of {self.name} cannot be resized: not prefork", _SEE)
        return len(processes)

    def queues(self) -> frozenset[str]:
        """Return the queues that it consumes."""
        queues = self.ask("active_queues") or ()
        return frozenset(queue["name"] for queue in queues)


@contextmanager
def one_node(
    url: str,
    options: Mapping[str, Any],
    name: str,
) -> Iterator[OneNode]:
    """Open the node of this name.

    Raises NodesSilent if it does not answer, RunbookError if several do.
    """
    with _mailbox(url, options) as mailbox:
        answering = _answering(mailbox, name)
        if not answering:
            raise NodesSilent(f"{name} does not answer; nothing was changed on it", _SEE)
        if answering > 1:
            why = f"{answering} processes answer to {name}, and each would do it"
            advice = "end all but one of them first"
            raise RunbookError(f"{why}; nothing was changed on them", advice)
        yield OneNode(mailbox, name)


@contextmanager
def _mailbox(url: str, options: Mapping[str, Any]) -> Iterator[Any]:
    own = dict(options)
    with connect(url, own) as client, remote(url, own, client) as mailbox:
        yield mailbox


def _answering(mailbox: Any, name: str) -> int:
    return sum(name in reply for reply in mailbox.ask_all("ping", _TIMEOUT_S))


def shut_down(url: str, options: Mapping[str, Any], name: str) -> str:
    """Shut a node down once its tasks have ended; return what was seen.

    Raises RunbookError if it still answers.
    """
    with one_node(url, options, name) as node:
        pid = node.ask("stats").get("pid")
        running = len(node.ask("active"))
        node.mailbox.cast([name], "shutdown")
        deadline = time.monotonic() + _SHOWS_S
        while True:
            answers = answers_to(node.mailbox, {name: 1}, "stats", _TIMEOUT_S)
            if not answers[name]:
                break
            if answers[name][0].get("pid") != pid:
                ended = "it ended, and something has started it again"
                return f"{ended}: it answers from another process"
            if time.monotonic() >= deadline:
                raise RunbookError(f"{name} was asked to shut down, but still answers", _SEE)
            time.sleep(_PAUSE_S)
    seen = "it takes no more messages and no longer answers"
    if running:
        seen += f"; it ends after the tasks that ran on it ({running:,})"
    return seen


def revoke(url: str, options: Mapping[str, Any], ids: Sequence[str]) -> str:
    """Let all nodes discard tasks that they have not started; return what was seen.

    Raises RunbookError if a node did not remember them.
    """
    with _mailbox(url, options) as mailbox:
        for first in range(0, len(ids), _IDS_AT_ONCE):
            some = list(ids[first : first + _IDS_AT_ONCE])
            _ask_all(mailbox, "revoke", {"task_id": some})
        answers = _ask_all(mailbox, "revoked", {})
    lacking = sorted(name for name, revoked in answers if not set(ids) <= set(revoked))
    if lacking:
        raise RunbookError(f"{', '.join(lacking)} did not remember all revoked tasks", _SEE)
    them = "it" if len(ids) == 1 else "them"
    return f"{counted(len(answers), 'node')} will discard {them}"


def _ask_all(
    mailbox: Any,
    command: str,
    arguments: Mapping[str, Any],
) -> list[tuple[str, Any]]:
    """The answers of all processes. Raises NodesSilent if one did not answer, or none heard it."""
    replies = mailbox.ask_all(command, _REVOKING_S, arguments)
    if not replies:
        raise NodesSilent("no node answers", "start a worker first")
    if len(replies) < mailbox.heard:
        silent = counted(mailbox.heard - len(replies), "node")
        problem = f"{silent} did not answer, and may still run these tasks"
        raise NodesSilent(problem, _SEE)
    answers: list[tuple[str, Any]] = []
    for reply in replies:
        answers.extend(reply.items())
    return answers
