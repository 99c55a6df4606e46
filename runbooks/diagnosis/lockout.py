"""Workers that would not come back: the connection that they make when they start was tried on the
host, and failed.
"""

import re
from collections.abc import Iterator, Sequence

from runbooks.core.effects import Change
from runbooks.core.errors import Trouble
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Block, Finding, ImportProbe, Snapshot
from runbooks.diagnosis.broker import is_at
from runbooks.diagnosis.code import environment_of

_REACH = "correct the host and port in its broker URL, or let this host through"
_CAUSES = (
    ("Connection refused", "nothing listens there, or a firewall refuses this host", _REACH),
    (
        "no answer|timed out|Timeout|No route|unreachable",
        "the broker cannot be reached from this host",
        _REACH,
    ),
    (
        "resolution|not known|No address",
        "this host does not know the broker's name",
        "correct it in its broker URL, or this host's DNS",
    ),
    (
        (
            "username-password|invalid password|without any password|Authentication"
            " required|WRONGPASS|NOAUTH"
        ),
        "the broker refuses its user or password",
        "correct these in its broker URL",
    ),
    (
        "permission|NOPERM|unknown command",
        "its Redis user may not do what a worker does",
        "give it the right by ACL SETUSER; channels are a right of their own: &*",
    ),
    (
        "read.only",
        "that server is a replica, and takes no writes",
        "name the master in its broker URL",
    ),
    (
        r"\[SSL|SSL:|CERTIFICATE_VERIFY",
        "TLS fails",
        "correct the scheme of its broker URL, or the certificates that this names",
    ),
    (
        "URL cannot be read",
        "its broker URL cannot be read, and is not shown, for it may hold a password",
        "write @ : / ? # in a password as %40 %3A %2F %3F %23",
    ),
)
"""**Source:** redis-py 8.1.0 `connection.py`; Redis' error replies; getaddrinfo(3), connect(2)."""


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """A finding for each host whose application did not get to its broker as a worker does.

    It keeps back what would start or restart there, unless the inventory's environment mends it.
    """
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state is None or state.imports_now is None or state.imports_wanted is None:
            continue
        now, wanted = state.imports_now, state.imports_wanted
        if wanted.broker_error and _is_the_brokers(fleet, snapshot, wanted):
            continue
        answers = snapshot.broker is not None and any(
            host.node(worker) in snapshot.broker.nodes for worker in host.settings.workers
        )
        if wanted.broker_error:
            when = "now" if now.broker_error else "with the inventory's celery_env"
            yield _finding(host, wanted, when, answers=answers)
        elif now.broker_error:
            mended = environment_of(host, known) if wanted.loaded else ()
            yield _finding(host, now, "now", mended, answers=answers)


def _is_the_brokers(fleet: Fleet, snapshot: Snapshot, tried: ImportProbe) -> bool:
    """Whether the state of the broker, which is a finding of its own, lets nobody in, whoever
    tries.
    """
    why = snapshot.broker.unasked if snapshot.broker else None
    own = (
        Trouble.WRONG_PASSWORD,
        Trouble.MISSING_RIGHT,
    )  # another user, or another password, may be at fault there
    return why is not None and why.trouble not in own and is_at(fleet, tried)


def _finding(
    host: FleetHost,
    tried: ImportProbe,
    when: str,
    mended: tuple[Change, ...] = (),
    *,
    answers: bool,
) -> Finding:
    """`answers`: workers of the host do, over connections that they made before."""
    why, advice = next(
        (
            (why, advice)
            for pattern, why, advice in _CAUSES
            if re.search(pattern, tried.broker_error, re.IGNORECASE)
        ),
        ("it does not get in", "the evidence has what was said"),
    )
    file, at = host.settings.env_file, tried.broker_at
    return Finding(
        "worker.would_be_locked_out",
        host.name,
        f"a worker started on {host.name} {when} would get no"
        f" messages{f' from {at}' if at else ''}: {why}; "
        + (f"with the inventory's values in {file} it would" if mended else advice),
        (f"tried there as {host.settings.user}, with {file}: {tried.broker_error}",)
        + (("tried with the inventory's values, too: it connects",) if mended else ())
        + (
            (
                (
                    "workers that run there answer: they keep the connections that they have until"
                    " these are lost"
                ),
            )
            if answers and when == "now"
            else ()
        ),
        remedy=(
            "set the inventory's values in the environment file, then restart" if mended else None
        ),
        fix=mended,
        blocks=() if mended else (Block(host.name),),
    )
