"""The verbs that control nodes: rate limits, pools, consumers, shutdown, revoked tasks."""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import Flags, Said, on_fleet, verb
from runbooks.cli.verbs.selection import IN_ONE_QUEUE, IN_QUEUES

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.engine.context import Session

_NODES = "the nodes that match this PATTERN, or one of several: 'high*,low@web1'"
_SELECTING = {
    "queue": IN_QUEUES["queue"],
    **{flag: text for flag, text in IN_ONE_QUEUE.items() if flag != "malformed"},
}


@verb(
    changes=True,
    hosts=False,
    positional=("task", "rate"),
    task="the TASK's name",
    rate="the limit as Celery writes it: 10/s, 10/m, 10/h, or none",
    node=_NODES,
)
def rate_limit(flags: Flags, task: str, rate: str, node: str = "*") -> None:
    """Change the rate limit of a task on nodes, until they are restarted."""
    from runbooks.controls import rate_limit as page

    on_fleet(flags, lambda session: page(session, task, rate, node))


@verb(
    changes=True,
    hosts=False,
    positional=("node",),
    node=_NODES,
    grow="the number of processes to add",
    shrink="the number of processes to remove; only idle ones are removed",
)
def pool(flags: Flags, node: str, grow: int = 0, shrink: int = 0) -> None:
    """Add processes to prefork pools of nodes, or remove them, until the nodes are restarted."""
    from runbooks.controls import pool as page
    from runbooks.core.errors import UsageError

    def body(session: "Session") -> "ExitCode":
        if min(grow, shrink) < 0 or (grow and shrink):
            raise UsageError(
                "--grow and --shrink expect a number of processes, and exclude each other"
            )
        return page(session, node, grow - shrink)

    on_fleet(flags, body)


@verb(
    changes=True,
    hosts=False,
    positional=("node", "action", "queue"),
    node=_NODES,
    action="add or cancel",
    queue="the QUEUE",
)
def consumer(flags: Flags, node: str, action: str, queue: str) -> None:
    """Let nodes consume a queue (add), or stop that (cancel), until they are restarted."""
    from runbooks.controls import consumer as page

    on_fleet(flags, lambda session: page(session, node, action, queue))


@verb(changes=True, hosts=False, positional=("node",), node=_NODES)
def shutdown(flags: Flags, node: str) -> None:
    """Shut nodes down after their tasks have ended; this cannot be undone."""
    from runbooks.controls import shutdown as page

    on_fleet(flags, lambda session: page(session, node))


@verb(
    changes=True,
    hosts=False,
    positional=("ids",),
    optional=("ids",),
    selecting=_SELECTING,
    ids="the tasks with these IDs, separated by commas",
)
def revoke(flags: Flags, said: Said, ids: str | None = None) -> None:
    """Let all nodes discard tasks that have not begun, by id or by flags; this cannot be undone."""
    from runbooks.controls import revoke as page
    from runbooks.core.rules import from_flags

    def body(session: "Session") -> "ExitCode":
        names = tuple(dict.fromkeys(one.strip() for one in (ids or "").split(",") if one.strip()))
        return page(session, names, from_flags(said))

    on_fleet(flags, body)
