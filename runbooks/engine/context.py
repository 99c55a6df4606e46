"""The session of a verb: the fleet, the connections to it, and the operator's options."""

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
from runbooks.core.errors import (
    ExitCode,
    Interrupted,
    LockHeld,
    RunbookError,
    UsageError,
    as_interrupt,
)
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
from runbooks.engine.journal import Journal, Where, read_run
from runbooks.engine.looked_at import looked_at
from runbooks.engine.observe import Looking, observe, probe_imports
from runbooks.engine.started import recall, remember
from runbooks.hosts.transport import Transports
from runbooks.inventory.templates import Templates

if TYPE_CHECKING:
    from runbooks.broker.broker import Broker


class Options(Struct, frozen=True):
    """The options of the command line."""

    verb: str
    inventory: str
    """A value for `--inventory` that works in any folder."""
    state_directory: Path
    dry_run: bool = False
    yes: bool = False
    confirm: Callable[[str], bool] | None = None
    """Asks the operator; None without a terminal."""
    every_message: bool = False
    """Whether to show each message that a rule selects, not only a few samples."""
    kill_running: bool = False
    """Whether to restart workers although this may kill running tasks."""
    fresh: bool = False
    """Whether the first look loads the application everywhere; a dry run always does."""
    take_over: bool = False
    """Whether to replace workers that others have started by the inventory's services."""


class Session:
    """One verb's work on a fleet: look, report, confirm, record. `engine.apply` makes changes."""

    def __init__(
        self,
        fleet: Fleet,
        transports: Transports,
        open_broker: Callable[[], "Broker"],
        templates: Templates,
        reporter: Reporter,
        options: Options,
    ) -> None:
        self.fleet = fleet
        self.transports = transports
        self._open_broker = open_broker
        self.reporter = reporter
        self.options = options
        self.files = all_files(fleet, templates)
        self.node_names: dict[str, tuple[str, ...]] = {}
        """Celery's names of each node, by the name here; several for a service of several
        containers.
        """
        self._looked = False
        self._judged: tuple[float, Sequence[Finding]] | None = None
        self._said: Mapping[str, tuple[Application | None, KeptSchedule | None]] = {}

    @cached_property
    def broker(self) -> "Broker":
        """The broker, opened at its first use, in parallel with the first look at the hosts.

        Its libraries take longer to load than that look.
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
        """Look at what is needed, on all hosts of the fleet or on these.

        Messages are read until `read_until` (monotonic seconds). Without `Needs.IMPORTS`, the
        snapshot has the application's and the scheduler's answers of the last look that had them.
        Raises BrokerError if the broker cannot be checked; with `without_broker`, the snapshot says
        so instead.
        """
        options = self.options
        fleet = self.fleet
        if hosts is not None:
            asked_hosts = [host for host in fleet.hosts if host.name in hosts]
            fleet = replace(fleet, hosts=tuple(asked_hosts))
        samples: int | None = SAMPLES
        if options.every_message:
            samples = None
        asked = Looking(
            needs,
            self._paths(),
            options.state_directory,
            samples,
            read_until=read_until,
            without_broker=without_broker,
            fresh=options.dry_run or (options.fresh and not self._looked),
            writes=not options.dry_run,
            take_over=options.take_over,
        )
        waiting = self.reporter.waiting
        found = observe(fleet, self.transports, lambda: self.broker, asked, waiting)
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
        return recall(options.state_directory, fleet.app.app, found)

    def _paths(self) -> dict[str, list[str]]:
        """Return the paths of the files that matter on each host."""
        paths = {}
        for host in self.fleet.hosts:
            its = [host.settings.env_file]
            for wanted in self.files.values():
                its += wanted[host.name]
            if self.options.take_over:
                its += drop_ins(host)
            paths[host.name] = its
        return paths

    def _with_said(self, found: Snapshot) -> Iterator[tuple[str, HostState]]:
        for name, state in found.reachable().items():
            application, kept = self._said.get(name, (None, None))
            yield name, replace(state, application=application, kept=kept)

    def begin_again(self) -> None:
        """Begin another output, whose first look reports its subject again."""
        self._looked = False

    def _keep_names(self, nodes: Mapping[str, NodeState], *, of_services: bool) -> None:
        """Keep the names of nodes.

        Only a look at services shows all nodes of several containers, so no other look removes any.
        """
        for name, node in nodes.items():
            known = self.node_names.get(name, ())
            if of_services or len(known) <= 1:
                self.node_names[name] = node.known_as

    def tell_about(self, snapshot: Snapshot, needs: Needs) -> None:
        """Report what was checked; the first look of a verb does so by itself."""
        self.reporter.about(self.about(snapshot, needs))

    def about(self, snapshot: Snapshot, needs: Needs) -> About:
        """Return the subject of an output that shows this look."""
        about = About(self.fleet.app.app, self.options.inventory, self.broker.name)
        seen = looked_at(self.fleet, snapshot, needs)
        before = []
        for state in snapshot.reachable().values():
            said = state.application
            if said and said.loaded_at < snapshot.at:
                before.append(said.loaded_at)
        loaded_at = min(before, default=None)
        return replace(about, **seen, other_run=snapshot.other_run, loaded_at=loaded_at)

    def remember(self, snapshot: Snapshot) -> None:
        """Record what services were started with, as far as a look shows it."""
        remember(self.options.state_directory, self.fleet.app.app, self.fleet.hosts, snapshot)

    def with_imports(self, snapshot: Snapshot, names: Collection[str]) -> Snapshot:
        """Return the snapshot with the application loaded on all of these hosts."""
        states = snapshot.reachable()
        untried = set()
        for name in names:
            state = states.get(name)
            if state and state.imports_now is None:
                untried.add(name)
        assert snapshot.broker is not None
        tried = probe_imports(self.fleet, self.transports, snapshot.hosts, untried, snapshot.broker)
        return replace(snapshot, hosts={**snapshot.hosts, **tried})

    def diagnose(
        self, snapshot: Snapshot, *, conclusive: bool = True, services: Services | None = None
    ) -> Sequence[Finding]:
        """Judge a snapshot of everything; report and return the findings.

        `conclusive` findings are the end of the output. With `services`, findings about other
        services alone are left out, and the output says how many.
        """
        findings: Sequence[Finding] = judge(
            self.fleet, snapshot, self.files, taking=self.options.take_over
        )
        self._judged = (snapshot.at, findings)
        every = len(findings)
        if services is not None:
            findings = of_these(self.fleet, findings, services)
        self.reporter.findings(findings, conclusive=conclusive)
        left_out = every - len(findings)
        if left_out:
            self.reporter.message(f"{counted(left_out, 'finding')} about other workers not shown")
        return findings

    def found_in(self, snapshot: Snapshot) -> Sequence[Finding] | None:
        """Return what `diagnose` found in this snapshot, None if it was not called."""
        if self._judged is None:
            return None
        at, findings = self._judged
        if at != snapshot.at:
            return None
        return findings

    def blocking(self, snapshot: Snapshot) -> list[Finding]:
        """Return the findings of a snapshot of everything that block something; report nothing."""
        found = []
        for finding in judge(self.fleet, snapshot, self.files):
            if finding.blocks:
                found.append(finding)
        return found

    def left_blocking(self, snapshot: Snapshot, blocking: Sequence[Finding]) -> Sequence[Finding]:
        """Return those of these findings that still block something after the takeover."""
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
        """Return the step that restarts workers, also after changes of the steps `before` it."""
        return worker_step(self.fleet, since or {}, before, self._taking)

    @property
    def _taking(self) -> Judge | None:
        if not self.options.take_over:
            return None
        return taken_over(self.fleet, self.files["unit"], kill=self.options.kill_running)

    def require_consent_possible(self) -> None:
        """Raise UsageError, before any work, if the operator cannot be asked at its end."""
        if not (self.options.dry_run or self.options.yes or self.options.confirm):
            raise UsageError(
                "cannot ask for confirmation (not a terminal, or --json is given); nothing was"
                " changed",
                "check with --dry-run first, then pass --yes",
            )

    def require_alone(self, run: OtherRun | None) -> None:
        """Raise LockHeld if another run is changing the fleet; a dry run only warns.

        A snapshot that was taken meanwhile is not a basis for a plan.
        """
        if not run:
            return
        if not self.options.dry_run:
            raise LockHeld(
                f"{going_on(run)}; nothing was changed",
                "wait for it to end, then run the same command again; if it died, its lock"
                " expires within a minute",
            )
        self.reporter.warning(
            f"{going_on(run)}; it may be the reason for this plan, or may do the same changes",
            "run this again when it has ended",
        )

    def ask(self, question: str) -> None:
        """Ask for the operator's consent. Raises Interrupted if it is not given."""
        if self.options.yes:
            return
        confirm = self.options.confirm
        if confirm is None or not confirm(question):
            raise Interrupted("not confirmed; nothing was changed")

    def begin(self, run_id: str, machines: Mapping[str, str] = MappingProxyType({})) -> Journal:
        """Start the journal of a new run, and report the run's id."""
        options = self.options
        application = self.fleet.app.app
        where = Where(options.inventory, self.broker.name, application, machines)
        journal = Journal.create(options.state_directory, run_id, options.verb, where)
        self.reporter.run_started(run_id)
        return journal


@contextmanager
def closing_journal(journal: Journal) -> Iterator[None]:
    """Record how a run ended if it did not end by itself.

    ^C becomes Interrupted, whose advice says what to do next.
    """
    try:
        with as_interrupt():
            yield
    except KeyboardInterrupt:
        journal.end("interrupted", ExitCode.INTERRUPTED)
        record = read_run(journal.directory)
        if not record.entries:
            raise Interrupted("interrupted; nothing was changed") from None
        back = ""
        if record.stands:
            back = f", or {Command('undo', record.id)}"
        raise Interrupted(
            f"interrupted; run {record.id} has recorded what was done",
            f"{Command('show', record.id)} shows it; run the same command to go on{back}",
        ) from None
    except Interrupted as error:
        journal.end("interrupted", error.exit_code)
        raise
    except RunbookError as error:
        journal.end("failed", error.exit_code)
        raise
    finally:
        journal.close()
