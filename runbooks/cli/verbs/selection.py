"""The flags of the selection language, with their help."""

from collections.abc import Mapping

# The vocabulary is that of `core/rules.py: QueueRule`, which takes too long to import for `inv
# --list`.
MANY: Mapping[str, str] = {
    "queue": "messages of these queues: a PATTERN or several, e.g. 'low*,daemon'",
    "task": "of these tasks: a PATTERN or several, e.g. 'integrations.*'",
    "content_type": (
        "of this content type: a PATTERN or several, e.g. pickle or application/x-python-serialize"
    ),
    "compression": "compressed so: a PATTERN or several, e.g. zstd, or '*' for any",
    "id": "with one of these task IDs",
    "arg": (
        "called with this argument: a JSON VALUE, or KEY=VALUE; given several times, all must be"
        " there"
    ),
}
IN_ARCHIVES: Mapping[str, str] = {
    **MANY,
    "eta_overdue": "whose ETA passed longer ago than this DURATION, e.g. 1h",
    "retries": "that were retried more often than this, e.g. '>2'",
    "expired": "whose `expires` has passed",
    "malformed": "that are no messages: each kills the worker that receives it",
    "unacked": "that were fetched by a worker that was gone, and never acknowledged",
}
_OF_ONE_LIST = "that wait in the list of this PRIORITY; it may be one that no worker polls"
IN_QUEUES: Mapping[str, str] = {
    "requeue_to": (
        "move them into this QUEUE or QUEUE:PRIORITY, instead of taking them into the archive"
    ),
    **IN_ARCHIVES,
    "priority": _OF_ONE_LIST,
    "unacked": "also those that were fetched by a worker that is gone, and never acknowledged",
    "unregistered": "whose task no node that answers has registered",
    "duplicate": (
        "all but one of those with the same task and arguments: keep=newest or keep=oldest"
    ),
    "keep_newest": "all but the newest so many, a NUMBER, in each list of a priority",
    "with_workflows": "also those that a chord, a chain or a callback waits for",
    "reason": "what the archive and reports say of them (default: the rule itself)",
}
IN_ONE_QUEUE: Mapping[str, str] = {
    **{flag: told for flag, told in IN_ARCHIVES.items() if flag != "queue"},
    "priority": _OF_ONE_LIST,
    "unacked": "those that a worker has fetched and not acknowledged, instead of those that wait",
    "unregistered": IN_QUEUES["unregistered"],
    "duplicate": IN_QUEUES["duplicate"],
    "keep_newest": IN_QUEUES["keep_newest"],
}
_YES = {"expired", "malformed", "unacked", "unregistered", "with_workflows"}


def unsaid(flag: str) -> bool | None:
    """What a flag is where it was not given."""
    return False if flag in _YES else None
