"""All faults and calm states, and the codes that no fault makes."""

from lab.faults import (  # noqa: F401 (they register what they have)
    application,
    beat,
    broker,
    container,
    cron,
    environment,
    healthy,
    host,
    logrotate,
    program,
    queue,
    schedule,
    service,
    stuck,
    task,
    timer,
    unit,
    worker,
    worker_on_hosts,
)
from lab.faults.fault import CALM, FAULTS

__all__ = ["CALM", "FAULTS", "NOT_MADE"]

_OF_PLANS = "no look finds it: it is why a plan leaves a service alone, or what its proof lacks"
_NOBODY_YET = "no way to make it has been written yet"
_CLOCK = "the clock of this machine is left as it is"

NOT_MADE: dict[str, str] = {
    "beat.repeated_hour": _CLOCK,
    "broker.clock": _CLOCK,
    "host.not_loaded": _NOBODY_YET,
    "message.would_kill": _OF_PLANS,
    "schedule.overdue": (
        "it takes a beat that leaves one entry out for minutes, and sends the others"
    ),
    "schedule.unpolled_priority": (
        "where a worker has other steps than the inventory, broker.options_differ tells it"
    ),
    "service.not_restarted": _OF_PLANS,
    "service.restart_asked": _OF_PLANS,
    "worker.answer_unknown": _OF_PLANS,
    "worker.left_processes": (
        "of a killed worker with -B beat.several tells the beat, and pool processes end soon"
    ),
    "worker.node_unclear": _NOBODY_YET,
    "worker.not_taken_over": _OF_PLANS,
    "worker.to_be_taken_over": _OF_PLANS,
    "worker.would_kill": _OF_PLANS,
}
"""Why this machine cannot make a code, or nobody has tried."""
