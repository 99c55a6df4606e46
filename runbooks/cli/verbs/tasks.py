"""The verb that runs a task of the application."""

from typing import TYPE_CHECKING

from runbooks.cli.verbs.common import Flags, run_verb, session_of, verb
from runbooks.core.command import Command

if TYPE_CHECKING:
    from runbooks.core.errors import ExitCode
    from runbooks.core.reporter import Reporter


@verb(
    positional=("name",),
    name="a task, a shortcut of the inventory's celery_shortcuts, or with --status a task's id",
    args="its positional arguments, a JSON list",
    kwargs="its keyword arguments, a JSON object",
    queue="send it to this QUEUE instead of where the application routes it",
    priority="0 runs first, 9 last",
    sync="watch it to its end (the default); with --status: go on watching",
    async_="send it, and do not watch it",
    timeout="how long to watch it, e.g. 30s or 2h (10m); it goes on afterwards",
    status="do not send anything: tell how the task with the id NAME stands",
    dry_run="only look whether it would be run; send nothing",
)
def run_task(
    flags: Flags,
    name: str,
    args: str | None = None,
    kwargs: str | None = None,
    queue: str | None = None,
    priority: str | None = None,
    sync: bool = False,
    async_: bool = False,
    timeout: str | None = None,
    status: bool = False,
    dry_run: bool = False,
) -> None:
    """Send a task through the application's own routes, once its way is seen to be whole, and watch it to its end."""
    mode = "async" if async_ else "sync" if sync else None
    asked = {"args": args, "kwargs": kwargs, "queue": queue, "priority": priority, "timeout": timeout, "mode": mode}

    def body(reporter: "Reporter") -> "ExitCode":
        from runbooks.core.errors import UsageError
        from runbooks.run_task import run_task as page
        from runbooks.run_task import task_status
        from runbooks.task_runs.call import requested

        others = [f"--{flag}" for flag in ("args", "kwargs", "queue", "priority") if asked[flag] is not None]
        if sync and async_:
            raise UsageError(
                "--sync and --async exclude each other", f"nothing was sent; see {Command('--help', 'run-task')}"
            )
        if status and (others or async_ or dry_run):
            wrong = others + ["--async"] * async_ + ["--dry-run"] * dry_run
            raise UsageError(f"--status sends nothing, so {', '.join(wrong)} means nothing with it")
        session = session_of(flags, reporter)
        call = requested(name, session.fleet.app.shortcuts if not status else {}, asked)
        if status:
            return task_status(session, name, watch_on=sync, timeout_s=call.timeout)
        return page(session, call, dry_run=dry_run)

    run_verb(flags, body)
