"""Measures the fan-out against its peers: `python bench/fanout.py [--hosts 4 --hosts 16] [--latency
0 --latency 20]`.

Needs root: puts up the fleet lab's real hosts (`inv fleet`; there must be none). Every way does the
same job on all of them: three unit files as rendered (with the directives of this tool's own: a
hardened service costs the host twice as much to start), daemon-reload if they changed, two services
enabled and (re)started, both active, their last 20 journal lines. `first`: nothing is there yet;
`second`: only the restart; `no-op`: all is right already. The ways are interleaved, a fresh start
before each; wall times are medians, as multiples of the limit's in the run: one `ssh` a host, all
at once, with the whole job in one script that was rendered before.

This tool does more than the job: `remediate` (first, no-op) and `restart-workers --serial 100%`
(second) look at the queues and the broker, let each host judge its new files, take a lock, write
everything down, drain the workers, restart one host before the others, and prove through the broker
that each node answers, knows its tasks and consumes. Only the journal lines are not asked for.
`install-units` alone is measured as a no-op too. So that the peers' services can start as fast as
`sleep` and still be proved, the workers of all ways are those of `bench/peers/node`.
"""

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PEERS = CHECKOUT / "bench/peers"
sys.path[:1] = [
    str(CHECKOUT),
    str(PEERS),
]  # not this folder, where `queue` hides the standard library's

import argparse
import base64
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import psutil
import redis
from platformdirs import user_cache_path

from lab.fleet import access
from lab.fleet.fleet import Fleet, host_names
from lab.fleet.host import on_host
from lab.fleet.record import Host, Record

PYINFRA = "3.10"
RUNS = ("first", "second", "no-op")
WAYS = ("limit", "inv", "inv install-units", "naive Fabric", "pyinfra", "ansible")
ANSIBLE = {"ANSIBLE_PIPELINING": "1", "ANSIBLE_FORKS": "64", "ANSIBLE_RETRY_FILES_ENABLED": "0"}
DB = "9"  # of the fleet's Redis; the incident's messages are in another
SAMPLE_S = 0.1
NODES_S = 60.0
FILES = ("celery-worker@one.service", "celery-worker@two.service", "celery.target")
NODE = """
mkdir -p /srv/bench; cat >/etc/bench.env; chmod 644 /etc/bench.env; rm -f /etc/cron.d/celery*
base64 -d </srv/node.tar | tar -C /srv/bench -x
systemctl kill --signal=KILL 'celery-worker@*'; systemctl stop 'celery-worker@*'
rm -f /etc/systemd/system/celery-worker@* /etc/systemd/system/*.wants/celery-*; systemctl daemon-reload
"""
FRESH = f"""
cd /etc/systemd/system; systemctl stop 'celery-worker@*'; systemctl -q disable {" ".join(FILES)}
rm -f {" ".join(FILES)}; systemctl daemon-reload; systemctl reset-failed; :
"""
SCRIPT = """
changed=0
place() {{ cat >"$1.new"; if cmp -s "$1.new" "$1" && [ "$(stat -c '%a %U' "$1")" = '644 root' ]; then rm "$1.new"
else chmod 644 "$1.new" && mv "$1.new" "$1" && changed=1; fi; }}
{places}
[ $changed = 0 ] || systemctl daemon-reload
systemctl -q is-enabled {units} >/dev/null || systemctl -q enable --no-reload {units}
systemctl {action} {units}
systemctl is-active {units} || exit 3
journalctl --no-pager -n 20 -u {journals}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One run of one way; `up_s` is until all services consume, `rss_mib` the largest sum over its
    processes.
    """

    way: str
    hosts: int
    latency_ms: int
    run: str
    wall_s: float
    up_s: float
    cpu_s: float
    rss_mib: float


Way = Callable[[str], Sequence[str]]
"""A run's name → the command for it."""


def ways(state: Path, wanted: Sequence[str]) -> dict[str, Way]:
    """The commands of every way, on the hosts that `state` lists."""
    bin, inventory = Path(sys.executable).parent, state / "inventory.yaml"
    inv = [CHECKOUT / "inv"]
    common = ["--inventory", inventory, "--forks", "64", "--yes"]
    heal = [*inv, "remediate", "--serial", "100%", *common]
    restart = [*inv, "restart-workers", "--serial", "100%", *common]
    playbook = [bin / "ansible-playbook", "-i", inventory, PEERS / "ansible_play.yml"]

    def action(run: str, restarting: str, starting: str) -> str:
        return starting if run == "no-op" else restarting

    known: dict[str, Callable[[str], Sequence[object]]] = {
        "limit": lambda run: ["sh", PEERS / "limit.sh", action(run, "restart", "start")],
        "inv": lambda run: restart if run == "second" else heal,
        "inv install-units": lambda run: {"set up": heal, "no-op": [*inv, "install-units", *common]}.get(run, []),
        "naive Fabric": lambda run: [sys.executable, PEERS / "fabric_naive.py", action(run, "restart", "start")],
        "pyinfra": lambda run: [pyinfra(), PEERS / "pyinfra_inventory.py", PEERS / "pyinfra_deploy.py", "-y",
                                "--data", f"action={action(run, 'restart', 'start')}"],
        "ansible": lambda run: [*playbook, "-e", f"action={action(run, 'restarted', 'started')}"],
    }  # fmt: skip
    return {
        name: lambda run, way=way: [str(word) for word in way(run)]
        for name, way in known.items()
        if name in wanted
    }


def pyinfra() -> Path:
    """pyinfra in a virtual environment of its own, for it wants an older paramiko."""
    venv = user_cache_path("celery-runbooks") / f"bench-pyinfra-{PYINFRA}"
    if not (venv / "bin/pyinfra").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run(
            [venv / "bin/python", "-m", "pip", "install", "--quiet", f"pyinfra=={PYINFRA}"],
            check=True,
        )
    return venv / "bin/pyinfra"


@contextmanager
def fleet_of(count: int, latency_ms: int) -> Iterator[Record]:
    """The lab's fleet with this many workers' hosts, without its faults and with the stand-in
    nodes.
    """
    fleet, names = Fleet(CHECKOUT), host_names(count + 1)
    if fleet.record():
        raise SystemExit("a fleet is up in this checkout; end it first: inv fleet --down")
    try:
        fleet.up(names, dict.fromkeys(names[1:], latency_ms))
        record = fleet.record()
        assert record is not None
        tar = subprocess.run(
            ["tar", "-C", PEERS / "node", "-c", "celery"], capture_output=True, check=True
        ).stdout
        environment = "".join(f"{name}={value}\n" for name, value in _broker(fleet.root).items())
        for host in record.hosts[1:]:
            on_host(
                record, host, "sh", "-c", "cat >/srv/node.tar", stdin=base64.b64encode(tar).decode()
            )
            on_host(record, host, "sh", "-c", NODE, stdin=environment)
        yield record
    finally:
        fleet.down()


def _broker(fleet: Path) -> dict[str, str]:
    url = urlsplit((fleet / "broker.url").read_text())
    return {
        "BROKER_ADDRESS": str(url.hostname),
        "BROKER_PASSWORD": str(url.password),
        "BROKER_DB": DB,
    }


def prepare(fleet: Path, hosts: Sequence[Host], state: Path) -> None:
    """Write down for all ways where the hosts are, and for the limit what it sends there."""
    for name in ("id_ed25519", "known_hosts"):
        shutil.copy(fleet / name, state)
    access.write_ssh_config(state, hosts)
    with (state / "ssh_config").open("a") as config:
        config.write(
            "Host *\n  KexAlgorithms curve25519-sha256\n"
        )  # a post-quantum one costs the client far more
    (state / "hosts").write_text("".join(f"{host.name} {host.address}\n" for host in hosts))
    broker = _broker(fleet)
    variables = {
        "ansible_user": "deploy", "ansible_become": True, "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_private_key_file": str(state / "id_ed25519"),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={state / 'known_hosts'}",
        "runbooks_state_directory": str(state / "runs"),
        "celery_app": "bench", "celery_directory": "/srv/bench", "celery_python": "/usr/bin/python3",
        "celery_broker_url": f"redis://:{broker['BROKER_PASSWORD']}@{broker['BROKER_ADDRESS']}:6379/{DB}",
        "celery_user": "deploy", "celery_env_file": "/etc/bench.env", "celery_service_manager": "systemd",
        "celery_stop_timeout": "20s", "celery_expected_tasks": ["bench.task"],
        "celery_workers": [{"name": name, "queues": ["bench"], "concurrency": 1} for name in ("one", "two")],
    }  # fmt: skip
    addresses = {host.name: {"ansible_host": host.address} for host in hosts}
    (state / "inventory.yaml").write_text(
        json.dumps({"all": {"vars": variables, "hosts": addresses}}, indent=1)
    )
    os.environ["BENCH_STATE"] = str(state)
    import job

    (state / "scripts").mkdir()
    for host, action in product(hosts, ("restart", "start")):
        places = "".join(
            f"place {path} <<'END'\n{text}END\n" for path, text in job.render(host.name).items()
        )
        units, journals = " ".join(job.UNITS), " -u ".join(job.UNITS)
        script = SCRIPT.format(places=places, units=units, journals=journals, action=action)
        (state / f"scripts/{action}.{host.name}").write_text(script)


def measure(
    command: Sequence[str], log: Path, well: Collection[int] = (0,)
) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds with all processes it waited for, and the largest sum of their
    resident sets in MiB. Raises SystemExit if its exit code is not one of `well`.
    """
    peak = [0.0]
    with log.open("wb") as out:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=PEERS
        )
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, ended, peak))
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    sampler.join()
    if process.returncode not in well:
        raise SystemExit(
            f"{shlex.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}"
        )
    return wall_s, usage.ru_utime + usage.ru_stime, max(peak[0], usage.ru_maxrss / 1024)


def _sample(pid: int, ended: threading.Event, peak: list[float]) -> None:
    while not ended.wait(SAMPLE_S):
        with suppress(psutil.Error):
            top = psutil.Process(pid)
            each = [process.memory_info().rss for process in (top, *top.children(recursive=True))]
            peak[0] = max(peak[0], sum(each) / 2**20)


def rounds(
    record: Record, hosts: Sequence[Host], latency_ms: int, state: Path, options: Any
) -> Iterator[Row]:
    """Every way in every round, each from a fresh start."""
    prepare(Fleet(CHECKOUT).root, hosts, state)
    for _, (way, command) in product(
        range(options.rounds), ways(state, options.way or WAYS).items()
    ):
        with ThreadPoolExecutor(len(hosts)) as pool:
            list(pool.map(lambda host: on_host(record, host, "sh", "-c", FRESH), hosts))
        if not command("first"):
            measure(command("set up"), state / f"{way}.log")
            await_nodes(2 * len(hosts))
        for run in RUNS:
            if words := command(run):
                started = time.perf_counter()
                wall_s, cpu_s, rss_mib = measure(words, state / f"{way}.{run}.log")
                await_nodes(2 * len(hosts))
                up_s = time.perf_counter() - started
                yield Row(way, len(hosts), latency_ms, run, wall_s, up_s, cpu_s, rss_mib)


def await_nodes(count: int) -> None:
    """Wait until all services consume, so that none still starts while the next run is measured."""
    broker = _broker(Fleet(CHECKOUT).root)
    deadline = time.monotonic() + NODES_S
    with redis.Redis(
        broker["BROKER_ADDRESS"], password=broker["BROKER_PASSWORD"], db=int(DB), protocol=2
    ) as client:
        while sum(other["cmd"] == "brpop" for other in client.client_list()) != count:
            if time.monotonic() > deadline:
                raise SystemExit(f"not all of the {count} nodes came up")
            time.sleep(0.05)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Medians, as multiples of the limit's where they are times: until a way's end, and until all
    services consume.
    """
    for count, latency_ms in dict.fromkeys((row.hosts, row.latency_ms) for row in rows):
        mine = [row for row in rows if (row.hosts, row.latency_ms) == (count, latency_ms)]
        yield f"\nN = {count}, {latency_ms} ms added to each round trip"
        yield f"{'':18}{''.join(f'{run:>18}' for run in RUNS)}  CPU ms a host{'':8}peak RSS MiB"
        for way in dict.fromkeys(row.way for row in mine):
            these = [[row for row in mine if (row.way, row.run) == (way, run)] for run in RUNS]
            cpus = [
                f"{statistics.median(r.cpu_s for r in runs) * 1000 / count:.0f}" if runs else "-"
                for runs in these
            ]
            rss = max(row.rss_mib for row in mine if row.way == way)
            yield f"{way:18}{_times(mine, way, 'wall_s')}  {' / '.join(cpus):22}{rss:11.0f}"
            yield f"{'  all consume':18}{_times(mine, way, 'up_s')}"


def _times(rows: Sequence[Row], way: str, which: str) -> str:
    """A way's medians in each run, with what they are of the limit's."""

    def median(name: str, run: str) -> float:
        seconds = [getattr(row, which) for row in rows if (row.way, row.run) == (name, run)]
        return statistics.median(seconds) if seconds else math.nan

    times = [(median(way, run), median("limit", run)) for run in RUNS]
    return "".join(
        f"{'-' if math.isnan(t) else f'{t:8.2f} s {t / limit:5.2f} x':>18}" for t, limit in times
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hosts", type=int, action="append", help="a number of hosts (default: 4 and 16)"
    )
    parser.add_argument(
        "--latency", type=int, action="append", help="ms added to a round trip (default: 0 and 20)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", action="append", choices=WAYS, help="only these (default: all)")
    parser.add_argument("--json", type=Path, help="write every run's figures to this FILE")
    options = parser.parse_args()
    counts, rows = options.hosts or [4, 16], []
    os.environ.update(ANSIBLE)
    os.environ.pop("SSH_AUTH_SOCK", None)
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # every way begins from compiled modules, as from the second run on
    try:
        for latency_ms in options.latency or [0, 20]:
            with (
                fleet_of(max(counts), latency_ms) as record,
                tempfile.TemporaryDirectory() as folder,
            ):
                for count in counts:
                    state = Path(folder) / str(count)
                    state.mkdir()
                    for row in rounds(
                        record, record.hosts[1 : count + 1], latency_ms, state, options
                    ):
                        rows.append(row)
                        print(
                            f"{row.way}, {row.hosts} hosts, {row.run}: {row.wall_s:.2f} s",
                            file=sys.stderr,
                        )
    finally:  # also what an interrupted run has measured
        print("\n".join(table(rows)))
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
