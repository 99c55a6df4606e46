"""The verbs that send tasks of the application: `run-task` and `retry`."""

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
        "a task, or a shortcut of celery_shortcuts; with --entry an entry of the schedule, with"
        " --status the id of a task"
    ),
    entry=(
        "send the entry NAME of the schedule as beat would: with its arguments, queue, priority,"
        " expiry and headers"
    ),
    args="the positional arguments of the task, as a JSON list",
    kwargs="the keyword arguments of the task, as a JSON object",
    queue="send it to this QUEUE instead of following the application's routes",
    priority="the priority, from 0 (runs first) to 9 (runs last)",
    result=(
        "the expected result, as JSON: an object that the result must contain, a pattern for a"
        " string, or an equal value"
    ),
    sync="wait for the task to end (the default); with --status: keep watching it",
    async_="send it and do not wait",
    timeout="how long to wait, e.g. 30s or 2h (default: 10m); the task itself goes on",
    status="send nothing: show the state of the task with the id NAME",
    dry_run="only check whether the task would run; send nothing",
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
    """Check the way of a task, send it through the application's routes, and wait for its end."""
    mode = None
    if async_:
        mode = "async"
    elif sync:
        mode = "sync"
    asked = {
        "args": args,
        "kwargs": kwargs,
        "queue": queue,
        "priority": priority,
        "result": result,
        "timeout": timeout,
        "mode": mode,
    }

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
                "--result needs the end of the task, and --async does not wait for it",
                "remove one of them",
            )
        if entry and (given := [flag for flag in others if flag in ("--args", "--kwargs")]):
            raise UsageError(
                f"--entry sends the arguments of the entry, so it excludes {', '.join(given)}"
            )
        if status and (others or async_ or dry_run or entry):
            wrong = others + ["--async"] * async_ + ["--dry-run"] * dry_run + ["--entry"] * entry
            raise UsageError(f"--status sends nothing, so it excludes {', '.join(wrong)}")
        session = session_of(flags, reporter)
        call = requested(name, {} if status or entry else session.fleet.app.shortcuts, asked)
        if status:
            return task_status(session, name, watch_on=sync, timeout_s=call.timeout)
        return page(session, call, entry=name if entry else "", dry_run=dry_run)

    run_verb(flags, body)


_OF_ARCHIVES = {flag: text for flag, text in IN_ARCHIVES.items() if flag != "malformed"}


@verb(
    changes=True,
    hosts=False,
    selecting=_OF_ARCHIVES,
    archive=(
        "instead of failed tasks, send the messages archived by this RUN, all or those selected"
    ),
    exception="only failures whose exception's name matches this PATTERN, e.g. '*Timeout'",
    since="only failures of the last DURATION, e.g. 2h",
    per_second="the most tasks to send in a second (default: 20)",
)
def retry(
    flags: Flags,
    said: Said,
    archive: str | None = None,
    exception: str = "*",
    since: str = "",
    per_second: int = 20,
) -> None:
    """Send failed tasks of the result backend, or archived messages, again with new ids."""
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
            raise UsageError(f"--per-second {per_second}: expected 1 or more", "omit it for 20")
        rule = from_flags(said)
        if archive is not None:
            if exception != "*" or since:
                raise UsageError(
                    "--exception and --since select failed tasks, so they exclude --archive"
                )
            return retry_archived(session, archive, rule, per_second)
        if given := [
            f"--{flag.replace('_', '-')}"
            for flag, value in said.items()
            if value and flag != "task"
        ]:
            raise UsageError(
                f"{', '.join(given)} can only select messages of an archive",
                "name its run with --archive RUN",
            )
        return page(session, Asked(rule.task if rule else "*", exception, since_s, per_second))

    on_fleet(flags, body)
