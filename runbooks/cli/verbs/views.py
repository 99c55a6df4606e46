"""The verbs that show queues, messages, the broker, workers, tasks and the schedule."""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import FRESH, Flags, Said, asking, on_fleet, verb
from runbooks.cli.verbs.selection import IN_ONE_QUEUE

if TYPE_CHECKING:
    from collections.abc import Callable

    from runbooks.core.errors import ExitCode
    from runbooks.engine.context import Session

_WATCH = "repeat after this DURATION (e.g. 2s), until ^C"
_GREP = "only messages that contain this TEXT, in the envelope or the body; case matters"


@verb(
    by_broker=True,
    by_application=True,
    hosts=False,
    positional=("queue",),
    optional=("queue",),
    queue="show only this QUEUE, in detail",
    grep=_GREP,
    exact="read every message, not only a sample of both ends",
    watch=_WATCH,
)
def queues(
    flags: Flags, queue: str | None = None, grep: str = "", exact: bool = False, watch: str = ""
) -> None:
    """Show queues: depth, consumers, rates, time to drain, waiting tasks; changes nothing."""
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
    limit="the most messages to show (default: 20)",
    full="show the whole envelope and body; pickled bodies are not unpickled",
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
    """Show messages of a queue, all or those selected, the next to run first; changes nothing."""

    def body(session: "Session") -> "ExitCode":
        from runbooks.broker.views.message_looks import Wanted
        from runbooks.core.errors import UsageError
        from runbooks.core.rules import from_flags
        from runbooks.messages import messages as page

        if limit < 1:
            raise UsageError(f"--limit {limit}: expected 1 or more")
        rule = from_flags({flag: value for flag, value in said.items() if flag != "unacked"})
        wanted = Wanted(rule, grep, limit, full, said["unacked"])
        return page(session, queue, wanted)

    _shown(flags, watch, body)


@verb(by_broker=True, by_application=True, hosts=False, watch=_WATCH)
def broker(flags: Flags, watch: str = "") -> None:
    """Show facts of the Redis server, and what they mean for Celery; changes nothing."""
    from runbooks.server import server as page

    _shown(flags, watch, page)


@verb(by_broker=True, by_application=True, fresh=FRESH, watch=_WATCH)
def tasks(flags: Flags, fresh: bool = False, watch: str = "") -> None:
    """Show tasks: queue, limits, retries, nodes, what runs and what failed; changes nothing."""
    from runbooks.tasks import tasks as page

    _shown(flags, watch, lambda session: page(asking(session, fresh=fresh)))


@verb(by_broker=True, positional=("id",), id="the ID of the task", watch=_WATCH)
def task(flags: Flags, id: str, watch: str = "") -> None:
    """Show where a task is now, and its result; changes nothing."""
    from runbooks.task import task as page

    _shown(flags, watch, lambda session: page(session, id))


@verb(by_application=True, fresh=FRESH, watch=_WATCH)
def schedule(flags: Flags, fresh: bool = False, watch: str = "") -> None:
    """Show the schedule: way, last and next time of each entry; changes nothing."""
    from runbooks.schedule import schedule as page

    _shown(flags, watch, lambda session: page(asking(session, fresh=fresh)))


@verb(
    by_broker=True,
    by_application=True,
    positional=("node",),
    optional=("node",),
    node=(
        "show only nodes that match this PATTERN, or one of several ('high*,low@web1'), in detail;"
        " contacts no host"
    ),
    watch=_WATCH,
)
def workers(flags: Flags, node: str | None = None, watch: str = "") -> None:
    """Show workers and beats, or details of nodes; changes nothing."""
    from runbooks.workers import nodes
    from runbooks.workers import workers as page

    _shown(flags, watch, (lambda session: nodes(session, node)) if node is not None else page)


def _shown(flags: Flags, watch: str, show: "Callable[[Session], ExitCode]") -> None:
    """Show a view, with `watch` repeatedly."""
    from runbooks.engine.watched import watched

    on_fleet(
        flags,
        lambda session: watched(session, watch, lambda: show(session)),
        follow=bool(watch),
        only_read=True,
    )
