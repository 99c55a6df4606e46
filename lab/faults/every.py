"""All faults and calm states."""

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
    plan,
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

__all__ = ["CALM", "FAULTS"]
