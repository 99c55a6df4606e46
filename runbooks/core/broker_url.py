"""The broker's URL as Celery takes it: what is wrong with one, told without its secrets, and what
nobody checks.

**Source:** kombu 5.7.0 `transport/redis.py: Channel._connparams, SentinelChannel`, `connection.py:
Connection.__init__` (the URL's forms; `rediss://` without options), `utils/url.py` (`ssl_`
options).
"""

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit

from runbooks.core.redaction import HIDDEN, hide_by_look
from runbooks.core.wording import did_you_mean

SCHEMES = ("redis", "rediss", "redis+socket", "socket", "sentinel")

_FORM = "redis://HOST:PORT/DB"
_VALKEY = ("valkey", "valkeys")
_ADDRESS = re.compile(r"[\w.-]+:\d{2,5}(/\d+)?")
_BEFORE_HOST = re.compile(r"(?<=://)(?:(?!://).)*@", re.DOTALL)
_ESCAPED = "write / as %2F, # as %23 and ? as %3F in a password"


def shown(url: str) -> str:
    """A broker URL for messages: only what stands before an `@`, or is an option with a secret, is
    hidden.
    """
    return ";".join(map(_shown, url.split(";")))


def _shown(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    if not slashes and "@" not in url:
        return url if _ADDRESS.fullmatch(url) else HIDDEN  # it may be the password alone
    head = scheme + slashes if slashes else ""
    login, at, tail = (rest if slashes else url).rpartition("@")
    return hide_by_look(f"{head}{HIDDEN if login else ''}{at}{tail}")


def safe_url(url: str) -> str:
    """The URL without its user and passwords, for messages; a text that is no URL is hidden whole."""
    return hide_by_look(_BEFORE_HOST.sub(f"{HIDDEN}@", url)) if "://" in url else HIDDEN


def problem_of(url: str) -> str | None:
    """What is wrong with a broker URL, None where nothing is that can be seen without connecting."""
    scheme = url.partition("://")[0].lower() if "://" in url else None
    if scheme is None:
        return f"{shown(url)} is no URL: {_FORM} is wanted"
    if scheme in _VALKEY:
        written = "rediss" if scheme == "valkeys" else "redis"
        return (
            f"write {written}:// for {scheme}://: Celery has no other name for it, and Valkey"
            " understands the same"
        )
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES)
        return f"{shown(url)} is no Redis URL, and this tool is for Celery on Redis: {_FORM}{hint}"
    if scheme == "sentinel":
        return next(
            (problem for part in url.split(";") if (problem := _of_part(part, "sentinel"))), None
        )
    if ";" in url:
        return f"{shown(url)} names several brokers: name the one that the workers use"
    return _of_part(url, scheme)


def _of_part(url: str, scheme: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{shown(url)} cannot be read: an IPv6 address stands in brackets, and {_ESCAPED}"
    if parts.scheme != scheme:
        return f"{shown(url)}: each part begins with {scheme}://"
    if parts.fragment or "@" in f"{parts.path}{parts.query}":
        return f"{shown(url)} ends before its host: {_ESCAPED}"
    if scheme.endswith("socket"):
        db = dict(parse_qsl(parts.query)).get("virtual_host", "0").strip("/") or "0"
        return (
            None
            if parts.path and db.isdigit()
            else f"{shown(url)}: {scheme}:///PATH?virtual_host=DB is wanted"
        )
    if not _has_port(parts):
        return f"{shown(url)}: what stands behind the host's `:` is no port"
    if not (parts.path.strip("/") or "0").isdigit():
        return f"{shown(url)} names no db by its number: {scheme}://HOST:PORT/0"
    return None


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def is_unchecked(url: str) -> bool:
    """Whether no certificate is checked, as Celery has it for `rediss://` without any of its
    options.
    """
    parts = urlsplit(url)
    return parts.scheme == "rediss" and "ssl_" not in parts.query
