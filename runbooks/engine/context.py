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

from runbooks.core.application import Application, KeptSchedule
from runbooks.core.command import Command
from runbooks.core.errors import ExitCode, Interrupted, LockHeld, RunbookError, UsageError
from runbooks.core.fleet import Fleet
from runbooks.core.model import SAMPLES, Finding, HostState, NodeState, OtherRun, Snapshot
from runbooks.core.needs import Needs
from runbooks.core.reporter import About, Reporter
from runbooks.core.wording import counted, going_on
from runbooks.diagnosis.judge import judge
from runbooks.diagnosis.step import Step
from runbooks.diagnosis.steps import (
    Judge,
    environment_step,
    file_steps,
    leaked_step,
    queue_step,
    taken_over,
    unit_steps,
    worker_step,
)
from runbooks.diagnosis.take_over import drop_ins, left_blocking
from runbooks.diagnosis.wanted_files import all_files
from runbooks.engine.chosen import Services, of_these
from runbooks.engine.journal import Journal, read_run
from runbooks.engine.looked_at import looked_at
from runbooks.engine.observe import observe, probe_imports
from runbooks.engine.started import recall, remember
from runbooks.hosts.transport import Transports
from runbooks.inventory.templates import Templates

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker


class Options(Struct, frozen=True):
    """What the command line says; `inventory` is what stands behind `--inventory` in any folder.

    `confirm` asks the operator, and is None without a terminal. `every_message` asks for each
    message that a rule means, not for a few samples. With `kill_running` workers are restarted
    although tasks run there that may be killed, with `fresh` the first look loads the application
    wherever it runs; that of a dry run does so by itself. With `take_over` what others have started
    to do the work of the inventory's services makes way for these.
    """

    verb: str
    inventory: str
    state_directory: Path
    dry_run: bool = False
    yes: bool = False
    confirm: Callable[[str], bool] | None = None
    every_message: bool = False
    kill_running: bool = False
    fresh: bool = False
    take_over: bool = False


class Session:
    """One verb's work on a fleet: looking, naming, asking, writing down. Changing is
    `engine.apply`'s.
    """

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
        self.node_names: dict[str, tuple[str, ...]] = {}
        """What Celery calls each node, or the nodes of several containers, by the name here, as
        looks have told.
        """
        self._looked = False
        self._judged: tuple[float, Sequence[Finding]] | None = None
        self._said: Mapping[str, tuple[Application | None, KeptSchedule | None]] = {}

    @cached_property
    def broker(self) -> "Broker":
        """Made at its first use, beside the first look at the hosts: its libraries take longer to
        load than these.
        """
        return self._open_broker()

    def observe(
        self,
        needs: Needs,
        hosts: Collection[str] | None = None,
        *,
        read_until: float = math.inf,
        without_broker: bool = False,
    ) -> Snapshot:
        """One look at what is needed, on all hosts of the fleet or on these; messages are read
        until `read_until`.

        One that does not ask for it has what the application said and beat's scheduler kept in the
        last look that did.

        Raises BrokerError where the broker cannot be looked at; `without_broker` that is part of
        what was seen.
        """
        fleet = self.fleet
        if hosts is not None:
            fleet = replace(fleet, hosts=tuple(host for host in fleet.hosts if host.name in hosts))
        paths = {
            host.name: (
                host.settings.env_file,
                *(path for wanted in self.files.values() for path in wanted[host.name]),
            )
            for host in self.fleet.hosts
        }
        samples = None if self.options.every_message else SAMPLES
        if self.options.take_over:
            paths = {host.name: (*paths[host.name], *drop_ins(host)) for host in self.fleet.hosts}
        records = self.options.state_directory
        found = observe(
            fleet, self.transports, lambda: self.broker, paths, needs, samples, records,
            read_until=read_until, waiting=self.reporter.waiting, without_broker=without_broker,
            fresh=self.options.dry_run or (self.options.fresh and not self._looked), writes=not self.options.dry_run,
            take_over=self.options.take_over,
        )  # fmt: skip
        if Needs.IMPORTS in needs:
            self._said = {
                name: (state.application, state.kept) for name, state in found.reachable().items()
            }
        else:
            found = replace(found, hosts={**found.hosts, **dict(self._with_said(found))})
        if found.broker:
            self._keep_names(found.broker.nodes, of_services=Needs.SERVICES in needs)
        if not self._looked:
            self._looked = True
            self.tell_about(found, needs)
        return recall(records, fleet.app.app, found)

    def _with_said(self, found: Snapshot) -> Iterator[tuple[str, HostState]]:
        for name, state in found.reachable().items():
            application, kept = self._said.get(name, (None, None))
            yield name, replace(state, application=application, kept=kept)

    def begin_again(self) -> None:
        """What is looked at from now on is an output of its own: its first look tells what it is
        about.
        """
        self._looked = False

    def _keep_names(self, nodes: Mapping[str, NodeState], *, of_services: bool) -> None:
        """Of several containers only a look at their services tells all nodes: another one takes
        none of them away.
        """
        several = {
            name for name, names in self.node_names.items() if len(names) > 1 and not of_services
        }
        self.node_names |= {
            name: node.known_as for name, node in nodes.items() if name not in several
        }

    def tell_about(self, snapshot: Snapshot, needs: Needs) -> None:
        """Tell what was looked at; the first look of a verb tells it by itself."""
        self.reporter.about(self.about(snapshot, needs))

    def about(self, snapshot: Snapshot, needs: Needs) -> About:
        """What an output is about that shows this look."""
        about = About(self.fleet.app.app, self.options.inventory, self.broker.name)
        seen = looked_at(self.fleet, snapshot, needs)
        states = snapshot.reachable().values()
        before = [
            said.loaded_at
            for state in states
            if (said := state.application) and said.loaded_at < snapshot.at
        ]
        loaded_at = min(before, default=None)
        return replace(about, **seen, other_run=snapshot.other_run, loaded_at=loaded_at)

    def remember(self, snapshot: Snapshot) -> None:
        """Keep what services were started with, as far as a look tells it."""
        remember(self.options.state_directory, self.fleet.app.app, self.fleet.hosts, snapshot)

    def with_imports(self, snapshot: Snapshot, names: Collection[str]) -> Snapshot:
        """The snapshot, with the application loaded also on those of these hosts where that was not
        tried yet.
        """
        untried = {
            name
            for name in names
            if (state := snapshot.reachable().get(name)) and state.imports_now is None
        }
        assert snapshot.broker is not None
        tried = probe_imports(self.fleet, self.transports, snapshot.hosts, untried, snapshot.broker)
        return replace(snapshot, hosts={**snapshot.hosts, **tried})

    def diagnose(
        self, snapshot: Snapshot, *, conclusive: bool = True, services: Services | None = None
    ) -> Sequence[Finding]:
        """The findings of a snapshot of everything; tells them, as the last word where that is
        `conclusive`.

        With `services`, findings about other services alone are left out, and the output says how
        many.
        """
        findings: Sequence[Finding] = judge(
            self.fleet, snapshot, self.files, taking=self.options.take_over
        )
        self._judged = snapshot.at, findings
        every = len(findings)
        findings = of_these(self.fleet, findings, services) if services is not None else findings
        self.reporter.findings(findings, conclusive=conclusive)
        if left_out := every - len(findings):
            self.reporter.message(f"{counted(left_out, 'finding')} about other workers left out")
        return findings

    def found_in(self, snapshot: Snapshot) -> Sequence[Finding] | None:
        """What `diagnose` found in this snapshot, None where it was not asked."""
        return self._judged[1] if self._judged and self._judged[0] == snapshot.at else None

    def blocking(self, snapshot: Snapshot) -> list[Finding]:
        """Of the findings of a snapshot of everything those that keep something from being touched;
        tells nothing.
        """
        return [finding for finding in judge(self.fleet, snapshot, self.files) if finding.blocks]

    def left_blocking(self, snapshot: Snapshot, blocking: Sequence[Finding]) -> Sequence[Finding]:
        """Of these what still keeps something from being touched once all is taken over that is to
        be, and why the rest of it is not.
        """
        if not self.options.take_over:
            return blocking
        kill = self.options.kill_running
        return left_blocking(self.fleet, snapshot, blocking, self.files["unit"], kill=kill)

    # The steps there are.

    def environment(self) -> Step:
        return environment_step(self.fleet)

    def units_installed(self) -> tuple[Step, ...]:
        return unit_steps(self.fleet, self.files["unit"], self._taking)

    def cron_installed(self) -> tuple[Step, ...]:
        return file_steps(self.fleet, self.files, taking=self.options.take_over)

    def queues(self) -> Step:
        return queue_step(self.fleet)

    def nothing_leaked(self) -> Step:
        return leaked_step(self.fleet, kill=self.options.kill_running)

    def workers(
        self, since: Mapping[str, float] | None = None, before: Sequence[Step] = ()
    ) -> Step:
        """Restarted also for what the steps `before` them change."""
        return worker_step(self.fleet, since or {}, before, self._taking)

    @property
    def _taking(self) -> Judge | None:
        if not self.options.take_over:
            return None
        return taken_over(self.fleet, self.files["unit"], kill=self.options.kill_running)

    def require_consent_possible(self) -> None:
        """Fail before any work where the question at its end could not be asked. Raises UsageError."""
        if not (self.options.dry_run or self.options.yes or self.options.confirm):
            raise UsageError(
                "nobody can be asked (this is not a terminal, or --json is given), and --yes is not"
                " given; nothing was changed",
                "look first with --dry-run, then pass --yes",
            )

    def require_alone(self, run: OtherRun | None) -> None:
        """Raise LockHeld where another run is changing the fleet: what is seen meanwhile is no
        ground for a plan.

        A dry run only tells it.
        """
        if not run:
            return
        if not self.options.dry_run:
            raise LockHeld(
                f"{going_on(run)}; nothing was changed",
                "wait for it to end, then run the same command again; where it died, its lock"
                " expires within a minute",
            )
        self.reporter.warning(
            f"{going_on(run)}; what is planned here may be its doing, or done by then",
            "look again when it has ended",
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
    """Write down how a run ended when it did not end by itself. ^C becomes Interrupted with what to
    do next.
    """
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
