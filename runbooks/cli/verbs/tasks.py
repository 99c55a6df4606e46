"""The verbs that run tasks of the application: one, or again those that failed."""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import Flags, Said, on_fleet, run_verb, session_of, verb
from runbooks.cli.verbs.selection import IN_ARCHIVES
from runbooks.core.command import Command

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter
    from runbooks.engine.context import Session


@verb(
    by_application=True,
    positional=("name",),
    name=(
        "a task, a shortcut of the inventory's celery_shortcuts, with --entry an entry of the"
        " schedule, or with --status a task's id"
    ),
    entry=(
        "send the entry NAME of the schedule as beat would: its arguments, queue, priority, expiry"
        " and headers"
    ),
    args="its positional arguments, a JSON list",
    kwargs="its keyword arguments, a JSON object",
    queue="send it to this QUEUE instead of where the application routes it",
    priority="0 runs first, 9 last",
    result=(
        "what it has to return, as JSON: an object that its result holds, a pattern for a text, or"
        " an equal value"
    ),
    sync="watch it to its end (the default); with --status: go on watching",
    async_="send it, and do not watch it",
    timeout="how long to watch it, e.g. 30s or 2h (10m); it goes on afterwards",
    status="do not send anything: tell how the task with the id NAME stands",
    dry_run="only look whether it would be run; send nothing",
)
def run_task(
    flags: Flags,
    name: str,
    entry: bool = False,
    args: str | None = None,
    kwargs: str | None = None,
    queue: str | None = None,
    priority: str | None = None,
    result: str | None = None,
    sync: bool = False,
    async_: bool = False,
    timeout: str | None = None,
    status: bool = False,
    dry_run: bool = False,
) -> None:
    """Send a task through the application's own routes, once its way is seen to be whole, and watch
    it to its end.
    """
    mode = "async" if async_ else "sync" if sync else None
    asked = {"args": args, "kwargs": kwargs, "queue": queue, "priority": priority, "result": result,
             "timeout": timeout, "mode": mode}  # fmt: skip

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.core.errors import UsageError
        from runbooks.run_task import run_task as page
        from runbooks.run_task import task_status
        from runbooks.task_runs.call import requested

        others = [
            f"--{flag}"
            for flag in ("args", "kwargs", "queue", "priority", "result")
            if asked[flag] is not None
        ]
        if sync and async_:
            raise UsageError(
                "--sync and --async exclude each other",
                f"nothing was sent; see {Command('--help', 'run-task')}",
            )
        if async_ and result is not None:
            raise UsageError(
                "--result needs the end of the task, which --async does not wait for",
                "leave out one of them",
            )
        if entry and (given := [flag for flag in others if flag in ("--args", "--kwargs")]):
            raise UsageError(
                f"--entry sends the arguments of the entry, so {', '.join(given)} means nothing"
                " with it"
            )
        if status and (others or async_ or dry_run or entry):
            wrong = others + ["--async"] * async_ + ["--dry-run"] * dry_run + ["--entry"] * entry
            raise UsageError(f"--status sends nothing, so {', '.join(wrong)} means nothing with it")
        session = session_of(flags, reporter)
        call = requested(name, {} if status or entry else session.fleet.app.shortcuts, asked)
        if status:
            return task_status(session, name, watch_on=sync, timeout_s=call.timeout)
        return page(session, call, entry=name if entry else "", dry_run=dry_run)

    run_verb(flags, body)


_OF_ARCHIVES = {flag: told for flag, told in IN_ARCHIVES.items() if flag != "malformed"}


@verb(
    changes=True,
    hosts=False,
    selecting=_OF_ARCHIVES,
    archive=(
        "instead of failures the messages that the RUN has taken out of queues, all or those that"
        " the flags mean"
    ),
    exception="only failures with an exception whose name this PATTERN fits: e.g. '*Timeout'",
    since="only those that failed no longer ago than this DURATION, e.g. 2h",
    per_second="send no more than so many a second (default: 20)",
)
def retry(
    flags: Flags,
    said: Said,
    archive: str | None = None,
    exception: str = "*",
    since: str = "",
    per_second: int = 20,
) -> None:
    """Send tasks again that failed, as the result backend has them, or whose messages an archive
    has; with new ids.
    """
    from runbooks.core.errors import UsageError
    from runbooks.core.rules import from_flags, seconds
    from runbooks.retry import Asked
    from runbooks.retry import retry as page
    from runbooks.retry_archived import retry_archived

    def body(session: "Session") -> "ExitCode":
        try:
            since_s = seconds(since) if since else None
        except ValueError as error:
            raise UsageError(f"--since {since!r}: {error}", "for example --since 2h") from None
        if per_second < 1:
            raise UsageError(
                f"--per-second {per_second}: expected 1 or more", "leave it out for 20"
            )
        rule = from_flags(said)
        if archive is not None:
            if exception != "*" or since:
                raise UsageError(
                    "--exception and --since are about failures, so they mean nothing with"
                    " --archive"
                )
            return retry_archived(session, archive, rule, per_second)
        if given := [
            f"--{flag.replace('_', '-')}"
            for flag, value in said.items()
            if value and flag != "task"
        ]:
            raise UsageError(
                f"{', '.join(given)}: so are only messages of an archive chosen",
                "name its run with --archive RUN",
            )
        return page(session, Asked(rule.task if rule else "*", exception, since_s, per_second))

    on_fleet(flags, body)
