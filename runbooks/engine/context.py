"""What a verb works with: the fleet, the ways to it, and what the operator asked for."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, Interrupted, RunbookError, UsageError
from runbooks.core.fleet import Fleet
from runbooks.core.model import SAMPLES, Finding, Snapshot
from runbooks.core.needs import Needs
from runbooks.core.reporter import Reporter
from runbooks.diagnosis.judge import judge
from runbooks.diagnosis.step import Step
from runbooks.diagnosis.steps import environment_step, file_steps, leaked_step, queue_step, unit_steps, worker_step
from runbooks.diagnosis.wanted_files import all_files
from runbooks.engine.journal import Journal, read_run
from runbooks.engine.observe import observe, probe_imports
from runbooks.engine.started import recall, remember
from runbooks.hosts.transport import Transports
from runbooks.inventory.templates import Templates

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker


class Options(Struct, frozen=True):
    """What the command line says; `confirm` asks the operator, and is None without a terminal.

    `every_message` asks for each message that a rule means, not for a few samples. With `kill_running` workers are
    restarted although tasks run there that may be killed.
    """

    verb: str
    inventory: Path
    state_directory: Path
    dry_run: bool = False
    yes: bool = False
    confirm: Callable[[str], bool] | None = None
    every_message: bool = False
    kill_running: bool = False


class Session:
    """One verb's work on a fleet: looking, naming, asking, writing down. Changing is `engine.apply`'s."""

    def __init__(
        self,
        fleet: Fleet,
        transports: Transports,
        open_broker: Callable[[], "Broker"],
        templates: Templates,
        reporter: Reporter,
        options: Options,
    ) -> None:
        self.fleet, self.transports, self._open_broker = fleet, transports, open_broker
        self.reporter, self.options = reporter, options
        self.files = all_files(fleet, templates)

    @cached_property
    def broker(self) -> "Broker":
        """Made at its first use, beside the first look at the hosts: its libraries take longer to load than these."""
        return self._open_broker()

    def observe(self, needs: Needs, hosts: Collection[str] | None = None, *, read_until: float = math.inf) -> Snapshot:
        """One look at what is needed, on all hosts of the fleet or on these; messages are read until `read_until`."""
        fleet = self.fleet
        if hosts is not None:
            fleet = replace(fleet, hosts=tuple(host for host in fleet.hosts if host.name in hosts))
        paths = {
            host.name: (host.settings.env_file, *(path for wanted in self.files.values() for path in wanted[host.name]))
            for host in self.fleet.hosts
        }
        samples = None if self.options.every_message else SAMPLES
        found = observe(fleet, self.transports, lambda: self.broker, paths, needs, samples, read_until=read_until)
        return recall(self.options.state_directory, fleet.app.app, found)

    def remember(self, snapshot: Snapshot) -> None:
        """Keep what services were started with, as far as a look tells it."""
        remember(self.options.state_directory, self.fleet.app.app, self.fleet.hosts, snapshot)

    def with_imports(self, snapshot: Snapshot, names: Collection[str]) -> Snapshot:
        """The snapshot, with the application loaded also on those of these hosts where that was not tried yet."""
        untried = {name for name in names if (state := snapshot.reachable().get(name)) and state.imports_now is None}
        assert snapshot.broker is not None
        tried = probe_imports(self.fleet, self.transports, snapshot.hosts, untried, snapshot.broker)
        return replace(snapshot, hosts={**snapshot.hosts, **tried})

    def diagnose(self, snapshot: Snapshot) -> Sequence[Finding]:
        """The findings of a snapshot of everything; tells them."""
        findings = judge(self.fleet, snapshot, self.files)
        self.reporter.findings(findings)
        return findings

    def blocking(self, snapshot: Snapshot) -> list[Finding]:
        """Of the findings of a snapshot of everything those that keep something from being touched; tells nothing."""
        return [finding for finding in judge(self.fleet, snapshot, self.files) if finding.blocks]

    # The steps there are.

    def environment(self) -> Step:
        return environment_step(self.fleet)

    def units_installed(self) -> tuple[Step, ...]:
        return unit_steps(self.fleet, self.files["unit"])

    def cron_installed(self) -> tuple[Step, ...]:
        return file_steps(self.fleet, self.files)

    def queues(self) -> Step:
        return queue_step(self.fleet)

    def nothing_leaked(self) -> Step:
        return leaked_step(self.fleet, kill=self.options.kill_running)

    def workers(self, since: Mapping[str, float] | None = None, before: Sequence[Step] = ()) -> Step:
        """Restarted also for what the steps `before` them change."""
        return worker_step(self.fleet, since or {}, before)

    def require_consent_possible(self) -> None:
        """Fail before any work where the question at its end could not be asked. Raises UsageError."""
        if not (self.options.dry_run or self.options.yes or self.options.confirm):
            raise UsageError(
                "nobody can be asked (this is not a terminal, or --json is given), and --yes is not given; "
                "nothing was changed",
                "look first with --dry-run, then pass --yes",
            )

    def ask(self, question: str) -> None:
        """Go on only with the operator's consent. Raises Interrupted when it is not given."""
        if not self.options.yes and not (self.options.confirm and self.options.confirm(question)):
            raise Interrupted("not confirmed; nothing was changed")

    def begin(self, run_id: str, machines: Mapping[str, str] = MappingProxyType({})) -> Journal:
        """The journal of a new run; tells its id."""
        options = self.options
        where = (options.inventory, self.broker.name, self.fleet.app.app, machines)
        journal = Journal.create(options.state_directory, run_id, options.verb, *where)
        self.reporter.run_started(run_id)
        return journal


@contextmanager
def closing_journal(journal: Journal) -> Iterator[None]:
    """Write down how a run ended when it did not end by itself. ^C becomes Interrupted with what to do next."""
    try:
        yield
    except KeyboardInterrupt:
        journal.end("interrupted", ExitCode.INTERRUPTED)
        record = read_run(journal.directory)
        if not record.entries:
            raise Interrupted("interrupted; nothing was changed") from None
        back = f", or {Command('undo', record.id)}" if record.stands else ""
        raise Interrupted(
            f"interrupted; what was done stands in run {record.id}",
            f"{Command('show', record.id)} tells what; run the same command to go on{back}",
        ) from None
    except RunbookError as error:
        journal.end("interrupted" if isinstance(error, Interrupted) else "failed", error.exit_code)
        raise
    finally:
        journal.close()
