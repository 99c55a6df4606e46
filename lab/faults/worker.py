"""Faults of workers: they do not run, do not answer, are other ones than the inventory expects, or
are too many.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lab.faults.broker import another_url, setting
from lab.faults.fault import fault
from lab.faults.grounds import Ground, Sandbox, text_of, until
from lab.faults.messages import POLL, producer, send
from lab.faults.shop import Shop
from lab.world import celery_command

LOW = "worker_low"
_NODE = "worker_low@sandbox"


EXPECTED = "".join(
    f"@app.task(name={name!r})\ndef expected{number}(*_, **__): ...\n"
    for number, name in enumerate(
        (
            "integrations.tasks.check_all_devices_in_glpi",
            "integrations.tasks.check_single_device_in_glpi",
            "integrations.tasks.export_monthly_report_to_glpi",
            "inventory.tasks.collect_daemon_status",
            "inventory.tasks.poll_printer",
        )
    )
)
"""Code that has the tasks that the inventory expects, by their names."""


@contextmanager
def halted(ground: Sandbox, service: str) -> Iterator[None]:
    """SIGSTOP to a service's main process."""
    pid = ground.pid(service)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def down(ground: Sandbox, service: str) -> Iterator[None]:
    """A service that its own script has stopped."""
    ground.script("stop_workers.sh", service)
    try:
        yield
    finally:
        ground.script("start_workers.sh", service)


@fault("worker.stopped", "SIGSTOP", touches=LOW)
@contextmanager
def stopped(ground: Sandbox) -> Iterator[None]:
    with halted(ground, LOW):
        yield


@fault("worker.not_running", "a worker was stopped", touches=LOW)
@contextmanager
def not_running(ground: Sandbox) -> Iterator[None]:
    with down(ground, LOW):
        yield


@fault("worker.not_consuming", "cancel_consumer of its queue", touches=LOW)
@contextmanager
def not_consuming(ground: Sandbox) -> Iterator[None]:
    with producer(ground) as app:
        app.control.cancel_consumer("low_priority", destination=[_NODE], reply=True)
        try:
            yield
        finally:
            app.control.add_consumer("low_priority", destination=[_NODE], reply=True)


@fault("worker.too_many_processes", "pool_grow", touches=LOW)
@contextmanager
def too_many_processes(ground: Sandbox) -> Iterator[None]:
    with producer(ground) as app:
        app.control.pool_grow(1, destination=[_NODE], reply=True)
        main = psutil.Process(ground.pid(LOW))
        until(lambda: len(main.children()) == 3, "a larger pool")
        try:
            yield
        finally:
            app.control.pool_shrink(1, destination=[_NODE], reply=True)


@fault("worker.processes_killed", "kill -9 to a process of a pool", touches=LOW)
@contextmanager
def processes_killed(ground: Sandbox) -> Iterator[None]:
    psutil.Process(ground.pid(LOW)).children()[0].kill()
    until(lambda: "signal 9" in ground.log(LOW).read_text(), "its log")
    try:
        yield
    finally:
        ground.restart(LOW)


@fault("worker.named_otherwise", "it was started with another -n", touches=LOW)
@contextmanager
def named_otherwise(ground: Sandbox) -> Iterator[None]:
    ground.restart(LOW, PRINTER_INVENTORY_NODE_HOST="elsewhere")
    try:
        yield
    finally:
        ground.restart(LOW)


@fault("worker.other_broker", "it was started with another db", touches=LOW)
@contextmanager
def other_broker(ground: Sandbox) -> Iterator[None]:
    with ground.environment(CELERY_BROKER_URL=lambda url: url.removesuffix("/3") + "/9"):
        ground.restart(LOW)
    try:
        yield
    finally:
        ground.restart(LOW)


@fault("worker.other_process", "its pid file names another process", touches=LOW)
@contextmanager
def other_process(ground: Sandbox) -> Iterator[None]:
    with another_process(ground, LOW):
        yield


@contextmanager
def another_process(ground: Sandbox, service: str) -> Iterator[None]:
    """A service that does not run, and whose pid file names a process that is something else."""
    pid_file = ground.world.root / f"app/run/{service}.pid"
    with down(ground, service):
        process = subprocess.Popen(["sleep", "600"])
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        pid_file.write_text(f"{process.pid} {ticks}\n")
        try:
            yield
        finally:
            pid_file.unlink()
            process.kill()
            process.wait()


@fault(
    "worker.touched_files",
    "the environment file was written after the start",
    touches="environment",
)
@contextmanager
def touched_files(ground: Sandbox) -> Iterator[None]:
    with ground.environment():
        yield


@fault(
    "worker.outdated",
    "the environment file changed after the start",
    touches="environment worker_low",
)
@contextmanager
def outdated(ground: Sandbox) -> Iterator[None]:
    done = ground.world.inv("restart-workers", "--yes")
    assert done.code == 0, done.out + done.err
    with ground.environment(GLPI_URL=lambda url: f"{url}/"):
        yield
    ground.restart()


@fault(
    "worker.would_be_locked_out",
    "the environment file has a wrong user for the broker",
    touches="environment",
)
@contextmanager
def would_be_locked_out(ground: Sandbox) -> Iterator[None]:
    with ground.environment(
        CELERY_BROKER_URL=lambda url: url.replace("redis://", "redis://stranger:wrong@")
    ):
        yield


@fault(
    "worker.refused",
    "the password was changed, and a worker has the old one",
    touches="rights",
    alone=True,
)
@contextmanager
def refused(ground: Sandbox) -> Iterator[None]:
    def with_password(url: str) -> str:
        return url.replace("redis://", "redis://:another@")

    url = with_password((ground.world.root / "broker.url").read_text())
    inventory, application = (
        another_url(ground, url),
        ground.environment(CELERY_BROKER_URL=with_password),
    )
    with ground.broker() as client:
        theirs = [one["id"] for one in client.client_list() if int(one["age"]) > 1]
        with setting(ground, requirepass="another"), inventory, application:
            for id in theirs:
                client.execute_command("CLIENT", "KILL", "ID", id)
            until(lambda: "Authentication" in ground.log(LOW).read_text(), "a refusal in its log")
            yield
    ground.restart()


@fault("worker.settings_differ", "a worker was started with another result backend", touches=LOW)
@contextmanager
def settings_differ(ground: Sandbox) -> Iterator[None]:
    with ground.environment(CELERY_RESULT_BACKEND=lambda url: url.removesuffix("/4") + "/8"):
        ground.restart(LOW)
    try:
        yield
    finally:
        ground.restart(LOW)


@fault("worker.older_code", "a task was added, and the workers do not have it yet", touches="code")
@contextmanager
def older_code(ground: Sandbox) -> Iterator[None]:
    with more_code(ground, "@shared_task\ndef clean_up() -> None: ...\n"):
        yield


@contextmanager
def more_code(ground: Sandbox, code: str) -> Iterator[None]:
    """Add to the module of the inventory's tasks."""
    file = ground.world.path / "lab/patient/inventory/tasks.py"
    before, at = file.read_bytes(), file.stat()
    file.write_bytes(before + b"\n\n" + code.encode())
    try:
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))


@fault(
    "worker.stops_late",
    "the inventory lets a stop take longer than the visibility timeout",
    touches="stop",
)
@contextmanager
def stops_late(ground: Sandbox) -> Iterator[None]:
    with text_of(ground.inventory, ("celery_stop_timeout: 60s", "celery_stop_timeout: 2h")):
        yield


@fault("worker.none_fits", "the inventory names a node that is not there", touches="nodes")
@contextmanager
def none_fits(ground: Sandbox) -> Iterator[None]:
    with ground.variables('celery_nodes: ["kube-*@*"]'):
        yield


@contextmanager
def stranger(
    ground: Ground, name: str, queue: str, code: str = ""
) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker of an application without tasks, but for those in `code`, at a queue of this db."""
    with ground.broker() as client, tempfile.TemporaryDirectory() as folder:
        at = client.get_connection_kwargs()
        url = f"redis://{at['host']}:{at['port']}/{at['db']}"
        Path(folder, "strange.py").write_text(
            f"from celery import Celery\napp = Celery('strange', broker={url!r})\n{code}"
        )
        command = celery_command("-A strange worker -P solo -Q", queue, "-n", name)
        log = Path(folder, "log")
        with log.open("wb") as out:
            process = subprocess.Popen([*command, "-l", "INFO"], cwd=folder, stdout=out, stderr=out)
        try:
            until(lambda: b" ready." in log.read_bytes(), name)
            yield process
        finally:
            process.terminate()
            process.wait()
            if queue == "foreign":
                client.delete("_kombu.binding.foreign", "_kombu.binding_permanent.foreign")


@fault("worker.unknown", "a worker of another owner takes from a queue", touches="strange")
@contextmanager
def unknown(ground: Sandbox) -> Iterator[None]:
    with stranger(ground, "stray@elsewhere", "low_priority"):
        yield


@fault("worker.twins", "a second worker with the name of one", touches="strange worker_low")
@contextmanager
def twins(ground: Sandbox) -> Iterator[None]:
    with stranger(ground, _NODE, "low_priority"):
        yield


@fault(
    "worker.gives_back_early",
    "a foreign worker in this db has a short visibility timeout",
    touches="strange",
)
@contextmanager
def gives_back_early(ground: Sandbox) -> Iterator[None]:
    short = "app.conf.broker_transport_options = {'visibility_timeout': 60}\n"
    with stranger(ground, "stray@elsewhere", "foreign", short):
        yield


@fault(
    "worker.no_remote_control", "the settings switch remote control off", touches="code", alone=True
)
@contextmanager
def no_remote_control(ground: Sandbox) -> Iterator[None]:
    services = ("worker_high", LOW, "worker_daemon", "beat")
    with ground.settings("CELERY_WORKER_ENABLE_REMOTE_CONTROL = False\n", *services):
        yield


@fault(
    "worker.loses_results", "the result backend refuses what a worker writes", touches="results low"
)
@contextmanager
def loses_results(ground: Sandbox) -> Iterator[None]:
    nowhere = "redis://127.0.0.1:1/4"
    here = (ground.world.root / "results.url").read_text()
    with (
        ground.environment(CELERY_RESULT_BACKEND=lambda _: nowhere),
        text_of(ground.world.root / "results.url", (here, nowhere)),
    ):
        ground.restart()
        send(ground, POLL, "low_priority", args=(1,))
        until(lambda: "Pool callback" in ground.log(LOW).read_text(), "its log", timeout_s=60)
        yield
    ground.restart()


_DEAF = """
from kombu.transport.redis import Channel
Channel._brpop_start = lambda self, timeout=0: None
"""


@fault(
    "worker.deaf",
    "one of several workers answers, and fetches no messages",
    touches="strange nodes",
)
@contextmanager
def deaf(ground: Sandbox) -> Iterator[None]:
    nodes = ground.variables('celery_nodes: ["other@elsewhere"]')
    with stranger(ground, "other@elsewhere", "low_priority", EXPECTED + _DEAF), nodes:
        yield


@contextmanager
def otherwise(ground: Sandbox, code: str) -> Iterator[None]:
    """worker_low alone runs with more code in the application's Celery module."""
    file = ground.world.path / "lab/patient/printer_inventory/celery.py"
    before, at = file.read_bytes(), file.stat()
    file.write_bytes(before + f"\nimport sys\nif any({LOW!r} in word for word in sys.argv):\n".encode()
                     + "".join(f"    {line}\n" for line in code.strip().splitlines()).encode())  # fmt: skip
    try:
        ground.restart(LOW)
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))
        ground.restart(LOW)


@fault(
    "worker.takes_nothing",
    "the youngest worker answers, and fetches no messages",
    touches="code worker_low",
)
@contextmanager
def takes_nothing(ground: Sandbox) -> Iterator[None]:
    with otherwise(ground, _DEAF):
        yield


_MUTE = """
from celery.worker.consumer.control import Control
Control.include_if = lambda self, c: False
"""


@fault("worker.answered_by_another", "a worker hears no remote control, and a second one has its name",
       touches="code strange worker_low", after="worker.twins")  # fmt: skip
@contextmanager
def answered_by_another(ground: Sandbox) -> Iterator[None]:
    with otherwise(ground, _MUTE), stranger(ground, _NODE, "low_priority", EXPECTED):
        yield


@fault(
    "worker.node_unclear",
    "a worker hears no remote control, and a node of another host fits its pattern",
    ground="shop",
    touches="one inventory strange",
)
@contextmanager
def node_unclear(ground: Shop) -> Iterator[None]:
    ground.end("one")
    with text_of(ground.world.path / "shop.py", ("import os,", f"{_MUTE}import os,")):
        ground.start("one")
    pattern = text_of(ground.inventory, ("{name: one,", '{name: one, node: "one@%h",'))
    try:
        with stranger(ground, "one@elsewhere", "mail"), pattern:
            yield
    finally:
        ground.anew("one")


@fault(
    "worker.left_processes",
    "a worker with -B was killed with SIGKILL, and is started again without it",
    ground="shop",
    touches="one",
)
@contextmanager
def left_processes(ground: Shop) -> Iterator[None]:
    ground.end("one")
    ground.start("one", "-B", "-s", str(ground.world.path / "schedule"))
    left = psutil.Process(ground.workers["one"].pid).children()
    ground.end("one")
    ground.start("one")
    try:
        yield
    finally:
        for process in left:
            process.terminate()
        psutil.wait_procs(left, timeout=10)
