"""The flags of the selection language, with their help."""

from collections.abc import Mapping

# The flags of `core/rules.py: QueueRule`, which takes too long to import for `inv --list`.
MANY: Mapping[str, str] = {
    "queue": "only messages of these queues: one PATTERN or several, e.g. 'low*,daemon'",
    "task": "only messages of these tasks: one PATTERN or several, e.g. 'integrations.*'",
    "content_type": (
        "only messages of this content type: one PATTERN or several, e.g. pickle or"
        " application/x-python-serialize"
    ),
    "compression": (
        "only messages with this compression: one PATTERN or several, e.g. zstd, or '*' for any"
    ),
    "id": "only messages with one of these task IDs",
    "arg": (
        "only messages with this argument: a JSON VALUE, or KEY=VALUE; if repeated, with all of"
        " them"
    ),
}
IN_ARCHIVES: Mapping[str, str] = {
    **MANY,
    "eta_overdue": "only messages whose ETA passed longer ago than this DURATION, e.g. 1h",
    "retries": "only messages that were retried more often than this, e.g. '>2'",
    "expired": "only messages whose `expires` has passed",
    "malformed": "only malformed items; each kills the worker that receives it",
    "unacked": "only messages that a worker fetched and never acknowledged before it ended",
}
_OF_ONE_LIST = "only messages in the list of this PRIORITY, even if no worker polls it"
IN_QUEUES: Mapping[str, str] = {
    "requeue_to": (
        "move the messages to this QUEUE or QUEUE:PRIORITY, instead of only archiving them"
    ),
    **IN_ARCHIVES,
    "priority": _OF_ONE_LIST,
    "unacked": "also messages that a worker fetched and never acknowledged before it ended",
    "unregistered": "only messages whose task no answering node has registered",
    "duplicate": (
        "of messages with the same task and arguments, all but one: keep=newest or keep=oldest"
    ),
    "keep_newest": "all but the newest NUMBER of messages in each list of a priority",
    "with_workflows": "also messages that a chord, a chain or a callback waits for",
    "reason": "the reason that the archive and reports show (default: the rule itself)",
}
IN_ONE_QUEUE: Mapping[str, str] = {
    **{flag: text for flag, text in IN_ARCHIVES.items() if flag != "queue"},
    "priority": _OF_ONE_LIST,
    "unacked": "messages that a worker has fetched and not acknowledged, instead of waiting ones",
    "unregistered": IN_QUEUES["unregistered"],
    "duplicate": IN_QUEUES["duplicate"],
    "keep_newest": IN_QUEUES["keep_newest"],
}
_YES = {"expired", "malformed", "unacked", "unregistered", "with_workflows"}


def unsaid(flag: str) -> bool | None:
    """Return the default of a flag."""
    return False if flag in _YES else None
