"""The verbs: flags in, exit code out. The only room that knows Invoke's task machinery.

Everything heavy is imported when a verb runs, so that `inv --list` and `--help` are quick.
"""

from invoke.collection import Collection

from runbooks.verbs import archive
from runbooks.verbs.changing import clean_queues, install_cron, install_units, remediate, restart_workers
from runbooks.verbs.looking import diagnose, hosts, render, tail_logs, verify
from runbooks.verbs.monitoring import monitor
from runbooks.verbs.record import runs, show, undo
from runbooks.verbs.tasks import run_task

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
