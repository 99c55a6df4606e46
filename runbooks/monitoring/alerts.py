"""Prometheus's alert rules: the template, with the place where the pages of docs/ can be read."""

import re
from pathlib import Path

from runbooks.core.errors import UsageError

_URL = re.compile(r"https?://[^\s\"'\\{}]+")


def alert_rules(templates: Path, docs: str) -> list[str]:
    """The lines of the rules. `docs` is the URL of docs/, or ""; for other text: UsageError."""
    text = (templates / "prometheus/alerts.yml").read_text().rstrip()
    if docs:
        if not _URL.fullmatch(docs):
            raise UsageError(
                f"--docs expects a URL, got {docs!r}",
                "for example https://wiki.example.com/celery-runbooks/docs",
            )
        text = text.replace('runbook_url: "docs/', f'runbook_url: "{docs.rstrip("/")}/')
    return text.split("\n")
