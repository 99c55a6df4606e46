"""Faults of programs of a supervisord, in a sandbox that has one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Sandbox, run, text_of, until

_PROGRAM = """\
[program:legacy]
command=/bin/sh -c "set -a; . {env}; exec {python} -m celery -A printer_inventory worker {options}"
directory={patient}
stopwaitsecs=10
redirect_stderr=true
stdout_logfile={log}
"""


@fault("program.stop_loses_tasks", "stopwaitsecs is 10", ground="supervisor", touches="programs")
@contextmanager
def stop_loses_tasks(ground: Sandbox) -> Iterator[None]:
    root, log = ground.world.root, ground.world.root / "app/logs/legacy.log"
    conf = root / "root/etc/supervisor/conf.d/legacy.conf"
    text = _PROGRAM.format(
        env=ground.world.env_file,
        options="-n legacy@sandbox -Q legacy -c 1 -l INFO",
        python=sys.executable,
        patient=ground.world.path / "lab/patient",
        log=log,
    )
    ctl = [
        str(ground.world.path / ".venv/bin/supervisorctl"),
        "-c",
        str(root / "supervisord.conf"),
        "update",
    ]
    daemon = "          - name: worker_daemon\n"
    worker = "          - {name: legacy, queues: [legacy], service: legacy}\n"
    conf.write_text(text)
    try:
        run(ctl, root, ground.world.environment)
        until(lambda: log.exists() and b" ready." in log.read_bytes(), "the program")
        with text_of(ground.inventory, (daemon, worker + daemon)):
            yield
    finally:
        conf.unlink()
        run(ctl, root, ground.world.environment)
