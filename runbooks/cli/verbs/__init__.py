"""The verbs: flags in, exit code out. The only room that knows Invoke's task machinery.

Everything heavy is imported when a verb runs, so that `inv --list` and `--help` are quick.
"""

from invoke.collection import Collection

from runbooks.cli.verbs import archive
from runbooks.cli.verbs.changes import clean_queues, install_cron, install_units, remediate, restart_workers
from runbooks.cli.verbs.checks import diagnose, hosts, render, tail_logs, verify
from runbooks.cli.verbs.monitor import monitor
from runbooks.cli.verbs.runs import runs, show, undo
from runbooks.cli.verbs.tasks import run_task

namespace = Collection(
    clean_queues,
    diagnose,
    hosts,
    install_cron,
    install_units,
    monitor,
    remediate,
    render,
    restart_workers,
    run_task,
    runs,
    show,
    tail_logs,
    undo,
    verify,
)
namespace.add_collection(Collection.from_module(archive))
