"""The files made from `templates/`: Jinja, sandboxed and strict."""

import re
import shlex
import traceback
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateNotFound, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runbooks.core.errors import RenderError


class Templates:
    """The files this tool installs, by their name under `templates/`
    (`systemd/celery-worker@.service.j2`).

    The first directory that has a template of that name is the one that counts.
    """

    def __init__(self, *directories: Path) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            loader=FileSystemLoader(directories),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for escape in (
            systemd_word,
            systemd_path,
            shell_word,
            supervisor_word,
            supervisor_value,
            cron_command,
            logrotate_path,
        ):
            self._environment.filters[escape.__name__] = escape

    def render(self, name: str, *, mark: str, **values: Any) -> bytes:
        """The file's bytes, which begin with the mark. Raises RenderError naming the template's
        file and line.
        """
        try:
            template = self._environment.get_template(name)
            text = template.render(mark=mark, **values)
        except TemplateNotFound as error:
            raise RenderError(f"there is no template {error.name}") from None
        except Exception as error:  # a template can fail in any way that Python can
            raise RenderError(f"template {_where(error, name)}: {error}") from None
        if not text.startswith(mark):
            raise RenderError(
                f"template {template.filename}:1: it must begin with {{{{ mark }}}}: this tool"
                " finds its files by that mark"
            )
        return text.encode()


def _where(error: Exception, name: str) -> str:
    """The file and line of a template that an error comes from, by Jinja's traceback."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.filename or name}:{error.lineno}"
    frames = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.endswith(".j2"):
            frames.append(frame)
    if not frames:
        return name
    return f"{frames[-1].filename}:{frames[-1].lineno}"


def _one_line(value: object) -> str:
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise RenderError(f"{text!r} contains a line break or a control character")
    return text


def systemd_word(value: object) -> str:
    """One argument of an `ExecStart=` line, quoted so that systemd passes exactly it.

    **Source:** systemd.service(5), "Command lines", and systemd.syntax(7), "Quoting": `%` and `$`
    are doubled.
    """
    text = (
        _one_line(value)
        .replace("\\", "\\\\")
        .replace('"', '\\"')
        .replace("%", "%%")
        .replace("$", "$$")
    )
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", text):
        return text
    return f'"{text}"'


def systemd_path(value: object) -> str:
    """A value of a directive that takes the rest of its line. **Source:** systemd.unit(5),
    "Specifiers".
    """
    text = _one_line(value).replace("%", "%%")
    if text.endswith("\\"):
        raise RenderError(f"{text!r} ends with a backslash, which would join it with the next line")
    return text


def shell_word(value: object) -> str:
    """One word of a shell's command."""
    return shlex.quote(_one_line(value))


def supervisor_word(script: object) -> str:
    """A shell script as one word of supervisord's `command=`, whose further lines are set in.

    **Source:** supervisor 4.3.0 `process.py: get_execv_args`: shlex, on what `supervisor_value`
    says of values.
    """
    return "\n    ".join(map(supervisor_value, shlex.quote(str(script).rstrip()).splitlines()))


def supervisor_value(value: object) -> str:
    """A value of supervisord's configuration, or a line of it.

    **Source:** supervisor 4.3.0 `options.py: UnhosedConfigParser, expand`: `%` is doubled; `#` and
    `;` behind a space begin a comment, and nothing takes that from them.
    """
    text = _one_line(value)
    if re.search(r"(^|\s)[#;]", text):
        raise RenderError(
            f"{text!r} contains a # or ; after a space, which begins a comment for supervisord"
        )
    return text.replace("%", "%%")


def cron_command(value: object) -> str:
    """A command in a crontab line. **Source:** crontab(5): an unescaped `%` ends the command and
    starts its input.
    """
    return _one_line(value).replace("%", r"\%")


def logrotate_path(value: object) -> str:
    """A log file's own name, and no pattern.

    **Source:** logrotate(8): names are globs, and may stand in quotes; in double ones a single one
    is itself (3.21).
    """
    text = _one_line(value)
    found = re.search(r'["\\*?\[\]{}]', text)
    if found:
        raise RenderError(
            f"{text!r} contains {found[0]}, which has a special meaning for logrotate"
        )
    return f'"{text}"'
