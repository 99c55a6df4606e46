"""Where a host's files name the queues, nodes and sizes of workers: the start scripts, and the
units of systemd.
"""

import re
from collections.abc import Iterator

from runbooks.core.fleet import FleetHost
from runbooks.core.model import OptionLine
from runbooks.hosts.script import Answer, shell

_BETWEEN_WORDS = re.compile(r"[\s;&|()'\"]+")
_QUEUES = re.compile(r"(?:^|\s)(?:-Q|--queues)[\s=]*(\S+)")


def scripts_of(host: FleetHost) -> list[str]:
    """The words of the start command that may be a script's file."""
    words = _BETWEEN_WORDS.split(_start(host))
    return [
        word for word in dict.fromkeys(words) if "/" in word and "{" not in word and "=" not in word
    ]


def ask_option_lines(host: FleetHost) -> str:
    queues = {queue for worker in host.settings.workers for queue in worker.queues}
    names = "|".join(map(re.escape, sorted(queues)))
    return shell(
        "option_lines", host.settings.directory, names, *scripts_of(host), host.settings.env_file
    )


def parse_option_lines(host: FleetHost, answer: Answer) -> tuple[OptionLine, ...]:
    """**Source:** grep(1), -H, -n and -o: PATH:LINE:MATCH for each match, here with the character
    before an option.
    """
    return (*_in_files(answer.out.decode(errors="replace")), *_in_command(host))


def _in_files(told: str) -> Iterator[OptionLine]:
    for line in told.splitlines():
        path, _, rest = line.partition(":")
        number, _, what = rest.partition(":")
        yield OptionLine(f"{path}:{number}", re.sub(r"^[^-\w](?=-)", "", what))


def _in_command(host: FleetHost) -> Iterator[OptionLine]:
    if found := _QUEUES.search(_start(host)):
        yield OptionLine("celery_commands.start", f"-Q {found[1]}")


def _start(host: FleetHost) -> str:
    return (host.settings.commands and host.settings.commands.start) or ""
