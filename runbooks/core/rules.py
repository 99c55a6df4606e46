"""The selection language: which messages of a queue a rule selects, what happens to them, and why.

It has one vocabulary and two spellings: the keys of `celery_queue_rules` in an inventory, and the
flags of a command line (`eta_overdue: 1h` is `--eta-overdue 1h`). Reports and journals show a rule
as flags, so that an operator can type it. `docs/queues.md` explains it to operators.
"""

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
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
_REPEATED = ("queue", "task", "content_type", "compression", "id", "arg")
"""The flags that may be given several times; of the others the last one counts."""


def seconds(value: object) -> float:
    """Seconds of `90`, `'90s'`, `'15m'`, `'1h'` or `'2d'`."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value.strip())
        if found:
            return float(found[1]) * _UNITS_S[found[2]]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise ValueError("expected seconds, or a number with s, m, h or d, e.g. 15m")


def duration(flag: str, text: str) -> float:
    """The seconds that the value of a flag means. Raises UsageError."""
    try:
        return seconds(text)
    except ValueError:
        problem = f"{flag} expects a duration, got {text!r}"
        raise UsageError(problem, "write a number with s, m, h or d, e.g. 24h") from None


def _more_than(value: object) -> object:
    if isinstance(value, str) and (found := re.fullmatch(r">\s*(\d+)", value.strip())):
        return int(found[1])
    raise ValueError("write it as '>N', e.g. '>2'")


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write it as a number, 1 or more")
    return value


def one_line_or_empty(value: str) -> str:
    """Return the value if it is at most one line; otherwise raise ValueError."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError("must be one line without control characters")
    return value


def one_line(value: str) -> str:
    """Return the value if it is exactly one line; otherwise raise ValueError."""
    if not value:
        raise ValueError("must not be empty")
    return one_line_or_empty(value)


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _names(value: object) -> tuple[str, ...]:
    """The parts of `a,b`, or of a list of such strings; each must be one line."""
    names: dict[str, None] = {}
    for part in _list(value):
        if not isinstance(part, str):
            raise ValueError("expected a string, strings separated by commas, or a list of strings")
        for name in part.split(","):
            names[one_line(name.strip())] = None
    return tuple(names)


def _patterns(value: object) -> str:
    return ",".join(_names(value))


def _args(value: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_arg, _list(value))))


def _arg(value: object) -> str:
    """`VALUE` or `KEY=VALUE` with canonical JSON as the value; other text is a string."""
    if isinstance(value, str) and (found := _KEYWORD.fullmatch(value)):
        key, text = found.groups()
        if _KEYWORD.fullmatch(text):
            return f"{key}={canonical(text)}"
        return f"{key}={_arg(text)}"
    try:
        if isinstance(value, str):
            return canonical(json.loads(value))
        return canonical(value)
    except (TypeError, ValueError):
        return canonical(str(value))


def canonical(value: object) -> str:
    """The only JSON text of a value; 1, 1.0 and true are three different values."""
    return _CANONICAL.encode(value)


def _keep(value: object) -> object:
    if value == "keep=newest":
        return "newest"
    if value == "keep=oldest":
        return "oldest"
    raise ValueError("write it as keep=newest or keep=oldest")


def destination(text: str) -> tuple[str, int | None]:
    """Queue and priority of `QUEUE` or `QUEUE:PRIORITY`; None: each message keeps its own."""
    found = re.fullmatch(r"(.*):(\d+)", text)
    if not found:
        return text, None
    return found[1], int(found[2])


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
    """A rule as an operator writes it. A message must meet every condition that is given.

    Patterns are shell-style; commas separate several of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    queue: Patterns = "*"
    """Patterns of the queues."""
    priority: Annotated[int, Field(ge=0)] | None = None
    """The priority of the list that holds the message."""
    task: Patterns = "*"
    """Patterns of the task's name."""
    content_type: Patterns = "*"
    """Patterns of the content type."""
    compression: Patterns = ""
    """Patterns of the compression."""
    eta_overdue: Duration | None = None
    """The ETA passed at least so long ago."""
    retries: MoreThan | None = None
    """The task was retried more than N times: `'>N'`."""
    expired: bool = False
    """The message has expired."""
    unregistered: bool = False
    """No node that answers registers the task."""
    duplicate: Annotated[Literal["newest", "oldest"], BeforeValidator(_keep)] | None = None
    """Another message has the same task and arguments: `keep=newest` or `keep=oldest` stays."""
    keep_newest: Annotated[int, BeforeValidator(_number), Field(ge=1)] | None = None
    """All selected messages but the newest N of each list."""
    id: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """The message has one of these ids."""
    arg: Annotated[tuple[str, ...], BeforeValidator(_args)] = ()
    """The call has all of these arguments: `VALUE` or `KEY=VALUE`."""
    malformed: bool = False
    """Items that are not messages; they kill the worker that receives them."""
    unacked: bool = False
    """Also messages that a worker fetched and that no worker holds any more."""
    with_workflows: bool = False
    """Also messages that a chord, a chain or a callback waits for."""
    requeue_to: Annotated[str, AfterValidator(_destination)] | None = None
    """Move the messages to `QUEUE` or `QUEUE:PRIORITY`; without it they are archived."""
    reason: OneLine | None = None
    """Why, for the reports and the archive."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        given = {name for name in self.model_fields_set if getattr(self, name) is not False}
        action = given & {"requeue_to", "with_workflows"}
        given -= {"reason", "requeue_to", "with_workflows"}
        if not given:
            raise ValueError("it does not say which messages: name at least a queue")
        if self.duplicate and self.unacked:
            raise ValueError("unacked messages have no order, so no duplicate is the oldest")
        if self.keep_newest and self.unacked:
            raise ValueError("unacked messages have no order, so none is the newest")
        if self.keep_newest and self.duplicate:
            raise ValueError("`keep_newest` and `duplicate` exclude each other: give one of them")
        if self.malformed and (action or given - {"malformed", "queue"}):
            raise ValueError(
                "malformed items are not messages: only a queue and a reason go with `malformed`"
            )
        return self

    def rule(self) -> Rule:
        """The same as a record; a rule without a reason has its flags as the reason."""
        rule = Rule(
            reason=self.reason or "",
            queue=self.queue,
            task=self.task,
            eta_overdue_s=self.eta_overdue,
            retries_over=self.retries,
            expired=self.expired,
            unregistered=self.unregistered,
            duplicate=self.duplicate,
            ids=self.id,
            args=self.arg,
            malformed=self.malformed,
            unacked=self.unacked,
            with_workflows=self.with_workflows,
            requeue_to=self.requeue_to or "",
            content_type=self.content_type,
            compression=self.compression,
            priority=self.priority,
            keep_newest=self.keep_newest,
        )
        if rule.reason:
            return rule
        return replace(rule, reason=text(rule))


MALFORMED = Rule("it kills the worker that receives it", malformed=True)
"""The rule that always applies, unless the command line gives another one."""


def from_flags(flags: Mapping[str, Any]) -> Rule | None:
    """The rule that the flags of a command line describe, None without any of them.

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
            "\n".join(_problems(error)), "nothing was checked; docs/queues.md has the flags"
        ) from None


def _problems(error: ValidationError) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_context=False):
        what = plainly(detail)
        if detail["type"] == "extra_forbidden":
            what = "there is no such flag"
        if detail["loc"]:
            what = f"{_flag(str(detail['loc'][0]))}: {what}"
        yield what


def parse(line: str) -> Rule:
    """The rule that `text` wrote as flags. Raises UsageError."""
    flags: dict[str, Any] = {}
    words = iter(shlex.split(line))
    for word in words:
        name = word.removeprefix("--").replace("-", "_")
        field = QueueRule.model_fields.get(name)
        if field and field.annotation is bool:
            flags[name] = True
        elif name in _REPEATED:
            flags.setdefault(name, []).append(next(words, ""))
        else:
            flags[name] = next(words, "")
    rule = from_flags(flags)
    if rule is None:
        raise UsageError("an empty rule")
    return rule


def text(rule: Rule) -> str:
    """A rule as the flags that describe it; `parse` reads them."""
    words = " ".join(_words(rule))
    if rule.reason in ("", words):
        return words
    return f"{words} --reason {shlex.quote(rule.reason)}".strip()


def _words(rule: Rule) -> Iterator[str]:
    yield from _words_of_place_and_form(rule)
    yield from _words_of_state(rule)
    yield from _words_of_the_rest(rule)


def _words_of_place_and_form(rule: Rule) -> Iterator[str]:
    if rule.queue != "*" or (says_only_where(rule) and not rule.unacked):
        yield _valued("queue", rule.queue)
    if rule.priority is not None:
        yield _valued("priority", str(rule.priority))
    if rule.task != "*":
        yield _valued("task", rule.task)
    if rule.content_type != "*":
        yield _valued("content_type", rule.content_type)
    if rule.compression:
        yield _valued("compression", rule.compression)


def _words_of_state(rule: Rule) -> Iterator[str]:
    if rule.eta_overdue_s is not None:
        yield _valued("eta_overdue", _span(rule.eta_overdue_s))
    if rule.retries_over is not None:
        yield _valued("retries", f">{rule.retries_over}")
    if rule.expired:
        yield _flag("expired")
    if rule.unregistered:
        yield _flag("unregistered")
    if rule.duplicate:
        yield _valued("duplicate", f"keep={rule.duplicate}")
    if rule.keep_newest is not None:
        yield _valued("keep_newest", str(rule.keep_newest))


def _words_of_the_rest(rule: Rule) -> Iterator[str]:
    if rule.ids:
        yield _valued("id", ",".join(rule.ids))
    for arg in rule.args:
        yield _valued("arg", arg)
    if rule.malformed:
        yield _flag("malformed")
    if rule.unacked:
        yield _flag("unacked")
    if rule.with_workflows:
        yield _flag("with_workflows")
    if rule.requeue_to:
        yield _valued("requeue_to", rule.requeue_to)


def says_only_where(rule: Rule) -> bool:
    """Whether the rule selects messages by their queue alone."""
    return not _says_which_tasks(rule) and not says_how_written(rule)


def says_only_how_written(rule: Rule) -> bool:
    """Whether the rule selects messages by their form, and maybe the queue, alone."""
    return not _says_which_tasks(rule) and says_how_written(rule)


def says_how_written(rule: Rule) -> bool:
    """Whether the rule selects messages by their content type or compression."""
    return rule.content_type != "*" or rule.compression != ""


def _says_which_tasks(rule: Rule) -> bool:
    if rule.task != "*" or rule.ids or rule.args:
        return True
    if rule.eta_overdue_s is not None or rule.retries_over is not None:
        return True
    if rule.duplicate or rule.keep_newest is not None:
        return True
    return rule.expired or rule.unregistered or rule.malformed


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _valued(name: str, value: str) -> str:
    return f"{_flag(name)} {shlex.quote(value)}"


def _span(seconds: float) -> str:
    for unit, size in _UNITS_S.items():
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds!r}s"


def fits(patterns: str, name: str) -> bool:
    """Whether one of the shell-style patterns, separated by commas, matches the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


def literal(patterns: str) -> tuple[str, ...]:
    """The plain names among the patterns, which are separated by commas."""
    return tuple(name for name in patterns.split(",") if not re.search(r"[*?\[]", name))
