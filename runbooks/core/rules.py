"""The selection language: which messages of a queue are meant, what becomes of them, and why.

It has one vocabulary and two spellings: keys of an inventory's `celery_queue_rules`, and flags of a
command line (`eta_overdue: 1h` is `--eta-overdue 1h`). Reports and journals show a rule as flags,
so what they show can be typed. `docs/queues.md` is its page for operators.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from msgspec.structs import replace
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from runbooks.core.errors import UsageError
from runbooks.core.model import Rule
from runbooks.core.validation import plainly

_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def seconds(value: object) -> float:
    """Seconds of `90`, `'90s'`, `'15m'`, `'1h'` or `'2d'`."""
    if isinstance(value, str) and (
        found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value.strip())
    ):
        return float(found[1]) * _UNITS_S[found[2]]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ValueError("a duration is a number of seconds, or a number with s, m, h or d, e.g. 15m")


def duration(flag: str, text: str) -> float:
    """The seconds that a flag of the command line says. Raises UsageError."""
    try:
        return seconds(text)
    except ValueError:
        raise UsageError(
            f"{flag} {text!r} is no duration", "a number with s, m, h or d, e.g. 24h"
        ) from None


def _more_than(value: object) -> object:
    if isinstance(value, str) and (found := re.fullmatch(r">\s*(\d+)", value.strip())):
        return int(found[1])
    raise ValueError("write it as '>N', e.g. '>2'")


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write it as a number, 1 or more")
    return value


def one_line_or_empty(value: str) -> str:
    """The value itself. Raises ValueError where it is more than a line."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("must be one line without control characters")
    return value


def one_line(value: str) -> str:
    """The value itself. Raises ValueError where it is empty or more than a line."""
    if not value:
        raise ValueError("must not be empty")
    return one_line_or_empty(value)


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _names(value: object) -> tuple[str, ...]:
    """The parts of `a,b`, or of a list of such texts; each must be one line."""
    if not all(isinstance(part, str) for part in _list(value)):
        raise ValueError("must be a text, texts separated by commas, or a list of texts")
    parts = (name.strip() for part in _list(value) for name in str(part).split(","))
    return tuple(dict.fromkeys(map(one_line, parts)))


def _patterns(value: object) -> str:
    return ",".join(_names(value))


def _args(value: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_arg, _list(value))))


def _arg(value: object) -> str:
    """`VALUE` or `KEY=VALUE` with the value as canonical JSON; a text that is no JSON stands for
    itself.
    """
    if isinstance(value, str) and (found := _KEYWORD.fullmatch(value)):
        return (
            f"{found[1]}={_arg(found[2])}"
            if not _KEYWORD.fullmatch(found[2])
            else f"{found[1]}={canonical(found[2])}"
        )
    try:
        return canonical(json.loads(value) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        return canonical(str(value))


def canonical(value: object) -> str:
    """The one JSON text of a value; 1, 1.0 and true are three values."""
    return _CANONICAL.encode(value)


def _keep(value: object) -> object:
    if (
        isinstance(value, str)
        and value.removeprefix("keep=") in ("newest", "oldest")
        and value.startswith("keep=")
    ):
        return value.removeprefix("keep=")
    raise ValueError("write it as keep=newest or keep=oldest")


def destination(text: str) -> tuple[str, int | None]:
    """The queue and the priority of `QUEUE` or `QUEUE:PRIORITY`; None: each message keeps its own."""
    found = re.fullmatch(r"(.*):(\d+)", text)
    return (found[1], int(found[2])) if found else (text, None)


def _destination(value: str) -> str:
    queue, priority = destination(one_line(value))
    if not queue or "," in queue or (priority or 0) > 9:
        raise ValueError(
            "write it as QUEUE or QUEUE:PRIORITY, the priority from 0 (runs first) to 9"
        )
    return value


Duration = Annotated[float, BeforeValidator(seconds)]
MoreThan = Annotated[int, BeforeValidator(_more_than)]
OneLine = Annotated[str, AfterValidator(one_line)]
Patterns = Annotated[str, BeforeValidator(_patterns)]


class QueueRule(BaseModel):
    """The vocabulary: a rule as it is written; every condition that is given must hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    queue: Patterns = "*"
    priority: Annotated[int, Field(ge=0)] | None = None
    task: Patterns = "*"
    content_type: Patterns = "*"
    compression: Patterns = ""
    eta_overdue: Duration | None = None
    retries: MoreThan | None = None
    expired: bool = False
    unregistered: bool = False
    duplicate: Annotated[Literal["newest", "oldest"], BeforeValidator(_keep)] | None = None
    keep_newest: Annotated[int, BeforeValidator(_number), Field(ge=1)] | None = None
    id: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    arg: Annotated[tuple[str, ...], BeforeValidator(_args)] = ()
    malformed: bool = False
    unacked: bool = False
    with_workflows: bool = False
    requeue_to: Annotated[str, AfterValidator(_destination)] | None = None
    reason: OneLine | None = None

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        given = {name for name in self.model_fields_set if getattr(self, name) is not False}
        action = given & {"requeue_to", "with_workflows"}
        given -= {"reason", "requeue_to", "with_workflows"}
        if not given:
            raise ValueError("it says nothing of which messages: name at least a queue")
        if self.duplicate and self.unacked:
            raise ValueError(
                "which of several duplicates is the oldest is not known of unacked messages"
            )
        if self.keep_newest and self.unacked:
            raise ValueError("which messages are the newest is not known of unacked messages")
        if self.keep_newest and self.duplicate:
            raise ValueError(
                "`keep_newest` and `duplicate` both say which messages stay: give one of them"
            )
        if self.malformed and (action or given - {"malformed", "queue"}):
            raise ValueError(
                "malformed items are no messages: beside `malformed` only a queue and a reason mean"
                " anything"
            )
        return self

    def rule(self) -> Rule:
        """The rule that is meant."""
        rule = Rule(
            self.reason or "", self.queue, self.task, self.eta_overdue, self.retries, self.expired, self.unregistered,
            self.duplicate, self.id, self.arg, self.malformed, self.unacked, self.with_workflows, self.requeue_to or "",
            self.content_type, self.compression, self.priority, self.keep_newest,
        )  # fmt: skip
        return rule if rule.reason else replace(rule, reason=text(rule))


MALFORMED = Rule("it kills the worker that receives it", malformed=True)
"""What always holds, unless the command line says otherwise."""


def from_flags(flags: Mapping[str, Any]) -> Rule | None:
    """The rule that a command line's flags say, None where it has none of them.

    A flag that was not given is None, False or empty. Raises UsageError with every problem.
    """
    given = {
        name: value
        for name, value in flags.items()
        if value is not None and value is not False and value != []
    }
    if not given:
        return None
    try:
        return QueueRule.model_validate(given).rule()
    except ValidationError as error:
        raise UsageError(
            "\n".join(_problems(error)), "nothing was looked at; docs/queues.md has the flags"
        ) from None


def _problems(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=False):
        flag = f"{_flag(str(detail['loc'][0]))}: " if detail["loc"] else ""
        what = "there is no such flag" if detail["type"] == "extra_forbidden" else plainly(detail)
        yield flag + what


def parse(line: str) -> Rule:
    """The rule that `text` has written. Raises UsageError."""
    flags: dict[str, Any] = {}
    words = iter(shlex.split(line))
    for word in words:
        name = word.removeprefix("--").replace("-", "_")
        field = QueueRule.model_fields.get(name)
        flags[name] = (
            True if field and field.annotation is bool else [*flags.get(name, []), next(words, "")]
        )
    for name in flags.keys() - {"queue", "task", "content_type", "compression", "id", "arg"}:
        flags[name] = flags[name][-1] if isinstance(flags[name], list) else flags[name]
    rule = from_flags(flags)
    if rule is None:
        raise UsageError("an empty rule")
    return rule


def text(rule: Rule) -> str:
    """A rule as the flags that say it."""
    words = " ".join(_words(rule))
    return (
        words
        if rule.reason in ("", words)
        else f"{words} --reason {shlex.quote(rule.reason)}".strip()
    )


def _words(rule: Rule) -> Iterator[str]:
    values: dict[str, str | Iterable[str] | bool | None] = {
        "queue": (
            rule.queue
            if rule.queue != "*" or (says_only_where(rule) and not rule.unacked)
            else None
        ),
        "priority": None if rule.priority is None else str(rule.priority),
        "task": rule.task if rule.task != "*" else None,
        "content_type": rule.content_type if rule.content_type != "*" else None,
        "compression": rule.compression,
        "eta_overdue": None if rule.eta_overdue_s is None else _span(rule.eta_overdue_s),
        "retries": None if rule.retries_over is None else f">{rule.retries_over}",
        "expired": rule.expired,
        "unregistered": rule.unregistered,
        "duplicate": rule.duplicate and f"keep={rule.duplicate}",
        "keep_newest": None if rule.keep_newest is None else str(rule.keep_newest),
        "id": rule.ids and ",".join(rule.ids),
        "arg": rule.args,
        "malformed": rule.malformed,
        "unacked": rule.unacked,
        "with_workflows": rule.with_workflows,
        "requeue_to": rule.requeue_to,
    }
    for name, value in values.items():
        if value is True:
            yield _flag(name)
        elif value:
            yield from (
                f"{_flag(name)} {shlex.quote(str(one))}"
                for one in ([value] if isinstance(value, str) else value)
            )


def says_only_where(rule: Rule) -> bool:
    """True where nothing but the queue says which messages are meant."""
    return _says_nothing_of_the_task(rule) and not says_how_written(rule)


def says_only_how_written(rule: Rule) -> bool:
    """True where nothing but how they are written, and the queue, says which messages are meant."""
    return _says_nothing_of_the_task(rule) and says_how_written(rule)


def says_how_written(rule: Rule) -> bool:
    """True where a content type or a compression is asked for."""
    return rule.content_type != "*" or rule.compression != ""


def _says_nothing_of_the_task(rule: Rule) -> bool:
    told = (
        "task", "eta_overdue_s", "retries_over", "expired", "unregistered", "duplicate", "keep_newest", "ids", "args",
        "malformed",
    )  # fmt: skip
    return all(getattr(rule, name) in ("*", None, False, ()) for name in told)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _span(seconds: float) -> str:
    for unit, size in _UNITS_S.items():
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds!r}s"


def fits(patterns: str, name: str) -> bool:
    """True where one of the shell-style patterns, separated by commas, fits a name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


def literal(patterns: str) -> tuple[str, ...]:
    """Those of the patterns that are plain names."""
    return tuple(name for name in patterns.split(",") if not re.search(r"[*?\[]", name))
