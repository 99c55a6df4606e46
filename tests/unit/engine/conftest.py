"""A fleet on this machine: a folder for each host, real services in it, and a broker that is a few
dicts.
"""

import os
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from runbooks.broker.broker import Broker, Restorable
from runbooks.broker.server.lock import FleetLock
from runbooks.core.command import Command
from runbooks.core.effects import Change, TakeMessages
from runbooks.core.errors import ExitCode, HostUnreachable, LockHeld, RunbookError
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import (
    BrokerState,
    Finding,
    HeldTask,
    LogLine,
    Look,
    MessagePlace,
    NodeState,
    OtherRun,
    RunningTask,
    SecondLook,
    Selection,
)
from runbooks.core.needs import Needs
from runbooks.core.reporter import About, Check, Outcome, Progress, Tally, TaskReport
from runbooks.core.settings import Commands, CronEntry
from runbooks.core.views import View
from runbooks.diagnosis.step import Step
from runbooks.engine.context import Options, Session
from runbooks.engine.journal import RunRecord, find_run
from runbooks.engine.main_loop import Proof, walk
from runbooks.engine.rolling import Rolling
from runbooks.hosts.transport import Completed, LocalTransport, Transport, Transports
from runbooks.inventory.templates import Templates
from tests.unit.fleets import TASKS, make_broker, make_fleet, make_host, make_queue

ROOT = Path(__file__).parents[3]

CTL = """\
# ctl ACTION NAME: what a service manager does, with switches for a test to break it
[ "$1" = status ] || echo "$1 $2" >>log
case $1 in
start)
    [ ! -e "$2.broken" ] || { echo "$2 is broken" >&2; exit 1; }
    [ ! -e "$2.dud" ] || exit 0
    ! kill -0 "$(cat "$2.pid" 2>/dev/null)" 2>/dev/null || exit 0 # as with a pid file of Celery's
    what="worker -n $2@${PWD##*/}"; [ "$2" != beat ] || what=beat
    bash -c 'exec -a "$1" sleep 600' - "celery -A shop $what" </dev/null >/dev/null 2>&1 &
    echo $! >"$2.pid"
    echo $! >>pids ;;
stop)
    [ ! -e "$2.stuck" ] || { echo "$2 does not stop" >&2; exit 1; }
    [ ! -e "$2.slow" ] || {
        (sleep "$(cat "$2.slow")"; kill -9 "$(cat "$2.pid")"; rm "$2.pid") >/dev/null 2>&1 &
        exit 0
    }
    [ ! -e "$2.pid" ] || kill -9 "$(cat "$2.pid")"
    rm -f "$2.pid" ;;
status)
    [ ! -e "$2.silly" ] || exit 1
    [ -e "$2.pid" ] || { echo stopped; exit 3; }
    cat "$2.pid" ;;
esac
"""


class FakeLock:
    """The fleet's lock, which a test can take away."""

    def __init__(self) -> None:
        self.lost = False
        self.asked = 0

    def held(self) -> float:
        self.asked += 1
        if self.lost:
            raise LockHeld("the lock was lost")
        return 60.0

    def is_anothers(self) -> bool:
        return self.lost


class FakeBroker:
    """Queues as counts of bad messages; the nodes that answer are those of the workers that run."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.bad: dict[str, int] = {}
        self.archives: dict[str, int] = {}
        self.error: RunbookError | None = None
        self.sticky = False
        self.arriving = 0
        self.held_back = 0
        self.lock_held = FakeLock()
        self.is_locked = False
        self.other: OtherRun | None = None
        self.running: dict[str, list[RunningTask]] = {}
        self.read_until: list[float] = []
        self.places: list[MessagePlace] = []
        self.held: dict[str, list[HeldTask]] = {}
        self.revoked: dict[str, list[str]] = {}

    def look_again(self, queues: Iterable[str]) -> SecondLook:
        return SecondLook(0.0, {})

    def running_versions(self, nodes: Iterable[str]) -> dict[str, dict[str, str]]:
        return {}

    def observe(
        self,
        fleet: Fleet,
        now: float,
        needs: Needs,
        *,
        samples: int | None = None,
        read_until: float = 0.0,
        without_nodes: bool = False,
    ) -> BrokerState:
        self.read_until.append(read_until)
        nodes = self._nodes(fleet) if Needs.NODES in needs else {}
        queues = fleet.queues if Needs.QUEUES in needs else ()
        state = make_broker(fleet, nodes=nodes)
        return replace(state, queues={name: self._queue(name) for name in queues})

    def _nodes(self, fleet: Fleet) -> dict[str, NodeState]:
        return {
            host.node(worker): NodeState(
                host.node(worker), frozenset(TASKS), frozenset(worker.queues)
            )
            for host in fleet.hosts
            for worker in host.settings.workers
            if (self.world.root / host.name / f"{worker.name}.pid").exists()
        }

    def _queue(self, name: str) -> Any:
        bad = self.bad.get(name, 0)
        selected = (Selection("too late", bad, {"shop.tasks.bill": bad}),) if bad else ()
        return make_queue(name, bad, selected=selected)

    @contextmanager
    def lock(self, run_id: str, verb: str) -> Iterator[FleetLock]:
        self.is_locked = True
        try:
            yield cast(FleetLock, self.lock_held)
        finally:
            self.is_locked = False

    def other_run(self) -> OtherRun | None:
        return None if self.is_locked else self.other

    def find_all(self, queues: Iterable[str], task_id: str) -> list[MessagePlace]:
        return [place for place in self.places if place.message.id == task_id]

    def holders(self, task_id: str) -> list[HeldTask]:
        return self.held.get(task_id, [])

    def revoked_on(self, task_id: str) -> list[str]:
        return self.revoked.get(task_id, [])

    def listening(self) -> frozenset[str]:
        return frozenset(self._nodes(self.world.session().fleet))

    def drain(
        self, queues: Mapping[str, Sequence[str]], patience_s: float
    ) -> dict[str, list[RunningTask]]:
        assert self.is_locked
        return {node: self.running[node] for node in queues if node in self.running}

    def consume_again(self, queues: Mapping[str, Sequence[str]]) -> None:
        assert self.is_locked

    def require_able(self, queues: Collection[str], *, unacked: bool) -> None:
        pass

    def take(self, effect: TakeMessages, path: Path) -> str:
        assert self.is_locked
        if self.error:
            raise self.error
        self.archives[str(path)] = self.bad[effect.queue]
        if not self.sticky:
            self.bad[effect.queue] = self.arriving
        return "taken out"

    name = "localhost:6379/3"

    def restorable(self, path: Path, *, malformed: bool) -> Restorable:
        return Restorable(self.archives.get(str(path), 0), 0 if malformed else self.held_back, "")

    def restore(self, path: Path, *, malformed: bool) -> str:
        assert self.is_locked
        if self.error:
            raise self.error
        self.bad["high_q"] = self.bad.get("high_q", 0) + self.archives.pop(str(path))
        return "restore the messages"


def ready(ways: Mapping[str, Transport], forks: int = 16) -> Transports:
    """Transports that were made before."""
    return Transports({name: lambda way=way: way for name, way in ways.items()}, forks)  # type: ignore[misc]


class Flaky(LocalTransport):
    """This machine, until a test takes it away: before the next script that holds `at` and those
    after it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at: str | None = None
        self.before: Callable[[str], None] | None = None
        self.is_gone = False

    def run(self, script: str, *, timeout_s: float) -> Completed:
        if self.before:
            self.before(script)
        self.is_gone = self.is_gone or (self.at is not None and self.at in script)
        if self.is_gone:
            raise HostUnreachable("No route to host")
        return super().run(script, timeout_s=timeout_s)


@dataclass
class Recorder:
    """A reporter that remembers."""

    plans: list[Sequence[Change]] = field(default_factory=list)
    changes: list[tuple[str, str, Outcome, str]] = field(default_factory=list)
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    waited: list[str] = field(default_factory=list)
    logged: list[LogLine] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    undo: str = ""

    def about(self, about: About) -> None: ...
    def findings(self, findings: Sequence[Any], *, conclusive: bool = True) -> None: ...
    def next_step(self, what: str, command: Command) -> None: ...
    def plan(self, changes: Sequence[Change], *, dry_run: bool) -> None:
        self.plans.append(changes)

    def undo_plan(self, items: Sequence[tuple[Change, Outcome, str]], *, dry_run: bool) -> None: ...
    def run_started(self, run_id: str) -> None: ...
    def step(self, name: str) -> None:
        self.steps.append(name)

    def change(self, change: Change, outcome: Outcome, detail: str) -> None:
        self.changes.append((change.host, change.summary, outcome, detail))

    def recorded(self, change: Change, outcome: Outcome, detail: str, *, undone: bool) -> None: ...
    def waiting(self, text: str, share: float | None = None) -> None:
        self.waited.append(text)

    def progress(self, progress: Progress) -> None: ...
    def task(self, report: TaskReport) -> None: ...
    def checks(self, checks: Sequence[Check]) -> None: ...
    def document(self, name: str, text: str) -> None: ...
    def file(self, host: str, path: str, content: bytes) -> None: ...
    def log(self, lines: Iterable[LogLine], *, brief: bool = False) -> None:
        self.logged += lines

    def recap(self, tallies: Mapping[str, Tally], undo: str) -> None:
        self.tallies, self.undo = tallies, undo

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...
    def look(self, look: Look) -> None: ...
    def depths(self, queue: str, points: Sequence[tuple[float, int]], until_at: float) -> None: ...
    def view(self, view: View) -> None: ...
    def message(self, *lines: str) -> None:
        self.printed += lines

    def warning(self, problem: str, advice: str) -> None:
        self.printed.append(problem)

    def error(self, error: RunbookError) -> None: ...
    def close(self, exit_code: int) -> int:
        return exit_code

    def outcomes(self, host: str) -> dict[str, Outcome]:
        """What became of each change of a host, by the beginning of its summary."""
        return {
            summary.split(":")[0]: outcome
            for name, summary, outcome, _ in self.changes
            if name == host
        }

    def detail(self, beginning: str) -> str:
        (detail,) = [
            detail for _, summary, _, detail in self.changes if summary.startswith(beginning)
        ]
        return detail


class World:
    """Two hosts, `web1` and `web2`, each with the worker `high` and beat; nothing runs and no file
    is in place.
    """

    def __init__(self, root: Path, hosts: Sequence[str] = ("web1", "web2")) -> None:
        self.root = root
        self.state = root / "state"
        self.hosts = {name: self._host(name) for name in hosts}
        self.transports = {name: Flaky() for name in self.hosts}
        self.broker = FakeBroker(self)
        self.reporter = Recorder()

    def _host(self, name: str) -> FleetHost:
        here = self.root / name
        (here / "units").mkdir(parents=True)
        (here / "cron").mkdir()
        (here / "ctl").write_text(CTL)
        (here / "env").write_text("TIMEOUT=x\nTOKEN=s3cret\n")
        (here / "env").chmod(0o640)
        commands = {action: f"sh ctl {action} {{worker}}" for action in ("start", "stop", "status")}
        return make_host(
            name, directory=str(here), env_file=str(here / "env"), commands=Commands(**commands),
            unit_directory=str(here / "units"), cron_directory=str(here / "cron"), start_timeout=0.2,
            cron=(CronEntry(schedule="* * * * *", user="deploy", command="true"),),
        )  # fmt: skip

    def session(self, *hosts: str, **options: Any) -> Session:
        nodes = tuple(
            host.node(worker) for host in self.hosts.values() for worker in host.settings.workers
        )
        fleet = replace(
            make_fleet(*(self.hosts[name] for name in hosts or self.hosts)), all_nodes=nodes
        )
        usual: dict[str, Any] = {"verb": "remediate", "yes": True}
        chosen = Options(
            inventory=str(self.root / "inventory.yaml"),
            state_directory=self.state,
            **usual | options,
        )
        broker = cast(Broker, self.broker)
        return Session(
            fleet,
            ready(self.transports),
            lambda: broker,
            Templates(ROOT / "templates"),
            self.reporter,
            chosen,
        )

    def steps(self, session: Session) -> tuple[Step, ...]:
        return (
            session.environment(), *session.units_installed(), *session.cron_installed(), session.queues(),
            session.workers(),
        )  # fmt: skip

    def remediate(
        self,
        *hosts: str,
        needs: Needs = Needs.EVERYTHING & ~Needs.IMPORTS,
        rolling: Rolling | None = None,
        proof: Proof | None = None,
        blocking: Sequence[Finding] = (),
        **options: Any,
    ) -> ExitCode:
        """All steps, from a fresh look."""
        self.reporter = Recorder()
        session = self.session(*hosts, **options)
        return walk(
            session,
            self.steps(session),
            session.observe(needs),
            proof,
            rolling=rolling,
            blocking=blocking,
        )

    def last_run(self) -> RunRecord:
        return find_run(self.state, "last")

    def path(self, host: str, name: str) -> Path:
        return self.root / host / name

    def log(self, host: str) -> list[str]:
        """The actions of the service manager, in order."""
        path = self.path(host, "log")
        return path.read_text().splitlines() if path.exists() else []

    def files(self, host: str) -> dict[str, bytes]:
        """All files that the tool may write on a host."""
        here = self.root / host
        found = [
            here / "env",
            *sorted((here / "units").iterdir()),
            *sorted((here / "cron").iterdir()),
        ]
        return {str(path.relative_to(here)): path.read_bytes() for path in found if path.is_file()}

    def end(self) -> None:
        for host in self.hosts:
            path = self.path(host, "pids")
            for pid in map(int, path.read_text().split() if path.exists() else []):
                if _command(pid).startswith(b"celery -A shop "):
                    os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()
