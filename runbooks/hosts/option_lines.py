"""Find where start scripts and systemd's units name the queues, nodes and sizes of workers."""

import re
from collections.abc import Iterator

from runbooks.core.fleet import FleetHost
from runbooks.core.model import OptionLine
from runbooks.hosts.script import Answer, shell

_BETWEEN_WORDS = re.compile(r"[\s;&|()'\"]+")
_QUEUES = re.compile(r"(?:^|\s)(?:-Q|--queues)[\s=]*(\S+)")


def scripts_of(host: FleetHost) -> list[str]:
    """Return the words of the start command that may be files of scripts."""
    scripts = []
    for word in dict.fromkeys(_BETWEEN_WORDS.split(_start(host))):
        if "/" in word and "{" not in word and "=" not in word:
            scripts.append(word)
    return scripts


def ask_option_lines(host: FleetHost) -> str:
    queues: set[str] = set()
    for worker in host.settings.workers:
        queues.update(worker.queues)
    names = "|".join(map(re.escape, sorted(queues)))
    return shell(
        "option_lines", host.settings.directory, names, *scripts_of(host), host.settings.env_file
    )


def parse_option_lines(host: FleetHost, answer: Answer) -> tuple[OptionLine, ...]:
    """Parse the answer.

    **Source:** grep(1), -H, -n and -o: PATH:LINE:MATCH for each match, here with the character
    before an option.
    """
    return (*_in_files(answer.out.decode(errors="replace")), *_in_command(host))


def _in_files(output: str) -> Iterator[OptionLine]:
    for line in output.splitlines():
        path, _, rest = line.partition(":")
        number, _, what = rest.partition(":")
        yield OptionLine(f"{path}:{number}", re.sub(r"^[^-\w](?=-)", "", what))


def _in_command(host: FleetHost) -> Iterator[OptionLine]:
    found = _QUEUES.search(_start(host))
    if found:
        yield OptionLine("celery_commands.start", f"-Q {found[1]}")


def _start(host: FleetHost) -> str:
    return (host.settings.commands and host.settings.commands.start) or ""
