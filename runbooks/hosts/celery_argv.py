"""What a command line says of a Celery worker or beat; nothing else of it is kept, for it may hold
secrets.

**Source:** celery 5.7.0 `bin/celery.py`, `bin/worker.py`, `bin/beat.py`, `bin/base.py` (the
options; Celery 4 takes the global ones behind the command, too); `platforms.py:
set_mp_process_title`, with setproctitle: `[celeryd: NODE:MainProcess] -active- (ARGS)`, and
`[celery beat] ARGS`, of `-B` without ARGS.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from msgspec.structs import replace

from runbooks.core.census import BrokerPlace, Options

_TITLE = re.compile(r"\[celeryd: ([^\s\]]+):([^:\s\]]+)\]")
_BEAT_TITLE = "[celery beat]"
_PYTHON = re.compile(r"(python|pypy)[\w.]*")


def _valued(others: str, **fields: str) -> dict[str, str]:
    """Options that take a value, each with the field that it is kept in, "" for the others, which
    are not.
    """
    kept = {name: field for field, names in fields.items() for name in names.split()}
    return dict.fromkeys(others.split(), "") | kept


_GLOBAL = _valued(
    "--result-backend --loader --config --workdir", app="-A --app", broker="-b --broker"
)
_COMMON = _GLOBAL | _valued(
    "-l --loglevel -f --logfile --pidfile --uid --gid --umask --executable",
    schedule="-s --schedule --schedule-filename",
    scheduler="--scheduler",
)
_VALUED = {
    "beat": _COMMON | _valued("-n --hostname", scheduler="-S", max_interval="--max-interval"),
    "worker": (
        _COMMON
        | _valued(
            "-S --statedb -O --optimization --prefetch-multiplier --time-limit --soft-time-limit"
            " --max-tasks-per-child --max-memory-per-child --pool-start-method -X --exclude-queues"
            " -I --include --heartbeat-interval",
            node="-n --hostname",
            queues="-Q --queues",
            pool="-P --pool",
            concurrency="-c --concurrency",
            autoscale="--autoscale",
        )
    ),
}
_PLACE = re.compile(
    r"rediss?://(?:.*@)?([\w.-]*|\[[0-9A-Fa-f:]+\])(?::(\d+))?(?:/(\d+)?)?/?(?:\?[^@]*)?"
)
_SOCKET = re.compile(
    r"(?:redis\+)?socket://(?:.*@)?(/[^?@]*)(?:\?(?:[^@]*&)?virtual_host=/?(\d+)(?:&[^@]*)?)?"
)


def title_of(words: Sequence[str]) -> str:
    """What a process calls itself in its title: MainProcess, ForkPoolWorker-1, or beat; "" where it
    has none.
    """
    text = " ".join(words)
    if found := _TITLE.match(text):
        return found[2]
    return "beat" if text.startswith(_BEAT_TITLE) else ""


def options_of(words: Sequence[str]) -> Options | None:
    """What the arguments of a process say of a worker or beat; None where they are those of
    neither.

    The place of the words counts: `sh -c "celery …"`, `watch celery …`, `tail celery.log` are no
    Celery, and in `celery -A worker beat` the application is called worker.
    """
    text = " ".join(words).strip()
    told = text.partition("(")[2].rpartition(")")[0].split()
    if found := _TITLE.match(text):
        return replace(_read(told) or Options("worker"), role="worker", node=found[1], titled=True)
    if text.startswith(_BEAT_TITLE):
        return _read(text.removeprefix(_BEAT_TITLE).split()) or Options("beat")
    return _read(_arguments(words))


_EXTRA = re.compile(
    r"--(?:prefetch-multiplier|time-limit|soft-time-limit|max-tasks-per-child|max-memory-per-child|optimization)$"
)
_EXTRA_FLAGS = (
    "-E",
    "--task-events",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
)


def extra_of(words: Sequence[str]) -> tuple[str, ...]:
    """The options of a worker beside those of `Options` that say how it works, each as one word;
    none is a secret.
    """
    rest = list(_arguments(words))
    found = []
    for at, word in enumerate(rest):
        name, equals, _ = word.partition("=")
        if word in _EXTRA_FLAGS or (equals and _EXTRA.match(name)):
            found.append(word)
        elif at + 1 < len(rest) and (word == "-O" or _EXTRA.match(word)):
            found.append(
                f"--optimization={rest[at + 1]}" if word == "-O" else f"{word}={rest[at + 1]}"
            )
        elif re.fullmatch(r"-O(fair|fast|default)", word):
            found.append(word)
    return tuple(found)


def log_of(words: Sequence[str]) -> str:
    """The file that a worker or beat is told to log into, "" for none; `%n` and the like stay in
    it.
    """
    rest = list(_arguments(words))
    for word, after in zip(rest, [*rest[1:], ""], strict=False):
        if word in ("-f", "--logfile"):
            return after
        if word.startswith("--logfile="):
            return word.partition("=")[2]
    return ""


def command_in(text: str) -> Sequence[str]:
    """The words of Celery's command in one that a file holds, which may be a shell's: `sh -c 'exec
    celery …'`.

    Empty where there is none, or where what it is called with shows only when it runs (`$NAME`).
    """
    try:
        words = shlex.split(text, comments=False)
    except ValueError:
        return ()
    for at, word in enumerate(words):
        if PurePosixPath(word).name == "celery" and (at == 0 or words[at - 1] != "-c"):
            before = words[max(at - 2, 0) : at]
            start = (
                at - 2
                if before[-1:] == ["-m"]
                else at - 1
                if before and is_python(before[-1])
                else at
            )
            command = [one.rstrip(";") for one in words[start:]]
            return () if any("$" in one for one in command) else command
    inner = [word for word in words if " " in word and "celery" in word]
    return command_in(inner[0]) if inner else ()


def is_python(word: str) -> bool:
    """Whether a word of a command names a Python."""
    return _PYTHON.fullmatch(PurePosixPath(word).name) is not None


def main_options_of(words: Sequence[str]) -> Options | None:
    """The same, and None of one that calls itself something else than a main process."""
    return options_of(words) if title_of(words) in ("", "MainProcess", "beat") else None


def place_of(url: str) -> BrokerPlace | None:
    """Where a broker URL leads, without its login and options; None where that cannot be told from
    them.
    """
    if found := _SOCKET.fullmatch(url):
        return BrokerPlace(found[1], None, int(found[2] or 0))
    if found := _PLACE.fullmatch(url):
        return BrokerPlace(found[1] or "localhost", int(found[2] or 6379), int(found[3] or 0))
    return None


def _arguments(words: Sequence[str]) -> Sequence[str]:
    """Those of Celery's own command, whether a Python runs it or not; none where another program
    runs.
    """
    names = [PurePosixPath(word).name for word in words]
    at = 0
    if names and _PYTHON.fullmatch(names[0]):
        at = 1
        while at < len(words) and words[at].startswith("-") and words[at] != "-m":
            if words[at] == "-c":
                return ()
            at += 2 if words[at] in ("-W", "-X") else 1
        if words[at : at + 1] == ["-m"] or names[at : at + 1] == ["manage.py"]:
            at += 1
    return words[at + 1 :] if names[at : at + 1] == ["celery"] else ()


def _read(words: Sequence[str]) -> Options | None:
    """**Source:** click 8: a short option may stand in one word with flags before it and its value
    behind it.
    """
    role, known = "", _GLOBAL
    kept = dict[str, Any]()
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            if not role and word not in _VALUED:
                return None
            role = role or word
            known = _VALUED[role]
            continue
        for name, value in _options_in(word, known):
            if name in known:
                kept[known[name]] = (next(rest, "") if value is None else value).strip("'\"")
            elif name in ("-B", "--beat"):
                kept["with_beat"] = True
    return _options(role, kept) if role else None


def _options_in(word: str, known: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """The options of a word, each with its value; None where that is the next word."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        yield name, value if equals else None
        return
    for n, letter in enumerate(word[1:], 2):
        if f"-{letter}" in known:
            yield f"-{letter}", word[n:] or None
            return
        yield f"-{letter}", None


def _options(role: str, kept: Mapping[str, str]) -> Options:
    concurrency = kept.get("concurrency", "")
    return Options(
        role,  # type: ignore[arg-type]
        app=kept.get("app", ""),
        node=kept.get("node", ""),
        queues=tuple(filter(None, kept.get("queues", "").split(","))),
        pool=kept.get("pool", ""),
        concurrency=int(concurrency) if concurrency.isdigit() else None,
        autoscale=kept.get("autoscale", ""),
        with_beat="with_beat" in kept,
        scheduler=kept.get("scheduler", ""),
        schedule=kept.get("schedule", ""),
        max_interval=kept.get("max_interval", ""),
        broker=place_of(kept["broker"]) if "broker" in kept else None,
    )
