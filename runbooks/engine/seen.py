"""What a run saw, as its record keeps it: the depths of the queues, and what was judged of the
fleet.
"""

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
    """One look of a run: how many messages each queue held, and what was found."""

    at: float
    depths: Mapping[str, int] = field(default_factory=dict)
    """Empty where no queue was looked at."""
    findings: tuple[Finding, ...] | None = None
    """None where the look was not judged."""
    checks: tuple[Check, ...] = ()

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        findings: Sequence[Finding] | None = None,
        checks: Sequence[Check] = (),
    ) -> "Seen":
        """What is kept of a look; the record has the changes that fix a finding by themselves."""
        depths = {}
        broker = snapshot.broker
        if broker and not broker.unseen:
            depths = {name: state.depth for name, state in broker.queues.items()}
        kept = None
        if findings is not None:
            kept = tuple(replace(one, fix=(), blocks=()) for one in findings)
        return cls(snapshot.at, depths, kept, tuple(checks))


def to_json(seen: Seen) -> dict[str, Any]:
    """The look as JSON types, without secrets."""
    shown: dict[str, Any] = _shown(msgspec.to_builtins(seen))
    return shown


def from_json(line: Mapping[str, Any]) -> Seen:
    """The look that a line of a journal holds. Raises msgspec.ValidationError."""
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
