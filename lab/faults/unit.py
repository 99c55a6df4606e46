"""Faults of units: files of systemd's that differ, are missing or of another owner, and what systemd
makes of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts, text_of, until
from lab.faults.on_hosts import (
    HIGH,
    LOW,
    LOW_UNIT,
    PYTHON,
    THEIRS,
    UNITS,
    WORKER,
    away,
    changed,
    drop_in,
    installed,
    kept,
    until_listens,
)

CRASHING = WORKER.replace("-c 1", "-c 1 --no-such-option")
_RELOAD = "systemctl daemon-reload"


def restarts(ground: Hosts, unit: str) -> int:
    """How often systemd has started a unit of web1 again by itself."""
    return int(ground.as_root("web1", f"systemctl show -P NRestarts {unit}"))


@fault(
    "unit.alias", "beat's unit is a link to a unit of another name", ground="fleet", touches="beat"
)
@contextmanager
def alias(ground: Hosts) -> Iterator[None]:
    ours, theirs = f"{UNITS}/celery-beat.service", f"{UNITS}/printer-beat.service"
    change = (
        f"systemctl disable --now celery-beat; mv {ours} {theirs}; ln -s {theirs} {ours};"
        f" {_RELOAD}; systemctl start printer-beat"
    )
    back = (
        f"systemctl stop printer-beat; rm {ours}; mv {theirs} {ours}; {_RELOAD}; systemctl enable"
        " --now celery-beat"
    )
    with changed(ground, "broker", change, back):
        yield


@fault("unit.comes_back", "a worker's unit of another owner, enabled and not started", ground="fleet",
       touches="theirs")  # fmt: skip
@contextmanager
def comes_back(ground: Hosts) -> Iterator[None]:
    with installed(ground, THEIRS, WORKER, "enable"):
        yield


@fault("unit.differs", "an edit in the unit file", ground="fleet", touches="worker_low")
@contextmanager
def differs(ground: Hosts) -> Iterator[None]:
    with (
        changed(ground, "web1", ":", _RELOAD),
        kept(ground, "web1", LOW_UNIT, f"sed -i s/^Restart=.*/Restart=no/ {LOW_UNIT}; {_RELOAD}"),
    ):
        yield


@fault(
    "unit.differs",
    "another queue in the unit file, and a restart",
    ground="fleet",
    touches="worker_low",
)
@contextmanager
def starts_otherwise(ground: Hosts) -> Iterator[None]:
    again = f"{_RELOAD}; systemctl restart {LOW}"
    with (
        changed(ground, "web1", ":", again),
        kept(
            ground,
            "web1",
            LOW_UNIT,
            f"sed -i s/--queues=low_priority/--queues=old/ {LOW_UNIT}; {again}",
        ),
    ):
        until_listens(ground, "worker_low@web1")
        yield


@fault(
    "unit.drop_in",
    "a drop-in that changes nothing of how the worker runs",
    ground="fleet",
    touches="worker_low",
)
@contextmanager
def harmless_drop_in(ground: Hosts) -> Iterator[None]:
    with drop_in(ground, LOW, "Nice=3"):
        yield


@fault("unit.drop_in", "a drop-in that takes a variable of the environment file away", ground="fleet",
       touches="worker_low")  # fmt: skip
@contextmanager
def without_a_variable(ground: Hosts) -> Iterator[None]:
    with drop_in(ground, LOW, "UnsetEnvironment=GLPI_TIMEOUT_S", restart=True):
        until_listens(ground, "worker_low@web1")
        yield


@fault(
    "unit.drop_in",
    "a drop-in in which ExecStart= starts another program",
    ground="fleet",
    touches="worker_low",
)
@contextmanager
def other_program(ground: Hosts) -> Iterator[None]:
    with drop_in(ground, LOW, "ExecStart=\nExecStart=/bin/sleep 1d", restart=True):
        until(
            lambda: "sleep" in ground.as_root("web1", f"systemctl show -P ExecStart {LOW}"),
            "sleep to run",
        )
        yield


@fault(
    "unit.drop_in",
    "a drop-in in which ExecStart= names another queue",
    ground="fleet",
    touches="worker_low",
)
@contextmanager
def other_queue(ground: Hosts) -> Iterator[None]:
    command = f"{PYTHON} -m celery -A printer_inventory worker -n worker_low@%H -Q old -c 1"
    with drop_in(ground, LOW, f"ExecStart=\nExecStart={command}", restart=True):
        until_listens(ground, "worker_low@web1")
        yield


@fault("unit.drop_in", "a drop-in in which ExecStart= has an unknown option: a crash loop, seen between two crashes",
       ground="fleet", touches="worker_low")  # fmt: skip
@contextmanager
def crash_loop(ground: Hosts) -> Iterator[None]:
    command = (
        f"{PYTHON} -m celery -A printer_inventory worker -n worker_low@%H -Q low_priority"
        " --no-such-option"
    )
    with drop_in(ground, LOW, f"ExecStart=\nExecStart={command}", restart=True):
        until(lambda: restarts(ground, LOW) >= 1, "a restart")
        yield


@fault("unit.forking", "a unit of another owner with Type=forking that systemd starts again and again",
       ground="fleet", touches="theirs worker_low")  # fmt: skip
@contextmanager
def forking(ground: Hosts) -> Iterator[None]:
    guessed = "[Unit]\nStartLimitIntervalSec=0\n\n[Service]\nType=forking\nTimeoutStartSec=1\n"
    text = WORKER.replace("[Service]\n", guessed).replace("RestartSec=2", "RestartSec=100ms")
    with installed(ground, THEIRS, text, "start --no-block"):
        until(lambda: restarts(ground, THEIRS) >= 3, "three restarts")
        yield


@fault(
    "unit.kill_mode",
    "a unit of another owner with KillMode=process",
    ground="fleet",
    touches="theirs worker_low",
)
@contextmanager
def kill_mode(ground: Hosts) -> Iterator[None]:
    text = WORKER.replace("[Service]\n", "[Service]\nKillMode=process\n")
    with installed(ground, THEIRS, text, "start"):
        until_listens(ground, "printers@web1")
        try:
            yield
        finally:
            ground.as_root("web1", f"systemctl kill --kill-whom=all -s KILL {THEIRS}")


@fault(
    "unit.masked",
    "systemctl mask of a worker's unit, and its stop",
    ground="fleet",
    touches="worker_low",
)
@contextmanager
def masked(ground: Hosts) -> Iterator[None]:
    with (
        changed(ground, "web1", f"systemctl disable --now {LOW}", f"systemctl enable --now {LOW}"),
        away(ground, "web1", LOW_UNIT),
        changed(ground, "web1", f"systemctl mask {LOW}", f"systemctl unmask {LOW}"),
    ):
        yield


@fault("unit.missing", "the unit file is moved away", ground="fleet", touches="worker_low")
@contextmanager
def missing(ground: Hosts) -> Iterator[None]:
    with changed(ground, "web1", ":", _RELOAD), away(ground, "web1", LOW_UNIT):
        ground.as_root("web1", _RELOAD)
        yield


@fault(
    "unit.missing",
    "the unit file is moved away, and the worker stopped",
    ground="fleet",
    touches="worker_low",
)
@contextmanager
def missing_and_down(ground: Hosts) -> Iterator[None]:
    with (
        changed(ground, "web1", f"systemctl stop {LOW}", f"systemctl start {LOW}"),
        missing(ground),
    ):
        yield


@fault("unit.not_enabled", "systemctl disable", ground="fleet", touches="worker_low")
@contextmanager
def not_enabled(ground: Hosts) -> Iterator[None]:
    with changed(ground, "web1", f"systemctl disable {LOW}", f"systemctl enable {LOW}"):
        yield


@fault(
    "unit.not_loaded",
    "the unit file is written again, without daemon-reload",
    ground="fleet",
    touches="worker_low",
)
@contextmanager
def not_loaded(ground: Hosts) -> Iterator[None]:
    with changed(ground, "web1", f"touch {LOW_UNIT}", _RELOAD):
        yield


@fault(
    "unit.not_ours",
    "the unit file without this tool's first line",
    ground="fleet",
    touches="worker_low",
)
@contextmanager
def not_ours(ground: Hosts) -> Iterator[None]:
    with (
        changed(ground, "web1", ":", _RELOAD),
        kept(ground, "web1", LOW_UNIT, f"sed -i 1d {LOW_UNIT}; {_RELOAD}"),
    ):
        yield


@fault(
    "unit.restarting",
    "a unit of another owner that crashes at each start",
    ground="fleet",
    touches="theirs",
)
@contextmanager
def restarting(ground: Hosts) -> Iterator[None]:
    with installed(ground, THEIRS, CRASHING, "start"):
        until(lambda: restarts(ground, THEIRS) >= 1, "a restart")
        yield


@fault("unit.stale", "a unit of this tool's for a worker that the inventory does not have", ground="fleet",
       touches="worker_old")  # fmt: skip
@contextmanager
def stale(ground: Hosts) -> Iterator[None]:
    old = f"{UNITS}/celery-worker@worker_old.service"
    make = f"sed s/worker_high/worker_old/g {UNITS}/{HIGH} >{old}; {_RELOAD}"
    with changed(ground, "web1", make, f"rm {old}; {_RELOAD}"):
        yield


@fault("inventory.units_of_another", "a unit of a host that --limit leaves out", ground="fleet",
       command=("diagnose", "--limit", "web1"), touches="web1", alone=True)  # fmt: skip
@contextmanager
def of_another(ground: Hosts) -> Iterator[None]:
    other = f"{UNITS}/celery-worker@other.service"
    copied = f"sed s/worker_low@web1/worker_low@web2/ {LOW_UNIT} >{other}; systemctl daemon-reload"
    with changed(ground, "web1", copied, f"rm {other}; systemctl daemon-reload"):
        yield


@fault("unit.unknown", "the inventory names a unit that systemd does not have", ground="fleet",
       touches="worker_low inventory")  # fmt: skip
@contextmanager
def unknown(ground: Hosts) -> Iterator[None]:
    with text_of(
        ground.inventory,
        ("name: worker_low\n", "name: worker_low\n                unit: celeri.service\n"),
    ):
        yield
