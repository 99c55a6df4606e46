"""Whether scheduled and routed tasks reach a worker, checked before anything waits."""

import difflib
from bisect import bisect
from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct

from runbooks.core.application import (
    CLEANUP,
    Application,
    KeptEntry,
    RegisteredTask,
    Route,
    ScheduleEntry,
)
from runbooks.core.command import Command
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, NodeState, Severity, Snapshot
from runbooks.core.wording import counted, span, tasks, utc
from runbooks.diagnosis.expected import expected_by
from runbooks.diagnosis.silence import busy_solo, not_seen_by_the_broker

_EXPIRE_BY_THEMSELVES = frozenset(
    {
        "disabled",
        "redis",
        "rediss",
        "redis+socket",
        "socket",
        "sentinel",
        "rpc",
        "cache",
        "cache+memory",
        "memcached",
    }
)
"""Schemes of result backends whose results expire; "disabled" keeps no results.

**Source:** celery 5.7.0 `backends/`: `supports_autoexpire`.
"""

_CLOSE = 0.75
"""How alike two names have to be, from 0 to 1, for "did you mean"."""
_MARGIN_S = 60.0
_MOST = 10


class Link(Struct, frozen=True):
    """A link of an entry's path that is broken, or not known."""

    what: str
    """What is wrong, or not known."""
    finding: Finding | None = None
    """None if another finding explains it."""
    unknown: bool = False


class Path(Struct, frozen=True):
    """The way of an entry of the schedule to the workers that run it."""

    entry: ScheduleEntry
    host: str
    """The host whose application has the entry."""
    consumers: tuple[str, ...] = ()
    """The nodes that consume its queue."""
    links: tuple[Link, ...] = ()
    """Only the links that are broken or not known."""
    enabled: bool = True
    """An entry that is not enabled is not sent."""
    last_sent_at: float | None = None
    """None if it was never sent, or if that is not known (see `why_unknown`)."""
    next_due_at: float | None = None
    """None if that is not known."""
    why_unknown: str = ""
    """Why it is not known when the entry was last sent."""

    @property
    def broken(self) -> tuple[str, ...]:
        return tuple(link.what for link in self.links if not link.unknown)

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(link.what for link in self.links if link.unknown)

    @property
    def queue(self) -> str:
        """ "" if it is not known."""
        return self.entry.route.queue if self.entry.route else ""


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find every broken link that no other finding explains."""
    for path in paths(fleet, snapshot):
        for link in path.links:
            if link.finding:
                yield link.finding
    yield from _routed_nowhere(fleet, snapshot)


def paths(fleet: Fleet, snapshot: Snapshot) -> list[Path]:
    """Return the path of every entry, once for all hosts that have the same entry.

    Only the entries of beat's hosts, if their applications were loaded.
    """
    hosts = {host.name: host for host in fleet.hosts}
    loaded = {name: state for name, state in snapshot.reachable().items() if state.application}
    of_beat = {name: state for name, state in loaded.items() if hosts[name].settings.beat}
    found: dict[object, Path] = {}
    for name, state in sorted((of_beat or loaded).items()):
        for entry, kept in entries(state):
            key = (entry.name, entry.task, entry.route, repr(entry.args), repr(entry.kwargs))
            if key not in found:
                found[key] = _Way(fleet, snapshot, hosts[name], state, entry, kept).path()
    return list(found.values())


def entries(state: HostState) -> Iterator[tuple[ScheduleEntry, KeptEntry | None]]:
    """Yield the entries that beat sends, from its scheduler's store and from the code."""
    assert state.application
    kept = {one.entry.name: one for one in state.kept.entries} if state.kept else {}
    if state.kept and state.kept.kind != "file":
        yield from ((one.entry, one) for one in kept.values())
        yield from ((entry, None) for entry in state.application.schedule if entry.name not in kept)
    else:
        yield from ((entry, kept.get(entry.name)) for entry in state.application.schedule)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for a similar name, or for the same task in another module."""
    by_end = {one.rpartition(".")[2]: one for one in sorted(known, reverse=True)}
    near = difflib.get_close_matches(name.rpartition(".")[2], list(by_end), n=1, cutoff=_CLOSE)
    return f"; did you mean '{by_end[near[0]]}'?" if near else ""


class _Way:
    """The path of one entry, as the application on a host has it."""

    def __init__(
        self,
        fleet: Fleet,
        snapshot: Snapshot,
        host: FleetHost,
        state: HostState,
        entry: ScheduleEntry,
        kept: KeptEntry | None,
    ) -> None:
        assert snapshot.broker is not None
        assert state.application
        self._fleet = fleet
        self._snapshot = snapshot
        self._broker = snapshot.broker
        self._host = host.name
        self._state = state
        self._application = state.application
        self._entry = entry
        self._kept = kept
        self._beat = state.services.get(host.beat)
        self._what = f"the schedule's {entry.name}"
        queue = entry.route.queue if entry.route else ""
        self.consumers: dict[str, NodeState] = {}
        for name, node in self._broker.nodes.items():
            if queue and queue in node.queues:
                self.consumers[name] = node

    def path(self) -> Path:
        """Return the path, with its broken and unknown links."""
        kept = self._kept
        if kept and not kept.enabled:
            return Path(self._entry, self._host, enabled=False, last_sent_at=kept.last_sent_at)
        now = self._state.clock_at
        if kept:
            sent_at = kept.last_sent_at
            due_at = self._due_at()
            why_unknown = ""
        else:
            sent_at = None
            due_at = self._entry.next_due_at(None, now)
            why_unknown = self._why_unknown()
        return Path(
            self._entry,
            self._host,
            tuple(sorted(self.consumers)),
            (*self._links(), *self._overdue()),
            last_sent_at=sent_at,
            next_due_at=due_at if due_at is not None and due_at > now else None,
            why_unknown=why_unknown,
        )

    def _why_unknown(self) -> str:
        kept = self._state.kept
        if kept is None:
            return "beat's schedule was not read"
        if kept.error:
            return f"beat's schedule could not be read: {kept.error}"
        return "beat has not loaded it yet"

    def _due_at(self) -> float | None:
        """Return when it is due next after its last run; that may be in the past."""
        kept = self._kept
        if kept is None or kept.counted_from_at is None:
            return None
        return kept.entry.next_due_at(kept.counted_from_at, self._state.clock_at)

    def _overdue(self) -> Iterator[Link]:
        """Find an entry that was due while beat ran, and that beat did not record as sent.

        **Source:** celery 5.7.0 `beat.py: Scheduler.should_sync`: it does not write after each
        message, but then it writes everything.
        """
        due_at = self._due_at()
        saved_at = self._saved_at()
        started_at = self._beat.started_at if self._beat else None
        if due_at is None or saved_at is None or started_at is None:
            return
        if not started_at + _MARGIN_S < due_at < saved_at - _MARGIN_S:
            return
        assert self._kept
        late = span(self._state.clock_at - due_at)
        sent_at = self._kept.last_sent_at
        sent = utc(sent_at) if sent_at is not None else "never"
        finding = Finding(
            "schedule.overdue",
            self._entry.name,
            f"{self._what} was due {late} ago, and beat, which runs, has not sent it: read beat's"
            f" log with {Command('tail-logs', '--grep', self._entry.name)}",
            (
                f"last sent: {sent}; due: {utc(due_at)}",
                f"beat has been running since {utc(started_at)}, and recorded at {utc(saved_at)}"
                " what it had sent",
            ),
        )
        yield Link(f"it was due {late} ago, and beat has not sent it", finding)

    def _saved_at(self) -> float | None:
        """Return until when beat's records are complete, as far as that is known."""
        now = self._state.clock_at
        kept = self._state.kept
        if kept is None or kept.kind == "redbeat":
            return now
        times = [one.last_sent_at for one in kept.entries]
        if kept.kind == "file":
            times.append(self._state.beat_sent_at)
        return max((at for at in times if at is not None and at <= now), default=None)

    def _links(self) -> Iterator[Link]:
        """Yield the broken and unknown links, in the order of the path."""
        task = self._entry.task
        if self._application.task(task) is None:
            known = self._known()
            if task not in known:
                yield self._unknown_task(known)
                return
        yield from self._arguments()
        route = self._entry.route
        if route is None:
            yield Link("its queue is not known: only beat can create its arguments", unknown=True)
        elif route.error:
            yield self._unsendable(route)
        elif not route.queue:
            where = f"exchange {route.exchange} with the routing key {route.routing_key!r}"
            yield Link(f"its worker is not known: it goes to {where}", unknown=True)
        elif self.consumers:
            yield from self._not_taken(route)
            yield from self._not_registered(route.queue)
        elif not self._has_nothing_to_do():
            yield self._no_consumer(route.queue)

    def _known(self) -> frozenset[str]:
        """Return the tasks that the application on any host, or any node, knows."""
        known = set[str]()
        for state in self._snapshot.reachable().values():
            if state.application:
                known.update(task.name for task in state.application.tasks)
        for node in self._broker.nodes.values():
            known |= node.registered
        return frozenset(known)

    def _unknown_task(self, known: Collection[str]) -> Link:
        task = self._entry.task
        tried = self._state.imports_now
        if tried and tried.errors.get(task.rpartition(".")[0]):
            return Link(f"no worker knows {task}: its module fails to import")
        what = f"no worker knows {task}"
        if task in self._fleet.app.expected_tasks:
            return Link(what)
        near = nearest(task, [name for name in known if not name.startswith("celery.")])
        count = counted(len(self._application.tasks), "task")
        evidence = [f"loaded on {self._host}, the application registers {count}, but not this one"]
        if self._broker.nodes:
            nodes = ", ".join(sorted(self._broker.nodes))
            evidence.append(f"inspect registered: none of {nodes} knows it")
        finding = Finding(
            "schedule.unknown_task",
            self._entry.name,
            f"{self._what} sends {task}, which no worker knows, so the worker that takes it"
            " discards it: correct the name in the schedule, or make the application import its"
            f" module{near}",
            tuple(evidence),
        )
        return Link(what + near, finding)

    def _arguments(self) -> Iterator[Link]:
        """Find arguments that do not fit the task.

        **Source:** celery 5.7.0 `app/task.py: Task.apply_async`: it checks the arguments of a task
        that beat knows before it sends.
        """
        entry = self._entry
        task = self._application.task(entry.task)
        if task is None or entry.args is None or entry.kwargs is None:
            return
        misfit = task.misfit(entry.args, entry.kwargs)
        if not misfit:
            return
        then = "beat cannot send it" if task.checks_arguments else "each run fails"
        finding = Finding(
            "schedule.bad_arguments",
            entry.name,
            f"{self._what} has arguments that do not fit {entry.task}, so {then}: {misfit}; correct"
            " its args and kwargs in the schedule",
            (
                f"args {list(entry.args)!r}, kwargs {entry.kwargs!r}",
                f"loaded on {self._host}, {entry.task} takes {_parameters(task)}",
            ),
        )
        yield Link(f"its arguments do not fit {entry.task}: {misfit}", finding)

    def _unsendable(self, route: Route) -> Link:
        finding = Finding(
            "schedule.unsendable",
            self._entry.name,
            f"{self._what} cannot be sent: correct its options or the application's task_queues",
            (
                f"Celery's router, in the application loaded on {self._host}, reports for"
                f" {self._entry.task}: {route.error}",
            ),
        )
        return Link(f"it cannot be sent: {route.error}", finding)

    def _has_nothing_to_do(self) -> bool:
        """Whether it is Celery's entry that removes old results, and results expire by themselves.

        **Source:** celery 5.7.0 `beat.py: Scheduler.install_default_entries`; django-celery-beat
        2.9.0 `schedulers.py`, which installs it for every result backend.
        """
        kept_by = {place.scheme for place in self._application.backend}
        return self._entry.task == CLEANUP and bool(kept_by) and kept_by <= _EXPIRE_BY_THEMSELVES

    def _no_consumer(self, queue: str) -> Link:
        if self._broker.unasked:
            return Link(
                f"it is not known who consumes {queue}: the nodes could not be asked", unknown=True
            )
        wanted = [name for name, worker in self._fleet.workers if queue in worker.queues]
        busy = sorted(busy_solo(self._fleet, self._snapshot).intersection(wanted))
        if busy:
            return Link(
                f"{', '.join(busy)}, which should consume {queue}, is busy and does not answer",
                unknown=True,
            )
        if queue in self._fleet.consumed:
            names = ", ".join(wanted)
            who = self._fleet.worded(f" (the inventory expects {names})", f" ({names} should)")
            return Link(f"no node that answers consumes {queue}{who if wanted else ''}")
        near = nearest(queue, _consumed(self._fleet, self._broker.nodes))
        finding = Finding(
            "schedule.no_consumer",
            self._entry.name,
            f"{self._what} sends {self._entry.task} to {queue}, which no worker consumes, so its"
            f" messages pile up there: correct the queue, or add it to a worker{near}",
            (
                f"reported by Celery's router, in the application loaded on {self._host}",
                _consumed_by_none(self._fleet),
            ),
            severity=_severity(self._snapshot),
        )
        return Link(f"no worker consumes {queue}{near}", finding)

    def _not_taken(self, route: Route) -> Iterator[Link]:
        if self.consumers.keys() <= not_seen_by_the_broker(self._fleet, self._snapshot):
            yield Link(f"{', '.join(sorted(self.consumers))} has no connection that takes messages")
        given = route.priority or 0
        steps = _steps(self._application)
        step = _step(given, steps)
        deaf = sorted(name for name in self.consumers if step not in self._polled(name))
        if not deaf:
            return
        names = ", ".join(deaf)
        finding = Finding(
            "schedule.unpolled_priority",
            self._entry.name,
            f"{self._what} is sent with priority {given}, into the list of priority {step} of"
            f" {route.queue}, which {names} does not poll: set the same priority_steps for both",
            (
                f"broker_transport_options, loaded on {self._host}: priority_steps {list(steps)}",
                *(f"{name} polls {list(self._polled(name))}" for name in deaf),
            ),
        )
        yield Link(f"{names} does not poll the list of priority {step}", finding)

    def _polled(self, node: str) -> tuple[int, ...]:
        """Return the priorities whose lists a node polls.

        As it reports, or else by the application on its host, or else by the inventory.
        """
        own = self.consumers[node].options
        if own is not None and "priority_steps" in own:
            return tuple(own["priority_steps"])
        state = self._snapshot.reachable().get(node.rpartition("@")[2])
        if state and state.application:
            return _steps(state.application)
        return self._fleet.app.broker_options.priority_steps

    def _not_registered(self, queue: str) -> Iterator[Link]:
        """Find consumers that do not know the task; no node lists Celery's own tasks."""
        task = self._entry.task
        if task.startswith("celery."):
            return
        lacking = sorted(
            name for name, node in self.consumers.items() if task not in node.registered
        )
        if not lacking:
            return
        expected = expected_by(self._fleet, self._snapshot)
        # `worker.unknown` reports what a worker discards that is not in the inventory.
        of_strangers = frozenset(self._fleet.app.expected_tasks)
        unreported = [name for name in lacking if task not in expected.get(name, of_strangers)]
        finding = Finding(
            "schedule.not_registered",
            self._entry.name,
            f"{self._what} sends {task} to {queue}, and {', '.join(unreported)} takes it, does not"
            " know it, and so discards it: deploy the code with the task there and restart it, or"
            " give it other queues",
            tuple(f"inspect registered: {name} lacks {task}" for name in unreported),
        )
        yield Link(
            f"{', '.join(lacking)} takes it and does not know it", finding if unreported else None
        )


def _consumed_by_none(fleet: Fleet) -> str:
    workers = fleet.worded("no worker of the inventory", "no worker that was seen")
    return f"{workers} and no node that answers consumes it"


def _severity(snapshot: Snapshot) -> Severity:
    """Only warn if a node hears and does not answer: it may consume any queue."""
    assert snapshot.broker is not None
    return Severity.WARNING if snapshot.broker.unheard else Severity.ERROR


def _consumed(fleet: Fleet, nodes: Mapping[str, NodeState]) -> set[str]:
    return {*fleet.consumed}.union(*(node.queues for node in nodes.values()))


def _steps(application: Application) -> tuple[int, ...]:
    """**Source:** kombu 5.7.0 `transport/redis.py: PRIORITY_STEPS`."""
    return tuple((application.transport_options or {}).get("priority_steps", (0, 3, 6, 9)))


def _step(priority: int, steps: tuple[int, ...]) -> int:
    """Return the step of a priority from 0 to 9.

    **Source:** kombu 5.7.0 `transport/redis.py: Channel.priority, _get_message_priority`.
    """
    return steps[bisect(steps, max(0, min(priority, 9))) - 1]


def _parameters(task: RegisteredTask) -> str:
    """List the parameters, with optional ones in brackets."""
    each = [one.name if one.required else f"[{one.name}]" for one in task.parameters or ()]
    return ", ".join(each) or "no arguments"


def _routed_nowhere(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Find queues without a consumer that routes of the expected tasks, or of all tasks, lead to.

    Tasks without a route go to the default queue. They count only if such messages wait there: the
    sender may always name another queue.
    """
    assert snapshot.broker is not None
    if snapshot.broker.unasked:
        return
    consumed = _consumed(fleet, snapshot.broker.nodes)
    for queue, by_task in sorted(_routed(fleet, snapshot).items()):
        if queue in consumed:
            continue
        near = nearest(queue, consumed)
        evidence = [
            f"reported by Celery's router, in the application loaded on {host}: {task}"
            for task, host in sorted(by_task.items())[:_MOST]
        ]
        if len(by_task) > _MOST:
            evidence.append(f"and {len(by_task) - _MOST} more")
        yield Finding(
            "route.no_consumer",
            queue,
            f"the application routes {tasks(by_task)} to {queue}, which no worker consumes, so such"
            f" messages pile up there: correct the route, or add the queue to a worker{near}",
            (*evidence, _consumed_by_none(fleet)),
            severity=_severity(snapshot) if fleet.app.expected_tasks else Severity.WARNING,
        )


def _routed(fleet: Fleet, snapshot: Snapshot) -> dict[str, dict[str, str]]:
    """Return the tasks that count, by their queue, each with the first host that routes it so."""
    assert snapshot.broker is not None
    names = fleet.app.expected_tasks
    waiting = {stray.queue: stray.tasks for stray in snapshot.broker.strays.values()}
    routed: dict[str, dict[str, str]] = {}
    for host, state in sorted(snapshot.reachable().items(), reverse=True):
        application = state.application or Application()
        for task in application.own_tasks:
            queue = task.route.queue
            expected = task.name in names
            waits = expected and task.name in waiting.get(queue, ())
            has_route = queue != application.default_queue
            if queue and (expected or not names) and (has_route or waits):
                routed.setdefault(queue, {})[task.name] = host
    return routed
