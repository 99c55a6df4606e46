"""The verbs that show what there is: queues, messages, the broker's server, workers, tasks, the
schedule.
"""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import FRESH, Flags, Said, asking, on_fleet, verb
from runbooks.cli.verbs.selection import IN_ONE_QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable

    from runbooks.core.errors import ExitCode
    from runbooks.engine.context import Session

_WATCH = "look again and again, every so often (e.g. 2s), until ^C"
_GREP = "only messages that hold this TEXT anywhere, in their bodies, too; case matters"


@verb(
    by_broker=True,
    by_application=True,
    hosts=False,
    positional=("queue",),
    optional=("queue",),
    queue="only this QUEUE, in detail",
    grep=_GREP,
    exact="read every message, not a sample of both ends",
    watch=_WATCH,
)
def queues(
    flags: Flags, queue: str | None = None, grep: str = "", exact: bool = False, watch: str = ""
) -> None:
    """Show every queue, or one in detail: depth, consumers, rates, time to drain, and what waits;
    changes nothing.
    """
    from runbooks.broker.views.queue_looks import Asked
    from runbooks.queues import queues as page

    asked = Asked(queue or "", grep, exact)
    on_fleet(
        flags, lambda session: page(session, asked, watch=watch), follow=bool(watch), only_read=True
    )


@verb(
    by_broker=True,
    by_application=True,
    hosts=False,
    positional=("queue",),
    selecting=IN_ONE_QUEUE,
    queue="the QUEUE",
    grep=_GREP,
    limit="show so many at most (default: 20)",
    full="show the whole envelope and body of each; nothing is unpickled",
    watch=_WATCH,
)
def messages(
    flags: Flags,
    queue: str,
    said: Said,
    grep: str = "",
    limit: int = 20,
    full: bool = False,
    watch: str = "",
) -> None:
    """Show messages of a queue, all or those that the flags mean, the next to run first; changes
    nothing.
    """

    def body(session: "Session") -> "ExitCode":
        from runbooks.broker.views.message_looks import Wanted
        from runbooks.core.errors import UsageError
        from runbooks.core.rules import from_flags
        from runbooks.messages import messages as page

        if limit < 1:
            raise UsageError(f"--limit {limit}: expected how many messages to show, 1 or more")
        rule = from_flags({flag: value for flag, value in said.items() if flag != "unacked"})
        wanted = Wanted(rule, grep, limit, full, said["unacked"])
        return page(session, queue, wanted)

    _shown(flags, watch, body)


@verb(by_broker=True, by_application=True, hosts=False, watch=_WATCH)
def broker(flags: Flags, watch: str = "") -> None:
    """Show what the Redis server tells of itself, and what it means for Celery; changes nothing."""
    from runbooks.server import server as page

    _shown(flags, watch, page)


@verb(by_broker=True, by_application=True, fresh=FRESH, watch=_WATCH)
def tasks(flags: Flags, fresh: bool = False, watch: str = "") -> None:
    """Show every task: its queue, limits, retries, who registers it, what runs and what failed;
    changes nothing.
    """
    from runbooks.tasks import tasks as page

    _shown(flags, watch, lambda session: page(asking(session, fresh=fresh)))


@verb(by_broker=True, positional=("id",), id="the task's ID", watch=_WATCH)
def task(flags: Flags, id: str, watch: str = "") -> None:
    """Show where one task is now, and what became of it; changes nothing."""
    from runbooks.task import task as page

    _shown(flags, watch, lambda session: page(session, id))


@verb(by_application=True, fresh=FRESH, watch=_WATCH)
def schedule(flags: Flags, fresh: bool = False, watch: str = "") -> None:
    """Show every entry of the schedule: where it leads, and when it was sent and is due; changes
    nothing.
    """
    from runbooks.schedule import schedule as page

    _shown(flags, watch, lambda session: page(asking(session, fresh=fresh)))


@verb(
    by_broker=True,
    by_application=True,
    positional=("node",),
    optional=("node",),
    node=(
        "only the nodes that this PATTERN fits, or several ('high*,low@web1'), in detail; asks no"
        " host"
    ),
    watch=_WATCH,
)
def workers(flags: Flags, node: str | None = None, watch: str = "") -> None:
    """Show every worker and beat, or what nodes hold, have done and are set to; changes nothing."""
    from runbooks.workers import nodes
    from runbooks.workers import workers as page

    _shown(flags, watch, (lambda session: nodes(session, node)) if node is not None else page)


def _shown(flags: Flags, watch: str, show: "Callable[[Session], ExitCode]") -> None:
    """Show a view, with `watch` again and again."""
    from runbooks.engine.watched import watched

    on_fleet(
        flags,
        lambda session: watched(session, watch, lambda: show(session)),
        follow=bool(watch),
        only_read=True,
    )
