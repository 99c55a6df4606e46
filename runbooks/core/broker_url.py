"""The broker's URL as Celery reads it: what is wrong with one, without showing its secrets.

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
    """A broker URL for messages: logins before an `@` and options with a secret are hidden."""
    return ";".join(map(_shown, url.split(";")))


def _shown(url: str) -> str:
    if "://" not in url and "@" not in url:
        return url if _ADDRESS.fullmatch(url) else HIDDEN  # it may be only the password
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        scheme = ""
        rest = url
    login, at, tail = rest.rpartition("@")
    hidden = HIDDEN if login else ""
    return hide_by_look(f"{scheme}{slashes}{hidden}{at}{tail}")


def safe_url(url: str) -> str:
    """The URL for messages, without user and passwords; other text is hidden completely."""
    if "://" not in url:
        return HIDDEN
    return hide_by_look(_BEFORE_HOST.sub(f"{HIDDEN}@", url))


def problem_of(url: str) -> str | None:
    """What is wrong with a broker URL; None if nothing can be found without connecting."""
    if "://" not in url:
        return f"{shown(url)} is not a URL: expected {_FORM}"
    scheme = url.partition("://")[0].lower()
    if scheme in _VALKEY:
        written = "rediss" if scheme == "valkeys" else "redis"
        return f"write {written}:// instead of {scheme}://: Celery knows Valkey by no other name"
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES)
        return f"{shown(url)} is not a Redis URL, and this tool needs Redis: {_FORM}{hint}"
    if scheme == "sentinel":
        problems = (_of_part(part, "sentinel") for part in url.split(";"))
        return next(filter(None, problems), None)
    if ";" in url:
        return f"{shown(url)} names several brokers: name the one that the workers use"
    return _of_part(url, scheme)


def _of_part(url: str, scheme: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{shown(url)} cannot be read: write an IPv6 address in brackets, and {_ESCAPED}"
    if parts.scheme != scheme:
        return f"{shown(url)}: each part has to begin with {scheme}://"
    if parts.fragment or "@" in f"{parts.path}{parts.query}":
        return f"{shown(url)} ends before its host: {_ESCAPED}"
    if scheme.endswith("socket"):
        db = dict(parse_qsl(parts.query)).get("virtual_host", "0").strip("/") or "0"
        if parts.path and db.isdigit():
            return None
        return f"{shown(url)}: expected {scheme}:///PATH?virtual_host=DB"
    if not _has_port(parts):
        return f"{shown(url)}: the text after the host's `:` is not a port"
    if not (parts.path.strip("/") or "0").isdigit():
        return f"{shown(url)} has no db number: {scheme}://HOST:PORT/0"
    return None


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def is_unchecked(url: str) -> bool:
    """Whether Celery checks no certificate: for `rediss://` without any `ssl_` option."""
    parts = urlsplit(url)
    return parts.scheme == "rediss" and "ssl_" not in parts.query
