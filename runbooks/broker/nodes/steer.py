"""Tells nodes to do something, and looks whether it shows: a reply alone is no proof.

A node is addressed by its name, so it is refused where several processes answer to that.

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
"""For each id of a message a node asks the result backend before it answers."""
_SEE = "inv workers NODE shows how it is"


class OneNode:
    """A node that alone answers to its name."""

    def __init__(self, mailbox: Any, name: str) -> None:
        self.mailbox = mailbox
        self.name = name

    def ask(self, command: str, **arguments: Any) -> Any:
        """Its answer. Raises NodesSilent where there is none."""
        one = {self.name: 1}
        answers = answers_to(self.mailbox, one, command, _TIMEOUT_S, arguments)
        if not answers[self.name]:
            raise NodesSilent(f"{self.name} does not answer {command} any more", _SEE)
        return answers[self.name][0]

    def tell(self, command: str, **arguments: Any) -> None:
        """Let it do something. Raises RunbookError with what it says against it, or where it says
        nothing.
        """
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
        raise RunbookError(f"{self.name} did not do it ({command}): {why}", _SEE)

    def shows(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until it shows. Raises RunbookError where it does not in time."""
        deadline = time.monotonic() + _SHOWS_S
        while not is_so():
            if time.monotonic() >= deadline:
                problem = f"{self.name} was told, but a second look does not show {what}"
                raise RunbookError(problem, _SEE)
            time.sleep(_PAUSE_S)

    def rate_limit(self, task: str) -> str:
        """The rate limit of a task, "" for none. Raises RunbookError where it does not know the
        task.
        """
        limits = rate_limits_in(self.ask("registered"))
        if task not in limits:
            raise RunbookError(f"{self.name} does not know {task}", _SEE)
        return limits[task]

    def size(self) -> int:
        """How many processes its pool has. Raises RunbookError where it is not a prefork pool."""
        pool = self.ask("stats").get("pool")
        processes = None
        if isinstance(pool, dict):
            processes = pool.get("processes")
        if not isinstance(processes, list):
            problem = f"the pool of {self.name} has no processes that it could be told of"
            raise RunbookError(problem, _SEE)
        return len(processes)

    def queues(self) -> frozenset[str]:
        """The queues that it consumes."""
        queues = self.ask("active_queues") or ()
        return frozenset(queue["name"] for queue in queues)


@contextmanager
def one_node(
    url: str,
    options: Mapping[str, Any],
    name: str,
) -> Iterator[OneNode]:
    """The node of this name. Raises NodesSilent where it does not answer, RunbookError where
    several do.
    """
    with _mailbox(url, options) as mailbox:
        answering = _answering(mailbox, name)
        if not answering:
            raise NodesSilent(f"{name} does not answer; nothing was changed on it", _SEE)
        if answering > 1:
            why = f"{answering} processes answer to {name}, and each would do it"
            advice = "end those that are too many first"
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
    """Let a node end once its tasks are done; what was seen of it. Raises RunbookError where it
    goes on answering.
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
                raise RunbookError(f"{name} was told to end, and answers all the same", _SEE)
            time.sleep(_PAUSE_S)
    seen = "it takes no messages and answers no more"
    if running:
        seen += f"; {counted(running, 'task')} ran on it, and it ends after that"
    return seen


def revoke(url: str, options: Mapping[str, Any], ids: Sequence[str]) -> str:
    """Let all nodes discard tasks that they have not begun; what was seen. Raises RunbookError
    where one did not.
    """
    with _mailbox(url, options) as mailbox:
        for first in range(0, len(ids), _IDS_AT_ONCE):
            some = list(ids[first : first + _IDS_AT_ONCE])
            _ask_all(mailbox, "revoke", {"task_id": some})
        answers = _ask_all(mailbox, "revoked", {})
    lacking = sorted(name for name, revoked in answers if not set(ids) <= set(revoked))
    if lacking:
        raise RunbookError(f"told, but {', '.join(lacking)} did not keep all of it", _SEE)
    them = "it" if len(ids) == 1 else "them"
    return f"{counted(len(answers), 'node')} will discard {them}"


def _ask_all(
    mailbox: Any,
    command: str,
    arguments: Mapping[str, Any],
) -> list[tuple[str, Any]]:
    """What every process that heard it answered. Raises NodesSilent where one did not, or none
    heard it.
    """
    replies = mailbox.ask_all(command, _REVOKING_S, arguments)
    if not replies:
        raise NodesSilent("no node answers, so nobody can be told", "start a worker first")
    if len(replies) < mailbox.heard:
        silent = counted(mailbox.heard - len(replies), "node")
        problem = f"{silent} heard it and did not answer, and may run these tasks all the same"
        raise NodesSilent(problem, _SEE)
    answers: list[tuple[str, Any]] = []
    for reply in replies:
        answers.extend(reply.items())
    return answers
