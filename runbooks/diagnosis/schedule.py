"""Whether what is scheduled and what is routed comes to a worker: each link of its way, before
anything waits.
"""

import difflib
from bisect import bisect
from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct

from runbooks.core.application import Application, KeptEntry, RegisteredTask, Route, ScheduleEntry
from runbooks.core.command import Command
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, HostState, NodeState, Severity, Snapshot
from runbooks.core.wording import counted, span, tasks, utc
from runbooks.diagnosis.expected import expected_by
from runbooks.diagnosis.silence import busy_solo, not_seen_by_the_broker

_CLEANUP = "celery.backend_cleanup"
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
"""Schemes of result backends. **Source:** celery 5.7.0 `backends/`: `supports_autoexpire`;
"disabled" keeps none.
"""

_CLOSE = 0.75
_MARGIN_S = 60.0


class Link(Struct, frozen=True):
    """A link of a way that does not hold, in words, or of which that is `unknown`.

    `finding` is None where another fault explains it and is told as that.
    """

    told: str
    finding: Finding | None = None
    unknown: bool = False


class Path(Struct, frozen=True):
    """An entry of the schedule, the host whose application told it, who consumes its queue, and its
    weak `links`.

    One that is not `enabled` is not sent. `last_sent_at` is None where it never was, or, for the
    reason `untold`, that is not known; `next_due_at` None where that is not known.
    """

    entry: ScheduleEntry
    host: str
    consumers: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    enabled: bool = True
    last_sent_at: float | None = None
    next_due_at: float | None = None
    untold: str = ""

    @property
    def broken(self) -> tuple[str, ...]:
        return tuple(link.told for link in self.links if not link.unknown)

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(link.told for link in self.links if link.unknown)

    @property
    def queue(self) -> str:
        """ "" where it is not known."""
        return self.entry.route.queue if self.entry.route else ""


def faults(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Every broken link that no other fault explains."""
    yield from (
        link.finding for path in paths(fleet, snapshot) for link in path.links if link.finding
    )
    yield from _routed_nowhere(fleet, snapshot)


def paths(fleet: Fleet, snapshot: Snapshot) -> list[Path]:
    """The way of every entry, once for all hosts that tell the same; where beat's hosts told, only
    theirs.
    """
    asked = {host.name: host for host in fleet.hosts}
    said = {name: state for name, state in snapshot.reachable().items() if state.application}
    of_beat = {name: state for name, state in said.items() if asked[name].settings.beat}
    told: dict[object, Path] = {}
    for name, state in sorted((of_beat or said).items()):
        for entry, kept in _entries(state):
            key = (entry.name, entry.task, entry.route, repr(entry.args), repr(entry.kwargs))
            if key not in told:
                told[key] = _Way(fleet, snapshot, asked[name], state, entry, kept).path()
    return list(told.values())


def _entries(state: HostState) -> Iterator[tuple[ScheduleEntry, KeptEntry | None]]:
    """What beat sends: what its scheduler keeps outside of the code, and what the code has besides."""
    assert state.application
    kept = {one.entry.name: one for one in state.kept.entries} if state.kept else {}
    if state.kept and state.kept.kind != "file":
        yield from ((one.entry, one) for one in kept.values())
        yield from ((entry, None) for entry in state.application.schedule if entry.name not in kept)
    else:
        yield from ((entry, kept.get(entry.name)) for entry in state.application.schedule)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a name of `known` that is spelt nearly so, or a task of that name
    elsewhere.
    """
    by_end = {one.rpartition(".")[2]: one for one in sorted(known, reverse=True)}
    near = difflib.get_close_matches(name.rpartition(".")[2], list(by_end), n=1, cutoff=_CLOSE)
    return f"; did you mean '{by_end[near[0]]}'?" if near else ""


class _Way:
    """The way of one entry, as the application on a host told it."""

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
        self._fleet, self._snapshot, self._broker = fleet, snapshot, snapshot.broker
        self._host, self._state, self._said, self._entry = (
            host.name,
            state,
            state.application,
            entry,
        )
        self._kept, self._beat = kept, state.services.get(host.beat)
        self._what = f"the schedule's {entry.name}"
        queue = entry.route.queue if entry.route else ""
        self.consumers = {
            name: node
            for name, node in self._broker.nodes.items()
            if queue and queue in node.queues
        }

    def path(self) -> Path:
        """All that is known of it."""
        if self._kept and not self._kept.enabled:
            return Path(
                self._entry, self._host, enabled=False, last_sent_at=self._kept.last_sent_at
            )
        now, kept = self._state.clock_at, self._kept
        untold = "" if kept else self._untold()
        sent_at = kept.last_sent_at if kept else None
        due_at = self._due_at() if kept else self._entry.next_due_at(None, now)
        links = (*self._links(), *self._overdue())
        ahead = due_at if due_at is not None and due_at > now else None
        return Path(
            self._entry,
            self._host,
            tuple(sorted(self.consumers)),
            links,
            True,
            sent_at,
            ahead,
            untold,
        )

    def _untold(self) -> str:
        kept = self._state.kept
        if kept is None:
            return "beat's schedule was not read"
        return (
            f"beat's schedule could not be read: {kept.error}"
            if kept.error
            else "beat has not taken it up yet"
        )

    def _due_at(self) -> float | None:
        """When it is due after what beat counts from; that may be over."""
        kept = self._kept
        if kept is None or kept.counted_from_at is None:
            return None
        return kept.entry.next_due_at(kept.counted_from_at, self._state.clock_at)

    def _overdue(self) -> Iterator[Link]:
        """What was due while beat ran, and was not sent when beat last wrote down all that it had
        sent.

        **Source:** celery 5.7.0 `beat.py: Scheduler.should_sync`: not at each message, and then all
        of it.
        """
        due_at, saved_at, beat = self._due_at(), self._saved_at(), self._beat
        if due_at is None or saved_at is None or beat is None or beat.started_at is None:
            return
        if beat.started_at + _MARGIN_S < due_at < saved_at - _MARGIN_S:
            late = span(self._state.clock_at - due_at)
            assert self._kept
            sent_at = self._kept.last_sent_at
            yield Link(
                f"it was due {late} ago, and beat has not sent it",
                Finding(
                    "schedule.overdue",
                    self._entry.name,
                    f"{self._what} was due {late} ago, and beat, which runs, has not sent it: look"
                    f" into beat's log with {Command('tail-logs', '--grep', self._entry.name)}",
                    (
                        (
                            f"last sent: {utc(sent_at) if sent_at is not None else 'never'}; due:"
                            f" {utc(due_at)}"
                        ),
                        (
                            f"beat has been running since {utc(beat.started_at)}, and wrote down at"
                            f" {utc(saved_at)} what it had sent"
                        ),
                    ),
                ),
            )

    def _saved_at(self) -> float | None:
        """Until when all that was sent is written down, as far as that is known."""
        kept = self._state.kept
        if kept is None or kept.kind == "redbeat":
            return self._state.clock_at
        times = [one.last_sent_at for one in kept.entries]
        times += [self._state.beat_sent_at] if kept.kind == "file" else []
        return max(
            (at for at in times if at is not None and at <= self._state.clock_at), default=None
        )

    def _links(self) -> Iterator[Link]:
        """What is weak, in the order of the way."""
        task = self._entry.task
        if self._said.task(task) is None and task not in (known := self._known()):
            yield self._unknown_task(known)
            return
        yield from self._arguments()
        route = self._entry.route
        if route is None:
            yield Link("where it goes is not known: only beat can make its arguments", unknown=True)
        elif route.error:
            yield self._unsendable(route)
        elif not route.queue:
            where = f"exchange {route.exchange} with the routing key {route.routing_key!r}"
            yield Link(f"who gets it is not known: it goes to {where}", unknown=True)
        elif not self.consumers:
            if not self._has_nothing_to_do():
                yield self._no_consumer(route.queue)
        else:
            yield from self._not_taken(route)
            yield from self._not_registered(route.queue)

    def _known(self) -> frozenset[str]:
        """The tasks that the application or a node knows, wherever."""
        said = (
            state.application for state in self._snapshot.reachable().values() if state.application
        )
        nodes = (node.registered for node in self._broker.nodes.values())
        return frozenset(task.name for one in said for task in one.tasks).union(*nodes)

    def _unknown_task(self, known: Collection[str]) -> Link:
        task, tried = self._entry.task, self._state.imports_now
        if tried and tried.errors.get(task.rpartition(".")[0]):
            return Link(f"no worker knows {task}: its module fails to import")
        told = f"nobody knows {task}"
        if task in self._fleet.app.expected_tasks:
            return Link(told)
        own = [name for name in known if not name.startswith("celery.")]
        registers = (
            f"loaded on {self._host}, the application registers"
            f" {counted(len(self._said.tasks), 'task')}"
        )
        nodes = ", ".join(sorted(self._broker.nodes))
        return Link(
            told + nearest(task, own),
            Finding(
                "schedule.unknown_task",
                self._entry.name,
                f"{self._what} sends {task}, which nobody knows, so the worker that takes it"
                " discards it: correct the name in the schedule, or let the application import its"
                f" module{nearest(task, own)}",
                (
                    f"{registers}, not this one",
                    *([f"inspect registered: none of {nodes} knows it"] if nodes else []),
                ),
            ),
        )

    def _arguments(self) -> Iterator[Link]:
        """**Source:** celery 5.7.0 `app/task.py: Task.apply_async`: a task that beat knows checks
        them before.
        """
        entry, task = self._entry, self._said.task(self._entry.task)
        if task is None or entry.args is None or entry.kwargs is None:
            return
        if misfit := task.misfit(entry.args, entry.kwargs):
            then = "beat cannot send it" if task.checks_arguments else "each run fails"
            told = f"its arguments do not fit {entry.task}: {misfit}"
            yield Link(
                told,
                Finding(
                    "schedule.bad_arguments",
                    entry.name,
                    f"{self._what} has arguments that do not fit {entry.task}, so {then}: {misfit};"
                    " correct its args and kwargs in the schedule",
                    (
                        f"args {list(entry.args)!r}, kwargs {entry.kwargs!r}",
                        f"loaded on {self._host}, {entry.task} takes {_parameters(task)}",
                    ),
                ),
            )

    def _unsendable(self, route: Route) -> Link:
        said = (
            f"Celery's router, in the application loaded on {self._host}, says of"
            f" {self._entry.task}: {route.error}"
        )
        return Link(
            f"it cannot be sent: {route.error}",
            Finding(
                "schedule.unsendable",
                self._entry.name,
                f"{self._what} cannot be sent: correct its options or the application's"
                " task_queues",
                (said,),
            ),
        )

    def _has_nothing_to_do(self) -> bool:
        """Whether it is Celery's own entry that removes old results, and there are none that have
        to be removed.

        **Source:** celery 5.7.0 `beat.py: Scheduler.install_default_entries`; django-celery-beat
        2.9.0 `schedulers.py`, which installs it for every result backend.
        """
        kept_by = {place.scheme for place in self._said.backend}
        return self._entry.task == _CLEANUP and bool(kept_by) and kept_by <= _EXPIRE_BY_THEMSELVES

    def _no_consumer(self, queue: str) -> Link:
        if self._broker.unasked:
            return Link(
                f"who consumes {queue} is not known: the nodes could not be asked", unknown=True
            )
        wanted = [name for name, worker in self._fleet.workers if queue in worker.queues]
        if busy := sorted(busy_solo(self._fleet, self._snapshot).intersection(wanted)):
            return Link(
                f"{', '.join(busy)}, which is to consume {queue}, is at a task and does not tell",
                unknown=True,
            )
        if queue in self._fleet.consumed:
            by = self._fleet.worded("by the inventory ", "")
            who = f" ({by}{', '.join(wanted)} should)" if wanted else ""
            return Link(f"no node that answers consumes {queue}{who}")
        near = nearest(queue, _consumed(self._fleet, self._broker.nodes))
        return Link(
            f"no worker consumes {queue}{near}",
            Finding(
                "schedule.no_consumer",
                self._entry.name,
                f"{self._what} sends {self._entry.task} to {queue}, which no worker consumes, so"
                f" its messages pile up there: correct the queue, or let a worker consume it{near}",
                (
                    f"told by Celery's router, in the application loaded on {self._host}",
                    _nobody(self._fleet),
                ),
                severity=_severity(self._snapshot),
            ),
        )

    def _not_taken(self, route: Route) -> Iterator[Link]:
        if self.consumers.keys() <= not_seen_by_the_broker(self._fleet, self._snapshot):
            yield Link(f"{', '.join(sorted(self.consumers))} has no connection that takes messages")
        given = route.priority or 0
        step = _step(given, _steps(self._said))
        deaf = sorted(name for name in self.consumers if step not in self._polled(name))
        if deaf:
            yield Link(
                f"{', '.join(deaf)} does not poll the list of priority {step}",
                Finding(
                    "schedule.unpolled_priority",
                    self._entry.name,
                    f"{self._what} is sent with priority {given}, into the list of priority"
                    f" {step} of {route.queue}, which {', '.join(deaf)} does not poll: give both"
                    " the same priority_steps",
                    (
                        (
                            f"broker_transport_options, loaded on {self._host}: priority_steps"
                            f" {list(_steps(self._said))}"
                        ),
                        *(f"{name} polls {list(self._polled(name))}" for name in deaf),
                    ),
                ),
            )

    def _polled(self, node: str) -> tuple[int, ...]:
        """The priorities whose lists a node polls: as it says, or the application on its host, or
        the inventory.
        """
        own = self.consumers[node].options
        if own is not None and "priority_steps" in own:
            return tuple(own["priority_steps"])
        state = self._snapshot.reachable().get(node.rpartition("@")[2])
        if state and state.application:
            return _steps(state.application)
        return self._fleet.app.broker_options.priority_steps

    def _not_registered(self, queue: str) -> Iterator[Link]:
        """Of Celery's own tasks no node tells."""
        task = self._entry.task
        if task.startswith("celery."):
            return
        lacking = sorted(
            name for name, node in self.consumers.items() if task not in node.registered
        )
        if not lacking:
            return
        expected = expected_by(self._fleet, self._snapshot)
        of_strangers = frozenset(
            self._fleet.app.expected_tasks
        )  # `worker.unknown` says what a stranger discards
        untold = [name for name in lacking if task not in expected.get(name, of_strangers)]
        finding = Finding(
            "schedule.not_registered",
            self._entry.name,
            f"{self._what} sends {task} to {queue}, where {', '.join(untold)} takes it, does not"
            " know it, and so discards it: give it the code that has it and restart it, or let it"
            " consume other queues",
            tuple(f"inspect registered: {name} lacks {task}" for name in untold),
        )
        yield Link(
            f"{', '.join(lacking)} takes it and does not know it", finding if untold else None
        )


def _nobody(fleet: Fleet) -> str:
    worker = fleet.worded("by the inventory no worker", "no worker that was seen")
    return f"{worker} consumes it, nor does any node that answers"


def _severity(snapshot: Snapshot) -> Severity:
    """A node that hears and does not answer may consume anything."""
    assert snapshot.broker is not None
    return Severity.WARNING if snapshot.broker.unheard else Severity.ERROR


def _consumed(fleet: Fleet, nodes: Mapping[str, NodeState]) -> set[str]:
    return {*fleet.consumed}.union(*(node.queues for node in nodes.values()))


def _steps(said: Application) -> tuple[int, ...]:
    """**Source:** kombu 5.7.0 `transport/redis.py: PRIORITY_STEPS`."""
    return tuple((said.transport_options or {}).get("priority_steps", (0, 3, 6, 9)))


def _step(priority: int, steps: tuple[int, ...]) -> int:
    """**Source:** kombu 5.7.0 `transport/redis.py: Channel.priority, _get_message_priority`: from 0
    to 9.
    """
    return steps[bisect(steps, max(0, min(priority, 9))) - 1]


def _parameters(task: RegisteredTask) -> str:
    """Its parameters; in brackets those that may be left out."""
    each = [one.name if one.required else f"[{one.name}]" for one in task.parameters or ()]
    return ", ".join(each) or "none"


def _routed_nowhere(fleet: Fleet, snapshot: Snapshot) -> Iterator[Finding]:
    """Queues that nobody consumes and that routes lead to: those of the expected tasks, or of all
    where none are named.

    What no route names is left to the default queue. That counts where its messages wait there:
    whoever sends it may always name another queue.
    """
    assert snapshot.broker is not None
    if snapshot.broker.unasked:
        return
    consumed, names = _consumed(fleet, snapshot.broker.nodes), fleet.app.expected_tasks
    waiting = {stray.queue: stray.tasks for stray in snapshot.broker.strays.values()}
    found: dict[str, dict[str, str]] = {}
    for host, state in sorted(snapshot.reachable().items(), reverse=True):
        said = state.application or Application()
        for task in said.own_tasks:
            queue = task.route.queue
            by_rule = queue != said.default_queue
            waits = task.name in names and task.name in waiting.get(queue, ())
            meant = not names or task.name in names
            if queue and queue not in consumed and meant and (by_rule or waits):
                found.setdefault(queue, {})[task.name] = host
    for queue, by_task in sorted(found.items()):
        near = nearest(queue, consumed)
        yield Finding(
            "route.no_consumer",
            queue,
            f"the application routes {tasks(by_task)} to {queue}, which no worker consumes, so such messages pile up "
            f"there: correct the route, or let a worker consume it{near}",
            (
                *(f"told by Celery's router, in the application loaded on {host}: {task}"
                  for task, host in sorted(by_task.items())[:_MOST]),
                *([f"and {len(by_task) - _MOST} more"] if len(by_task) > _MOST else []),
                _nobody(fleet),
            ),
            severity=_severity(snapshot) if fleet.app.expected_tasks else Severity.WARNING,
        )  # fmt: skip


_MOST = 10
