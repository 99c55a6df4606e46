"""Tells nodes to do something, and looks whether it shows: a reply alone is no proof.

A node is told by its name, so it is refused where several processes answer to that.
**Source:** celery 5.7.0 `worker/control.py`: rate_limit, pool_grow, pool_shrink, add_consumer, cancel_consumer, revoke,
shutdown (which nobody answers).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from runbooks.broker.nodes.control import answers_to, rate_limits_in, remote
from runbooks.broker.server.connection import connect
from runbooks.core.errors import NodesSilent, RunbookError
from runbooks.core.wording import counted

_TIMEOUT_S = 2.0
_SHOWS_S = 15.0
_PAUSE_S = 0.2
_IDS_AT_ONCE = 500
_REVOKING_S = 30.0
"""For each id of a message a node asks the result backend before it answers."""


class OneNode:
    """A node that alone answers to its name."""

    def __init__(self, mailbox: Any, name: str) -> None:
        self.mailbox, self.name = mailbox, name

    def ask(self, command: str, **arguments: Any) -> Any:
        """Its answer. Raises NodesSilent where there is none."""
        answers = answers_to(self.mailbox, {self.name: 1}, command, _TIMEOUT_S, arguments)
        if not answers[self.name]:
            raise NodesSilent(f"{self.name} does not answer {command} any more", _SEE)
        return answers[self.name][0]

    def tell(self, command: str, **arguments: Any) -> None:
        """Let it do something. Raises RunbookError with what it says against it, or where it says nothing."""
        replies = self.mailbox.ask([self.name], command, 1, _TIMEOUT_S, arguments)
        said = next((reply[self.name] for reply in replies if self.name in reply), None)
        if not isinstance(said, dict) or "ok" not in said:
            why = said.get("error") if isinstance(said, dict) else "it does not answer"
            raise RunbookError(f"{self.name} did not do it ({command}): {why}", _SEE)

    def shows(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until it shows. Raises RunbookError where it does not in time."""
        deadline = time.monotonic() + _SHOWS_S
        while not is_so():
            if time.monotonic() >= deadline:
                raise RunbookError(f"{self.name} was told, but a second look does not show {what}", _SEE)
            time.sleep(_PAUSE_S)

    def rate_limit(self, task: str) -> str:
        """The rate limit of a task, "" for none. Raises RunbookError where it does not know the task."""
        limits = rate_limits_in(self.ask("registered"))
        if task not in limits:
            raise RunbookError(f"{self.name} does not know {task}", _SEE)
        return limits[task]

    def size(self) -> int:
        """How many processes its pool has. Raises RunbookError where that is no prefork pool."""
        pool = self.ask("stats").get("pool")
        processes = pool.get("processes") if isinstance(pool, dict) else None
        if not isinstance(processes, list):
            raise RunbookError(f"the pool of {self.name} has no processes that it could be told of", _SEE)
        return len(processes)

    def queues(self) -> frozenset[str]:
        """The queues that it consumes."""
        return frozenset(queue["name"] for queue in self.ask("active_queues") or ())


_SEE = "inv workers NODE shows how it is"


@contextmanager
def one_node(url: str, options: Mapping[str, Any], name: str) -> Iterator[OneNode]:
    """The node of this name. Raises NodesSilent where it does not answer, RunbookError where several do."""
    with _mailbox(url, options) as mailbox:
        answering = _answering(mailbox, name)
        if not answering:
            raise NodesSilent(f"{name} does not answer; nothing was changed on it", _SEE)
        if answering > 1:
            why = f"{answering} processes answer to {name}, and each would do it; nothing was changed on them"
            raise RunbookError(why, "end those that are too many first")
        yield OneNode(mailbox, name)


@contextmanager
def _mailbox(url: str, options: Mapping[str, Any]) -> Iterator[Any]:
    own = dict(options)
    with connect(url, own) as client, remote(url, own, client) as mailbox:
        yield mailbox


def _answering(mailbox: Any, name: str) -> int:
    return sum(name in reply for reply in mailbox.ask_all("ping", _TIMEOUT_S))


def shut_down(url: str, options: Mapping[str, Any], name: str) -> str:
    """Let a node end once its tasks are done; what was seen of it. Raises RunbookError where it goes on answering."""
    with one_node(url, options, name) as node:
        pid, running = node.ask("stats").get("pid"), len(node.ask("active"))
        node.mailbox.cast([name], "shutdown")
        deadline = time.monotonic() + _SHOWS_S
        while told := answers_to(node.mailbox, {name: 1}, "stats", _TIMEOUT_S)[name]:
            if told[0].get("pid") != pid:
                return "it ended, and something has started it again: it answers from another process"
            if time.monotonic() >= deadline:
                raise RunbookError(f"{name} was told to end, and answers all the same", _SEE)
            time.sleep(_PAUSE_S)
    left = f"; {counted(running, 'task')} ran on it, and it ends after that" if running else ""
    return f"it takes no messages and answers no more{left}"


def revoke(url: str, options: Mapping[str, Any], ids: Sequence[str]) -> str:
    """Let all nodes discard tasks that they have not begun; what was seen. Raises RunbookError where one did not."""
    with _mailbox(url, options) as mailbox:
        for first in range(0, len(ids), _IDS_AT_ONCE):
            _told_all(mailbox, "revoke", _REVOKING_S, {"task_id": list(ids[first : first + _IDS_AT_ONCE])})
        answers = _told_all(mailbox, "revoked", _REVOKING_S, {})
    lacking = sorted(name for name, told in answers if not set(ids) <= set(told))
    if lacking:
        raise RunbookError(f"told, but {', '.join(lacking)} did not keep all of it", _SEE)
    return f"{counted(len(answers), 'node')} will discard {'it' if len(ids) == 1 else 'them'}"


def _told_all(mailbox: Any, command: str, timeout_s: float, arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What every process that heard it answered. Raises NodesSilent where one did not, or none heard it."""
    replies = mailbox.ask_all(command, timeout_s, arguments)
    if not replies:
        raise NodesSilent("no node answers, so nobody can be told", "start a worker first")
    if len(replies) < mailbox.heard:
        silent = counted(mailbox.heard - len(replies), "node")
        raise NodesSilent(f"{silent} heard it and did not answer, and may run these tasks all the same", _SEE)
    return [pair for reply in replies for pair in reply.items()]
