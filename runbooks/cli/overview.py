"""The verbs by purpose, as `inv` alone lists them."""

from collections.abc import Iterator, Mapping

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Start": ("adopt", "init", "completion"),
    "Inspect": (
        "diagnose",
        "verify",
        "explain",
        "workers",
        "queues",
        "messages",
        "broker",
        "tasks",
        "task",
        "schedule",
        "tail-logs",
        "monitor",
        "hosts",
        "render",
    ),
    "Change": (
        "remediate",
        "clean-queues",
        "restart-workers",
        "fix-imports",
        "install-units",
        "install-cron",
        "run-task",
        "retry",
        "rate-limit",
        "pool",
        "consumer",
        "revoke",
        "shutdown",
    ),
    "Undo": (
        "runs",
        "show",
        "report",
        "undo",
        "archive.list",
        "archive.show",
        "archive.verify",
        "archive.restore",
    ),
    "Try out": ("sandbox", "fleet"),
}
REST = "Develop"


def grouped(verbs: Mapping[str, str]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield each heading that has verbs, with these verbs and their help."""
    known = {name for names in GROUPS.values() for name in names}
    rest = tuple(name for name in verbs if name not in known)
    for heading, names in (*GROUPS.items(), (REST, rest)):
        if there := [(name, verbs[name]) for name in names if name in verbs]:
            yield heading, there
