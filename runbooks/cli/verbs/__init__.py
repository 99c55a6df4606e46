"""The verbs: flags in, exit code out. Only this room uses Invoke's tasks.

Large modules are imported when a verb runs, which keeps `inv --list` and `--help` fast.
"""

from invoke.collection import Collection

from runbooks.cli.verbs import archive
from runbooks.cli.verbs.adoption import adopt
from runbooks.cli.verbs.changes import (
    clean_queues,
    fix_imports,
    install_cron,
    install_units,
    remediate,
    restart_workers,
)
from runbooks.cli.verbs.checks import diagnose, explain, hosts, init, render, tail_logs, verify
from runbooks.cli.verbs.controls import consumer, pool, rate_limit, revoke, shutdown
from runbooks.cli.verbs.monitor import monitor
from runbooks.cli.verbs.runs import report, runs, show, undo
from runbooks.cli.verbs.shell import completion
from runbooks.cli.verbs.tasks import retry, run_task
from runbooks.cli.verbs.views import broker, messages, queues, schedule, task, tasks, workers

namespace = Collection(
    adopt,
    broker,
    clean_queues,
    completion,
    consumer,
    diagnose,
    explain,
    fix_imports,
    hosts,
    init,
    install_cron,
    install_units,
    messages,
    monitor,
    pool,
    queues,
    rate_limit,
    remediate,
    render,
    report,
    restart_workers,
    retry,
    revoke,
    run_task,
    runs,
    schedule,
    show,
    shutdown,
    tail_logs,
    task,
    tasks,
    undo,
    verify,
    workers,
)
namespace.add_collection(Collection.from_module(archive))
