"""Render templates with facts. Each value is shown without secrets, and as text, not as markup."""

import base64
import hashlib
import re
import time
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from runbooks import __version__
from runbooks.core.command import Command, typed
from runbooks.core.outside import on_one_line
from runbooks.core.redaction import redact
from runbooks.core.shipped import shipped_templates
from runbooks.core.wording import counted, span, utc

_MARKDOWN = re.compile(r"[\\`*_{}\[\]#|~$]|^[-+](?=\s)|(?<=^\d)[.)](?=\s)|(?<=^\d\d)[.)](?=\s)")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Pages:
    """Renders pages whose commands begin with `program` and end with the flags `where`.

    These flags lead to the same fleet and records.
    """

    def __init__(self, program: str = "inv", where: str = "") -> None:
        self._program, self._where = program, where
        self._folder = shipped_templates() / "report"

    def html(self, name: str, **facts: Any) -> bytes:
        """Render a self-contained page; `csp` is its content security policy."""
        style = self._style()
        environment = self._environment(self._shown, autoescape=True)
        environment.filters["with_code"] = self._with_code
        text = environment.get_template(f"{name}.html.j2").render(
            style=style, csp=policy(style), **facts
        )
        return text.encode()

    def markdown(self, name: str, **facts: Any) -> bytes:
        """Render a page as GitHub's Markdown."""
        environment = self._environment(
            lambda value: _escaped(self._shown(value)), autoescape=False
        )
        environment.filters["fenced"] = self._fenced
        return environment.get_template(f"{name}.md.j2").render(**facts).encode()

    @property
    def csp(self) -> str:
        """Return the policy that allows the style sheet of the pages, and nothing else."""
        return policy(self._style())

    def _style(self) -> Markup:
        return Markup((self._folder / "style.css").read_text())  # noqa: S704  # ours

    def _environment(self, shown: Callable[[Any], str], *, autoescape: bool) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(self._folder),
            autoescape=autoescape,  # noqa: S701  # in Markdown `shown` escapes
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: value if isinstance(value, Markup) else shown(value),
        )
        environment.globals |= {
            "version": __version__,
            "now": time.time(),
            "command": lambda *words: Command(*words).bare(self._program, self._where),
            "counted": counted,
        }
        environment.filters |= {"utc": utc, "span": span, "number": _number, "clock": _clock}
        return environment

    def _shown(self, value: Any) -> str:
        return on_one_line(redact(typed(str(value), self._program, self._where)))

    def _with_code(self, text: str) -> Markup:
        """Return a text of the catalogue as HTML, with `code` for what is in backticks."""
        parts = self._shown(text).split("`")
        shown = []
        for number, part in enumerate(parts):
            is_code = number % 2 == 1
            shown.append(Markup("<code>{}</code>").format(part) if is_code else escape(part))
        return Markup("").join(shown)

    def _fenced(self, lines: list[str], language: str = "") -> Markup:
        """Return lines as a block of code, with a fence longer than any in the lines."""
        text = "\n".join(map(self._shown, lines))
        longest = max(map(len, re.findall(r"`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        return Markup(f"{fence}{language}\n{text}\n{fence}")  # noqa: S704  # nothing in a fence is markup


def policy(style: str) -> str:
    """Return the policy that allows only this style sheet.

    **Source:** Content Security Policy Level 3: the hash is of all text between the tags.
    """
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _escaped(text: str) -> str:
    text = re.sub("[&<>]", lambda found: _ENTITIES[found[0]], text)
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", text)


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at))
