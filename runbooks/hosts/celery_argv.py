"""Parse the command line of a Celery worker or beat; keep nothing else, because it may be secret.

**Source:** celery 5.7.0 `bin/celery.py`, `bin/worker.py`, `bin/beat.py`, `bin/base.py` (the
options; Celery 4 also accepts the global ones after the command); `platforms.py:
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
    """Return options that take a value, each with its field of `Options`; "": not kept."""
    options = dict.fromkeys(others.split(), "")
    for field, names in fields.items():
        options.update(dict.fromkeys(names.split(), field))
    return options


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


_EXTRA = re.compile(
    r"--(?:prefetch-multiplier|time-limit|soft-time-limit|max-tasks-per-child|max-memory-per-child"
    r"|optimization)$"
)
_EXTRA_FLAGS = (
    "-E",
    "--task-events",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
)


def title_of(words: Sequence[str]) -> str:
    """Return the name in a process's title (MainProcess, ForkPoolWorker-1, beat); "" for none."""
    text = " ".join(words)
    found = _TITLE.match(text)
    if found:
        return found[2]
    if text.startswith(_BEAT_TITLE):
        return "beat"
    return ""


def options_of(words: Sequence[str]) -> Options | None:
    """Return the options of a worker or beat from a process's arguments; None for other processes.

    The positions of words count: `sh -c "celery …"`, `watch celery …` and `tail celery.log` are not
    Celery, and in `celery -A worker beat` the application is called worker.
    """
    text = " ".join(words).strip()
    found = _TITLE.match(text)
    if found:
        _, _, rest = text.partition("(")
        arguments, _, _ = rest.rpartition(")")
        options = _read(arguments.split()) or Options("worker")
        return replace(options, role="worker", node=found[1], titled=True)
    if text.startswith(_BEAT_TITLE):
        return _read(text.removeprefix(_BEAT_TITLE).split()) or Options("beat")
    return _read(_arguments(words))


def extra_of(words: Sequence[str]) -> tuple[str, ...]:
    """Return other options that say how a worker works, each as one word; none can be secret."""
    rest = list(_arguments(words))
    found = []
    for word, after in zip(rest, [*rest[1:], ""], strict=False):
        name, equals, _ = word.partition("=")
        if word in _EXTRA_FLAGS or (equals and _EXTRA.match(name)):
            found.append(word)
        elif after and word == "-O":
            found.append(f"--optimization={after}")
        elif after and _EXTRA.match(word):
            found.append(f"{word}={after}")
        elif re.fullmatch(r"-O(fair|fast|default)", word):
            found.append(word)
    return tuple(found)


def log_of(words: Sequence[str]) -> str:
    """Return the log file option of a worker or beat, "" for none; `%n` and the like stay in it."""
    rest = list(_arguments(words))
    for word, after in zip(rest, [*rest[1:], ""], strict=False):
        if word in ("-f", "--logfile"):
            return after
        if word.startswith("--logfile="):
            return word.partition("=")[2]
    return ""


def command_in(text: str) -> Sequence[str]:
    """Return the words of Celery's command in a command: `sh -c 'exec celery …'`.

    Empty if it has none, or if its arguments are known only when it runs (`$NAME`).
    """
    try:
        words = shlex.split(text, comments=False)
    except ValueError:
        return ()
    for at, word in enumerate(words):
        if PurePosixPath(word).name == "celery" and (at == 0 or words[at - 1] != "-c"):
            command = [one.rstrip(";") for one in words[_start(words, at) :]]
            if any("$" in one for one in command):
                return ()
            return command
    for word in words:
        if " " in word and "celery" in word:
            return command_in(word)
    return ()


def _start(words: Sequence[str], at: int) -> int:
    """Return where the command begins whose `celery` is at a position: perhaps with a Python."""
    if at == 0:
        return at
    if words[at - 1] == "-m":
        return at - 2
    if is_python(words[at - 1]):
        return at - 1
    return at


def is_python(word: str) -> bool:
    """Whether a word of a command names a Python."""
    return _PYTHON.fullmatch(PurePosixPath(word).name) is not None


def main_options_of(words: Sequence[str]) -> Options | None:
    """Return the options as `options_of` does, but only of main processes and beats."""
    if title_of(words) not in ("", "MainProcess", "beat"):
        return None
    return options_of(words)


def place_of(url: str) -> BrokerPlace | None:
    """Return the place of a broker URL without login and options; None if it cannot be parsed."""
    found = _SOCKET.fullmatch(url)
    if found:
        return BrokerPlace(found[1], None, int(found[2] or 0))
    found = _PLACE.fullmatch(url)
    if found:
        return BrokerPlace(found[1] or "localhost", int(found[2] or 6379), int(found[3] or 0))
    return None


def _arguments(words: Sequence[str]) -> Sequence[str]:
    """Return the arguments of Celery's own command, with or without Python; none for others."""
    names = [PurePosixPath(word).name for word in words]
    at = 0
    if names and _PYTHON.fullmatch(names[0]):
        at = 1
        while at < len(words) and words[at].startswith("-") and words[at] != "-m":
            if words[at] == "-c":
                return ()
            if words[at] in ("-W", "-X"):
                at += 1
            at += 1
        if words[at : at + 1] == ["-m"] or names[at : at + 1] == ["manage.py"]:
            at += 1
    if names[at : at + 1] != ["celery"]:
        return ()
    return words[at + 1 :]


def _read(words: Sequence[str]) -> Options | None:
    """Parse the arguments of Celery's command; None if it is neither worker nor beat.

    **Source:** click 8: one word may have flags, a short option, and its value.
    """
    role = ""
    known = _GLOBAL
    kept: dict[str, Any] = {}
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
                if value is None:
                    value = next(rest, "")
                kept[known[name]] = value.strip("'\"")
            elif name in ("-B", "--beat"):
                kept["with_beat"] = True
    if not role:
        return None
    return _options(role, kept)


def _options_in(word: str, known: Mapping[str, str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options of a word, each with its value; None: the value is the next word."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        if equals:
            yield name, value
        else:
            yield name, None
        return
    for n, letter in enumerate(word[1:], 2):
        if f"-{letter}" in known:
            yield f"-{letter}", word[n:] or None
            return
        yield f"-{letter}", None


def _options(role: str, kept: Mapping[str, str]) -> Options:
    concurrency = None
    if kept.get("concurrency", "").isdigit():
        concurrency = int(kept["concurrency"])
    broker = None
    if "broker" in kept:
        broker = place_of(kept["broker"])
    return Options(
        role,  # type: ignore[arg-type]
        app=kept.get("app", ""),
        node=kept.get("node", ""),
        queues=tuple(filter(None, kept.get("queues", "").split(","))),
        pool=kept.get("pool", ""),
        concurrency=concurrency,
        autoscale=kept.get("autoscale", ""),
        with_beat="with_beat" in kept,
        scheduler=kept.get("scheduler", ""),
        schedule=kept.get("schedule", ""),
        max_interval=kept.get("max_interval", ""),
        broker=broker,
    )
