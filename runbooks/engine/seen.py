"""The looks of a run, as its record keeps them: the depths of the queues, and the findings."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from runbooks.core.command import plain
from runbooks.core.model import Finding, Snapshot
from runbooks.core.redaction import redact
from runbooks.core.reporter import Check


class Seen(Struct, frozen=True):
    """One look of a run: the number of messages in each queue, and the findings."""

    at: float
    depths: Mapping[str, int] = field(default_factory=dict)
    """Empty if no queue was checked."""
    findings: tuple[Finding, ...] | None = None
    """None if the look was not judged."""
    checks: tuple[Check, ...] = ()

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        findings: Sequence[Finding] | None = None,
        checks: Sequence[Check] = (),
    ) -> "Seen":
        """Return what to keep of a look: findings without their changes, recorded elsewhere."""
        depths = {}
        broker = snapshot.broker
        if broker and not broker.unseen:
            depths = {name: state.depth for name, state in broker.queues.items()}
        kept = None
        if findings is not None:
            kept = tuple(replace(one, fix=(), blocks=()) for one in findings)
        return cls(snapshot.at, depths, kept, tuple(checks))


def to_json(seen: Seen) -> dict[str, Any]:
    """Return the look as JSON types, without secrets."""
    shown: dict[str, Any] = _shown(msgspec.to_builtins(seen))
    return shown


def from_json(line: Mapping[str, Any]) -> Seen:
    """Return the look in a line of a journal. Raises msgspec.ValidationError."""
    return msgspec.convert(line, Seen)


def _shown(value: Any) -> Any:
    match value:
        case str():
            return redact(plain(value))
        case dict():
            return {_shown(name): _shown(item) for name, item in value.items()}
        case list() | tuple():
            return [_shown(item) for item in value]
    return value
