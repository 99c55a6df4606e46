"""The files made from `templates/`: Jinja, sandboxed and strict."""

import re
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateNotFound
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runbooks.core.errors import RenderError


class Templates:
    """The files this tool installs, by their name under `templates/` (`systemd/celery-worker@.service.j2`)."""

    def __init__(self, directory: Path) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            loader=FileSystemLoader(directory),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for escape in (systemd_word, systemd_path, cron_command):
            self._environment.filters[escape.__name__] = escape

    def render(self, name: str, **values: Any) -> bytes:
        """The file's bytes. Raises RenderError naming the template."""
        try:
            return self._environment.get_template(name).render(**values).encode()
        except TemplateNotFound:
            raise RenderError(f"there is no template {name}") from None
        except Exception as error:  # a template can fail in any way that Python can
            raise RenderError(f"template {name}: {error}") from None


def _one_line(value: object) -> str:
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise RenderError(f"{text!r} holds a line break or a control character")
    return text


def systemd_word(value: object) -> str:
    """One argument of an `ExecStart=` line, quoted so that systemd passes exactly it.

    **Source:** systemd.service(5), "Command lines", and systemd.syntax(7), "Quoting": `%` and `$` are doubled.
    """
    text = _one_line(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text) else f'"{text}"'


def systemd_path(value: object) -> str:
    """A value of a directive that takes the rest of its line. **Source:** systemd.unit(5), "Specifiers"."""
    text = _one_line(value).replace("%", "%%")
    if text.endswith("\\"):
        raise RenderError(f"{text!r} ends with a backslash, which would join it with the next line")
    return text


def cron_command(value: object) -> str:
    """A command in a crontab line. **Source:** crontab(5): an unescaped `%` ends the command and starts its input."""
    return _one_line(value).replace("%", r"\%")
