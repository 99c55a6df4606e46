"""Ask a host for the units of others to take over, and for everything else that starts them."""

import re
from collections.abc import Iterable, Iterator, Mapping

from runbooks.core.fleet import FleetHost, mark_of
from runbooks.core.foreign import Foreign, UnitText
from runbooks.core.redaction import keep_secrets_in
from runbooks.hosts.programs import ask_programs, with_programs
from runbooks.hosts.script import Answer, shell

_CRON = "cron"
_PROGRAMS = "supervisord's programs"
_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\\.|[^\s"'\\])+""", re.DOTALL)


def ask_foreign(host: FleetHost, app: str, units: Iterable[str]) -> dict[str, str]:
    """Return the fragments, by name. **Source:** systemctl(1), `cat`, `show`; crontab(5)."""
    questions = {unit: shell("unit_source", unit) for unit in units}
    questions[_PROGRAMS] = ask_programs(host)
    texts = ("celery", host.settings.directory)
    questions[_CRON] = shell("cron_lines", mark_of(app), *texts, using=["marked"])
    return questions


def parse_foreign(answers: Mapping[str, Answer]) -> Foreign:
    """Parse the answers; a unit that does not exist has no text.

    From now on, variables with names of secrets are hidden in every output.
    """
    units = {}
    for name, answer in answers.items():
        if name not in (_CRON, _PROGRAMS):
            units[name] = _unit(answer.out.decode(errors="replace"))
    cron = []
    for line in answers[_CRON].out.decode(errors="replace").splitlines():
        path, number, when = line.split("\t")
        place = f"{path}, line {number}"
        if when:
            place += f" ({when})"
        cron.append(place)
    return with_programs(Foreign(units, tuple(cron)), answers[_PROGRAMS])


def _unit(output: str) -> UnitText:
    pulled, links, text = output.split("---\n", 2)
    pairs = []
    pulling = dict.fromkeys(pulled.split())
    for line in links.splitlines():
        path, _, target = line.partition("\t")
        pairs.append((path, target))
        folder = path.split("/")[-2]
        unit, _, _ = folder.rpartition(".")
        pulling.pop(unit, None)
    settings = tuple(_settings(text))
    for key, setting in settings:
        if key == "Environment":
            for word in words_of(setting):
                name, _, value = variable_of(word)
                keep_secrets_in(value, name)
    return UnitText(tuple(pairs), tuple(pulling), settings)


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of `[Service]`.

    **Source:** systemd.syntax(7): a line that ends with `\\` continues; comments may interrupt it.
    """
    section = ""
    begun = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        line = begun + line
        begun = ""
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line:
            key, _, value = line.partition("=")
            yield key.strip(), value.strip()


def words_of(value: str) -> list[str]:
    """Return the words of a setting with their quotes. **Source:** systemd.syntax(7), "Quoting"."""
    return _WORD.findall(value)


def variable_of(word: str) -> tuple[str, str, str]:
    """Split a word of `Environment=`: its name, `=`, and its value without surrounding quotes."""
    name, equals, value = _unquoted(word).partition("=")
    return name, equals, _unquoted(value)


def _unquoted(word: str) -> str:
    if word.startswith(("'", '"')) and word.endswith(word[0]):
        return word[1:-1]
    return word
