"""Environment files: reading variables, and changing some without touching another byte.

**Source:** systemd.exec(5), `EnvironmentFile=`: `NAME=VALUE` lines, `#` and `;` comments, values optionally quoted.
Read here: one line per variable; a later one wins. What a shell would expand is taken literally.
"""

import re
import shlex
from collections.abc import Mapping

_LINE = re.compile(r"(\s*(?:export\s+)?)([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")


def read_environment(text: str) -> dict[str, str]:
    """The variables of an environment file."""
    found = (_LINE.fullmatch(line) for line in text.split("\n"))  # splitlines() breaks at characters no shell breaks at
    return {match[2]: _unquote(match[3].strip()) for match in found if match}


def _unquote(value: str) -> str:
    try:
        return "".join(shlex.split(value)) if value[:1] in ("'", '"') else value
    except ValueError:
        return value


def edit_environment(text: str, values: Mapping[str, str | None]) -> str:
    """The file's text with `values` set (None removes); a variable it lacks is added at the end.

    Raises ValueError for a value with a line break.
    """
    pending = dict(values)
    lines = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        match = _LINE.fullmatch(line.removesuffix("\n"))
        if not match or match[2] not in values:
            lines.append(line)
        elif (value := values[match[2]]) is not None:
            lines.append(match[1] + _line(match[2], value))
        if match:
            pending.pop(match[2], None)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return "".join(lines) + "".join(_line(name, value) for name, value in pending.items() if value is not None)


def _line(name: str, value: str) -> str:
    if "\n" in value or "\0" in value:
        raise ValueError(f"the value of {name} holds a line break")
    return f"{name}={value if _PLAIN.fullmatch(value) else shlex.quote(value)}\n"
