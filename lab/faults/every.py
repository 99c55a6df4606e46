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
    program,
    queue,
    schedule,
    stuck,
    task,
    unit,
    worker,
)
from lab.faults.fault import CALM, FAULTS

__all__ = ["CALM", "FAULTS", "NOT_MADE"]

_OF_PLANS = "no look finds it: it is why a plan leaves a service alone, or what its proof lacks"
_NOBODY_YET = "no way to make it has been written yet"
_CLOCK = "the clock of this machine is left as it is"

NOT_MADE: dict[str, str] = {
    "beat.repeated_hour": _CLOCK,
    "broker.clock": _CLOCK,
    "host.clock": _CLOCK,
    "host.not_loaded": _NOBODY_YET,
    "inventory.units_of_another": _NOBODY_YET,
    "logrotate.by_another": _NOBODY_YET,
    "logrotate.differs": _NOBODY_YET,
    "logrotate.missing": _NOBODY_YET,
    "logrotate.not_ours": _NOBODY_YET,
    "logrotate.stale": _NOBODY_YET,
    "message.would_kill": _OF_PLANS,
    "schedule.overdue": "it takes a beat that leaves one entry out for minutes, and sends the others",
    "schedule.unpolled_priority": "where a worker has other steps than the inventory, broker.options_differ tells it",
    "service.manager_away": _NOBODY_YET,
    "service.not_restarted": _OF_PLANS,
    "service.restart_asked": _OF_PLANS,
    "service.runs_elsewhere": _NOBODY_YET,
    "service.untold": _NOBODY_YET,
    "timer.differs": _NOBODY_YET,
    "timer.missing": _NOBODY_YET,
    "timer.not_enabled": _NOBODY_YET,
    "timer.not_ours": _NOBODY_YET,
    "timer.stale": _NOBODY_YET,
    "worker.answer_unknown": _OF_PLANS,
    "worker.leaked_processes": _NOBODY_YET,
    "worker.left_processes": _NOBODY_YET,
    "worker.node_unclear": _NOBODY_YET,
    "worker.not_taken_over": _NOBODY_YET,
    "worker.other_unit": _NOBODY_YET,
    "worker.starting": _NOBODY_YET,
    "worker.to_be_taken_over": _NOBODY_YET,
    "worker.would_kill": _OF_PLANS,
}
"""Why this machine cannot make a code, or nobody has tried."""
