"""Sends news to a target of `celery_notify`, through Apprise."""

import logging
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pydantic import SecretStr

from runbooks.core.outside import on_one_line
from runbooks.core.redaction import redact
from runbooks.monitoring.history import News


def what_lacks() -> tuple[str, str]:
    """Why no target can be notified, and what helps; ("", "") if Apprise is installed."""
    if find_spec("apprise"):
        return "", ""
    return (
        "no one in celery_notify was notified: Apprise is not installed",
        f"install it: {_installer()} apprise; the next look notifies them",
    )


def _installer() -> str:
    """Return the command that adds a package to the environment that this tool runs in.

    **Source:** pipx keeps `pipx_metadata.json` in an environment. An environment of uv has no pip.
    """
    if Path(sys.prefix, "pipx_metadata.json").exists():
        return f"pipx inject {shlex.quote(Path(sys.prefix).name)}"
    python = shlex.quote(sys.executable)
    return f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"


def deliver(url: SecretStr, app: str, news: Sequence[News]) -> str:
    """Send the news as one message; return why that failed, without the URL, or ""."""
    import apprise

    # What it logs can hold the URL, and so a password.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    try:
        target = apprise.Apprise()
        if not target.add(url.get_secret_value()):
            return "Apprise does not know this kind of URL"
        kind = apprise.NotifyType.SUCCESS
        if any(one.crossed for one in news):
            kind = apprise.NotifyType.WARNING
        body = redact("\n\n".join(one.text for one in news))
        title = on_one_line(redact(_title(app, news)))
        sent = target.notify(body, title, kind, body_format=apprise.NotifyFormat.TEXT)
    except Exception as error:  # a plugin of Apprise can fail in any way that Python can
        return type(error).__name__
    return "" if sent else f"{target[0].service_name} did not accept it"


def _title(app: str, news: Sequence[News]) -> str:
    crossed = len([one for one in news if one.crossed])
    recovered = len(news) - crossed
    parts = []
    if crossed:
        parts.append(f"{crossed} crossed")
    if recovered:
        parts.append(f"{recovered} recovered")
    return f"Celery {app}: {', '.join(parts)}"
