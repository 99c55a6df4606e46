"""Asks a host for the units of others that are to be taken over, and for what else would start
their workers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

from runbooks.core.fleet import FleetHost, mark_of
from runbooks.core.foreign import Foreign, UnitText
from runbooks.core.redaction import keep_secrets_in
from runbooks.hosts.programs import ask_programs, with_programs
from runbooks.hosts.script import Answer, shell

_CRON, _PROGRAMS = "cron", "supervisord's programs"
_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^\s"'\\])+""", re.DOTALL)


def ask_foreign(host: FleetHost, app: str, units: Iterable[str]) -> dict[str, str]:
    """**Source:** systemctl(1), `cat`, `show`; crontab(5)."""
    questions = {unit: shell("unit_source", unit) for unit in units} | {
        _PROGRAMS: ask_programs(host)
    }
    return questions | {
        _CRON: shell(
            "cron_lines", mark_of(app), "celery", host.settings.directory, using=["marked"]
        )
    }


def parse_foreign(answers: Mapping[str, Answer]) -> Foreign:
    """What it sets under the name of a secret is never shown from now on; a unit that is not there
    has no text.
    """
    apart = (_CRON, _PROGRAMS)
    units = {
        name: _unit(answer.out.decode(errors="replace"))
        for name, answer in answers.items()
        if name not in apart
    }
    lines = (line.split("\t") for line in answers[_CRON].out.decode(errors="replace").splitlines())
    cron = (f"{path}, line {number}{f' ({when})' if when else ''}" for path, number, when in lines)
    return with_programs(Foreign(units, tuple(cron)), answers[_PROGRAMS])


def _unit(told: str) -> UnitText:
    pulled, links, text = told.split("---\n", 2)
    pairs = tuple(
        (path, target) for path, _, target in (line.partition("\t") for line in links.splitlines())
    )
    folders = {path.split("/")[-2].rpartition(".")[0] for path, _ in pairs}
    settings = tuple(_settings(text))
    for word in (
        word for key, value in settings if key == "Environment" for word in words_of(value)
    ):
        name, _, value = variable_of(word)
        keep_secrets_in(value, name)
    return UnitText(
        pairs, tuple(one for one in dict.fromkeys(pulled.split()) if one not in folders), settings
    )


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """**Source:** systemd.syntax(7): `\\` at the end of a line goes on in the next, comments may
    stand between.
    """
    section, begun = "", ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        line, begun = begun + line, ""
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line:
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()


def words_of(value: str) -> list[str]:
    """The words of a setting, with their quotes. **Source:** systemd.syntax(7), "Quoting"."""
    return _WORD.findall(value)


def variable_of(word: str) -> tuple[str, str, str]:
    """A word of `Environment=`: its name, `=`, and its value without quotes, as far as these stand
    around all of it.
    """
    inner = word[1:-1] if word[:1] in "\"'" and word[-1:] == word[:1] else word
    name, equals, value = inner.partition("=")
    return (
        name,
        equals,
        value[1:-1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else value,
    )
