"""Find workers that would not come back: their connection to the broker fails on the host."""

import re
from collections.abc import Iterator, Sequence

from runbooks.core.effects import Change
from runbooks.core.errors import Trouble
from runbooks.core.fleet import Fleet, FleetHost
from runbooks.core.model import Finding, ImportProbe, Snapshot
from runbooks.diagnosis.broker import is_at
from runbooks.diagnosis.code import blocking, environment_of, with_values

_REACH = "correct the host and port in its broker URL, or let this host through"
_OF_A_USER = (
    "username-password|invalid password|without any password|Authentication required|WRONGPASS"
    "|NOAUTH"
)

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
    (_OF_A_USER, "the broker refuses its user or password", "correct these in its broker URL"),
    (
        "permission|NOPERM|unknown command",
        "its Redis user lacks rights that a worker needs",
        "give it the right by ACL SETUSER; channels are a right of their own: &*",
    ),
    (
        "read.only",
        "that server is a replica, and accepts no writes",
        "name the master in its broker URL",
    ),
    (
        r"\[SSL|SSL:|CERTIFICATE_VERIFY",
        "TLS fails",
        "correct the scheme of its broker URL, or the certificates that this names",
    ),
    (
        "URL cannot be read",
        "its broker URL cannot be read, and is not shown, because it may hold a password",
        "write @ : / ? # in a password as %40 %3A %2F %3F %23",
    ),
)
"""Pattern of an error, its meaning, the advice.

**Source:** redis-py 8.1.0 `connection.py`; Redis' error replies; getaddrinfo(3), connect(2).
"""

_UNKNOWN_CAUSE = ("the broker does not accept it", "the evidence has the error")


def faults(fleet: Fleet, snapshot: Snapshot, known: Sequence[Finding]) -> Iterator[Finding]:
    """Yield a finding for each host whose application does not reach its broker as a worker does.

    It blocks starts and restarts there, unless the inventory's environment fixes the connection.
    """
    for host in fleet.hosts:
        state = snapshot.reachable().get(host.name)
        if state is None or state.imports_now is None or state.imports_wanted is None:
            continue
        now = state.imports_now
        wanted = state.imports_wanted
        if wanted.broker_error and _is_the_brokers(fleet, snapshot, wanted):
            continue
        nodes = snapshot.broker.nodes if snapshot.broker else {}
        answers = any(host.node(worker) in nodes for worker in host.settings.workers)
        if wanted.broker_error:
            when = "now" if now.broker_error else "with the inventory's celery_env"
            yield _finding(host, wanted, when, answers=answers)
        elif now.broker_error:
            fix = environment_of(host, known) if wanted.loaded else ()
            yield _finding(host, now, "now", fix, answers=answers)


def _is_the_brokers(fleet: Fleet, snapshot: Snapshot, tried: ImportProbe) -> bool:
    """Return whether the broker accepts no client at all, which is a finding of its own."""
    why = snapshot.broker.unasked if snapshot.broker else None
    # with these, another user or another password may be at fault there
    own = (Trouble.WRONG_PASSWORD, Trouble.MISSING_RIGHT)
    return why is not None and why.trouble not in own and is_at(fleet, tried)


def _finding(
    host: FleetHost, tried: ImportProbe, when: str, fix: tuple[Change, ...] = (), *, answers: bool
) -> Finding:
    """`answers`: workers of the host still answer, over connections that they opened before."""
    file = host.settings.env_file
    why, advice = _cause_of(tried.broker_error)
    evidence = [f"tried there as {host.settings.user}, with {file}: {tried.broker_error}"]
    if fix:
        advice = f"with the inventory's values in {file} it would"
        evidence.append("also tried with the inventory's values: it connects")
    if answers and when == "now":
        evidence.append(
            "workers that run there answer: they keep their connections until these are lost"
        )
    origin = f" from {tried.broker_at}" if tried.broker_at else ""
    finding = Finding(
        "worker.would_be_locked_out",
        host.name,
        f"a worker started on {host.name} {when} would get no messages{origin}: {why}; {advice}",
        tuple(evidence),
    )
    return with_values(finding, fix) if fix else blocking(finding, host)


def _cause_of(error: str) -> tuple[str, str]:
    """Return what an error means, and the advice."""
    for pattern, why, advice in _CAUSES:
        if re.search(pattern, error, re.IGNORECASE):
            return why, advice
    return _UNKNOWN_CAUSE
