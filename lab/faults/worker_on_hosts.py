"""Faults of workers under systemd: processes of an earlier start, endless starts, other units."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts, until
from lab.faults.on_hosts import (
    LOW,
    PYTHON,
    WORKER,
    drop_in,
    named,
    one_more,
    until_listens,
)


@fault("worker.leaked_processes", "a stop with KillMode=process ended the shell that had started a worker alone",
       ground="fleet", touches="worker_low")  # fmt: skip
@contextmanager
def leaked_processes(ground: Hosts) -> Iterator[None]:
    worker = f"{PYTHON} -m celery -A printer_inventory worker -n old@%H -Q old -c 1 -l INFO"
    main = f"systemctl show -P MainPID {LOW}"
    with drop_in(
        ground,
        LOW,
        f"KillMode=process\nExecStart=\nExecStart=/bin/sh -c '{worker}; true'",
        restart=True,
    ):
        old = ground.as_root("web1", f"until pgrep -P $({main}); do sleep 0.1; done").strip()
        _until_ready(ground, old)
        ground.as_root("web1", f"systemctl stop {LOW}")
    try:
        _until_ready(ground, ground.as_root("web1", main).strip())
        yield
    finally:
        ground.as_root(
            "web1", f"kill -TERM {old}; while kill -0 {old} 2>/dev/null; do sleep 0.1; done"
        )


def _until_ready(ground: Hosts, pid: str) -> None:
    """Wait until a worker of web1 says that it is ready. Raises GroundError."""
    said = f"journalctl -o cat _PID={pid} | grep -c ' ready[.]' || :"
    until(lambda: ground.as_root("web1", said) != "0\n", f"the worker with pid {pid} to be ready")


fault(
    "worker.other_unit",
    "a unit of another owner runs one more worker",
    ground="fleet",
    touches="theirs",
)(one_more)


@fault("worker.starting", "a unit of Type=forking, which systemd waits for without end", ground="fleet",
       touches="worker_low theirs inventory")  # fmt: skip
@contextmanager
def starting(ground: Hosts) -> Iterator[None]:
    text = WORKER.replace("[Service]\n", "[Service]\nType=forking\nTimeoutStartSec=infinity\n")
    with named(ground, text, "start --no-block"):
        until_listens(ground, "worker_low@web1")
        yield
