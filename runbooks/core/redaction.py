"""What must not leave this tool: secrets, recognized by their value, their name, or their look.

A known secret is remembered as long as the process lives (`keep_secret`), from any host or file.
`redact` removes it from a text in every form that programs write. Everything that is printed,
recorded or sent goes through it. `docs/secrets.md` explains this to operators.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any
from urllib.parse import unquote

from runbooks.core.written_forms import beginning, begun, in_base64, is_cut, longest_word, written

HIDDEN = "********"
LEAST = 4
"""A shorter value is not hidden: it would be part of half of all words."""

_MANY = 300
_NEVER_SECRET = {"true", "false", "none", "null", "default"}
_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w%+-]{8,}")
_WORD = re.compile(r"[a-z]{4,7}|[A-Z]{4,7}|\d{4,7}")
_LINE_LEAST = 8

_ANYWHERE = (
    r"passw|passphrase|passcode|secret|credential|webhook|private_?key|private$|api_?key|token(?!i)"
    r"|bearer"
)
_AT_THE_END = (
    r"(?:^|[^a-z])(?:pass|pwd|pw|auth|authorization|dsn|jwt|salt|[a-z0-9]+[_-]key|cookie)"
    r"(?:[_-]?\d+)?$"
)
_NAME = re.compile(f"{_ANYWHERE}|{_AT_THE_END}", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_SECRET = re.compile(
    r"(?:routing|binding|primary|foreign|public|cache|sort|partition|group|message|host)_?key$"
    r"|(?:[_-]|^)(?:file|path|dir|directory|sock|timeout|ttl|tokens)$",
    re.IGNORECASE,
)
_HIDDEN_ALREADY = re.compile(r"\*+(?:\\|$)")
"""The next line may follow, with the line break written as `\\n`."""
_WEAK_NUMBER = re.compile(r"\d{1,5}(?:\.\d+)?")
_PASSWORD = re.compile(r"(?i:passw|passphrase|pwd|pw|secret)|PASS")
_ALONE = re.compile(r"password|passwd|passphrase|pwd", re.IGNORECASE)

_STEMS = (
    "pass",
    "pw",
    "secret",
    "token",
    "credential",
    "webhook",
    "auth",
    "key",
    "dsn",
    "private",
    "jwt",
    "salt",
    "cookie",
    "bearer",
)
"""In lower case: a text without any of them contains no name of a secret."""


class _Known:
    """The values that are known as secrets, and the operator's own names of secrets."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.values: set[str] = set()
        self.clues: list[tuple[str, str]] = []
        """Texts that are in every form of a value, each with the value: its longest word, or its
        base64 form.
        """
        self.by_start: dict[str, list[tuple[str, str]]] = {}
        """The clues by their first letters."""
        self.beginnings: list[tuple[str, str]] = []
        """The beginning of each value, or of its base64 form, with the whole: for texts cut off."""
        self.words: dict[str, re.Pattern[str]] = {}
        """Short values, which are hidden only as a whole word."""
        self.names: re.Pattern[str] | None = None
        """Matches the operator's own names."""
        self.stems: tuple[str, ...] = _STEMS
        """A text without any of these contains no name of a secret."""

    def add(self, value: str) -> None:
        """Remember a secret."""
        with self.lock:
            if value in self.values:
                return
            self.values.add(value)
            if _WORD.fullmatch(value):
                self.words[value] = re.compile(rf"(?<![\w./-]){value}(?![\w/-]|\.\w)")
                return
            for clue in {longest_word(value), *in_base64(value)}:
                self.by_start.setdefault(clue[:LEAST], []).append((clue, value))
                self.clues.append((clue, value))
                whole = value if clue in value else clue
                self.beginnings.append((beginning(whole), whole))


_known = _Known()


def forget_secrets() -> None:
    """Forget everything: for tests, each of which is a run of its own."""
    global _known
    _known = _Known()
    is_secret_name.cache_clear()


def also_secret(names: Iterable[str]) -> None:
    """Also take names that contain one of these words, in any case, as names of secrets."""
    words = sorted({name.lower() for name in names})
    if words and _known.stems != (*_STEMS, *words):
        _known.names = re.compile("|".join(map(re.escape, words)), re.IGNORECASE)
        _known.stems = (*_STEMS, *words)
        is_secret_name.cache_clear()


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether the value of this name (a variable, an argument, a key) counts as a secret."""
    if _known.names and _known.names.search(name):
        return True
    if name == "KEY":
        return True
    return not _NO_SECRET.search(name) and _NAME.search(_CAMEL.sub("_", name)) is not None


def keep_secret(*values: str | None) -> None:
    """Never show these values from now on, nor long lines of those with several lines."""
    for value in values:
        for one in _worth_hiding(value or ""):
            _known.add(one)


def _worth_hiding(value: str) -> Iterable[str]:
    whole = value.strip()
    if len(whole) >= LEAST and whole.lower() not in _NEVER_SECRET and set(whole) != {"*"}:
        yield whole
        if "\n" in whole:
            for line in map(str.strip, whole.split("\n")):
                if len(line) >= _LINE_LEAST and "-----" not in line:
                    yield line


def keep_secrets_in(value: Any, name: str = "") -> None:
    """Never show the parts of a variable's value with a secret name, nor passwords in its URLs."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            keep_secrets_in(item, name if is_secret_name(name) else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            keep_secrets_in(item, name)
    elif isinstance(value, str):
        if is_secret_name(name) and not _is_folder(name, value):
            keep_secret(value)
        if "@" in value:
            keep_secret(*url_secrets(value))


def _is_folder(name: str, value: str) -> bool:
    """Whether the value is the shell's own `PWD`, not a password."""
    return name in ("PWD", "OLDPWD") and value.startswith("/")


def keep_webhook(url: str) -> None:
    """Never show the URL of a target: any part may be a token (`slack://A/B/C`)."""
    keep_secret(url, *url_secrets(url))
    keep_secret(*(part for part in re.split(r"[/?&=@:]+", url) if _TOKEN.fullmatch(part)))


def redact(text: str) -> str:
    """The text without known secrets, and without what is one by its name or its look.

    Redact before you cut a text: a part of a secret is not recognized.
    """
    return hide_by_look(_by_value(text))


def redact_value(value: Any) -> Any:
    """A JSON value without the secrets in its strings, and without the values of secret names."""
    if isinstance(value, Mapping):
        return {redact_value(key): _of_key(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(item) for item in value]
    if isinstance(value, str):
        return redact(value)
    return value


def _of_key(key: Any, item: Any) -> Any:
    if isinstance(key, str) and item not in (None, "", True, False) and is_secret_name(key):
        return HIDDEN
    return redact_value(item)


def holds_secret(text: str) -> bool:
    """Whether a text contains a known secret, a password in a URL, or a key of a well-known kind.

    A user name alone does not count, though `redact` hides it in a URL because it may be a token.
    """
    without_user = _USER.sub("://", text)
    return redact(without_user) != without_user


def _by_value(text: str) -> str:
    """Hide known values until none is left: text next to the stars may form another one."""
    before = ""
    while text != before:
        before = text
        for clue, value in sorted(_found(text), key=lambda one: len(one[1]), reverse=True):
            if clue in value:
                text = written(value).sub(HIDDEN, text)
            else:
                text = text.replace(clue, HIDDEN)
    if is_cut(text):
        for clue, whole in _known.beginnings:
            if clue in text:
                text = begun(whole).sub(HIDDEN, text)
    for word, alone in _known.words.items():
        if word in text:
            text = alone.sub(HIDDEN, text)
    return text


def _found(text: str) -> list[tuple[str, str]]:
    """The clues that are in a text, each with its value."""
    if len(_known.clues) < _MANY:
        return [one for one in _known.clues if one[0] in text]
    starts = _known.by_start.keys() & {text[n : n + LEAST] for n in range(len(text) - LEAST + 1)}
    short = [start for start in _known.by_start if len(start) < LEAST]
    found = []
    for start in (*starts, *short):
        found += [one for one in _known.by_start[start] if one[0] in text]
    return found


# --- by their look

_PLACEHOLDER = r"(?!(?:user|name)?:?(?:password|\*+)@)"
_URL = re.compile(
    rf"(?P<scheme>\b(?:https?|wss?)://){_PLACEHOLDER}[^\s\"'<>/?#]+@"
    rf"|(?P<other>\b(?!https?:|wss?:)[a-z][a-z0-9+.-]*://){_PLACEHOLDER}(?:(?!://)[^\s\"'<>])+@(?=[\w\[.%-])",
    re.IGNORECASE,
)
_USER = re.compile(r"://[a-z][a-z0-9_.-]{0,15}@")
_SHAPES = (
    ("eyJ", r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)*"),  # a JWT
    ("AKIA", r"\bAKIA[A-Z0-9]{16}\b"),  # Amazon
    ("ASIA", r"\bASIA[A-Z0-9]{16}\b"),
    ("AIza", r"\bAIza[\w-]{30,}"),  # Google
    ("ya29.", r"\bya29\.[\w-]{10,}"),
    ("k_live_", r"\b[sr]k_live_\w{6,}"),  # Stripe
    ("k_test_", r"\b[sr]k_test_\w{6,}"),
    ("whsec_", r"\bwhsec_\w{6,}"),
    ("gh", r"\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}"),
    ("github_pat_", r"\bgithub_pat_\w{20,}"),
    ("glpat-", r"\bglpat-[\w-]{16,}"),
    ("xox", r"\bxox[a-z]-[\w-]{8,}"),  # Slack
    ("hooks.slack.com/", r"(?<=hooks\.slack\.com/)[\w/-]+"),
    ("/api/webhooks/", r"(?<=/api/webhooks/)[\w/-]+"),  # Discord
    ("webhook.office.com/", r"(?<=webhook\.office\.com/)[^\s\"'<>]+"),
    (":AA", r"\b\d{8,10}:AA[\w-]{30,}"),  # Telegram
    ("SG.", r"\bSG\.[\w-]{16,}\.[\w-]{16,}"),  # SendGrid
    ("sk-", r"\bsk-[\w-]{20,}"),
    ("npm_", r"\bnpm_[A-Za-z0-9]{30,}"),
    ("pypi-", r"\bpypi-[\w-]{20,}"),
    ("PRIVATE KEY-----", r"(?<=PRIVATE KEY-----)(?:(?!-----)[\s\S])+"),
    ("earer ", r"(?<=earer )(?=\S*\d)[\w.~+/=-]{8,}"),
    ("redis-cli", r"(?<= -a )\S+|(?<= --pass )\S+"),
)
"""A text that has to be there, and what is hidden then; most expressions are never compiled."""
_AUTHORIZATION = re.compile(
    r"(?P<head>\b(?:proxy-)?authorization\\*[\"']?\s*[:=]\s*\\*[\"']?(?:(?:bearer|basic|token|digest|negotiate|apikey)\s+)?)"
    r"(?!\*{8})[^\s\"'\\,;]+|(?P<cookie>\b(?:set-)?cookie: )[^\n\"']+",
    re.IGNORECASE,
)
_HEAD = re.compile(
    r"(?<![\w-])(?P<flag>--)?(?P<name>[A-Za-z_][\w-]*)(?P<close>\\*[\"'])?\]?"
    r"(?:[ \t]*(?P<sep>=>|:=|==?|:)[ \t]*|(?(flag)[ \t]+|(?!)))"
)
_VALUE = re.compile(
    r"""(?P<open>[bBrRuUfF]{0,2}(?P<quote>\\*["']))(?P<body>(?:(?!(?P=quote))(?:\\.|[^\\]))*)
    |\w*[\[({][^\])}]*[\])}]?|(?:[^\s"'&,;)}\]]|[,;)}\]](?=[^\s"'&,;)}\]]))+""",
    re.VERBOSE | re.DOTALL,
)


def hide_by_look(text: str) -> str:
    """The text without what is a secret by its look or by its name."""
    if "://" in text and "@" in text:
        text = _URL.sub(lambda found: f"{found['scheme'] or found['other']}{HIDDEN}@", text)
    for needle, shape in _SHAPES:
        if needle in text:
            text = re.sub(shape, HIDDEN, text)
    lowered = text.lower()
    if any(stem in lowered for stem in _known.stems):
        if "authorization" in lowered or "cookie" in lowered:
            text = _AUTHORIZATION.sub(
                lambda found: f"{found['head'] or found['cookie']}{HIDDEN}", text
            )
        text = _by_name(text)
    return text


def _by_name(text: str) -> str:
    """Hide the values of secret names: `PASSWORD=x`, `'token': 'x'`, `--password x`, `?pwd=x`."""
    parts: list[str] = []
    done = 0
    for head in _HEAD.finditer(text):
        if head.start() < done or not is_secret_name(head["name"]):
            continue
        value = _VALUE.match(text, head.end())
        if value and (shown := _hidden(head, value, text)):
            parts += (text[done : head.end()], shown)
            done = value.end()
    return "".join((*parts, text[done:]))


def _hidden(head: re.Match[str], value: re.Match[str], text: str) -> str:
    """What to show instead of a value; "": leave it, as it is not a secret or already hidden."""
    if value["quote"] and not value["body"].strip("*"):
        return ""
    if value["quote"]:
        return f"{value['open']}{HIDDEN}"
    bare = value[0]
    if _HIDDEN_ALREADY.match(bare) or bare.lower() in _NEVER_SECRET:
        return ""
    if _is_folder(head["name"], bare):
        return ""
    if head["flag"] and not head["sep"] and head["name"].startswith("ask-"):
        return ""  # it asks for a password, so no value follows: `--ask-become-pass`
    if _WEAK_NUMBER.fullmatch(bare) and not _PASSWORD.search(head["name"]):
        return ""
    if head["sep"] == ":" and not head["close"] and not _after_colon(head, bare, text):
        return ""
    close = head["close"] or ""
    return f"{close}{HIDDEN}{close}"


def _after_colon(head: re.Match[str], bare: str, text: str) -> bool:
    """Whether a value follows `name:`, not a sentence: tasks and queues may have any name."""
    if text[: head.start()].endswith((".", "/", "@")):
        return False
    mixed = len(bare) >= 6 and any(map(str.isdigit, bare)) and any(map(str.isalpha, bare))
    return mixed or (_ALONE.fullmatch(head["name"]) is not None and len(bare) >= LEAST)


def url_secrets(text: str) -> list[str]:
    """The passwords in the URLs of a text, literally and decoded; without a password, the user.

    A password may contain characters that should be escaped but are not: it ends at the last `@`.
    """
    found = []
    for url in re.split(r"[;,\s](?=[A-Za-z][A-Za-z0-9+.-]*://)", text):
        scheme, is_url, rest = url.partition("://")
        user, at, _ = rest.rpartition("@")
        if is_url and at and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
            name, colon, password = user.partition(":")
            secret = password if colon else name
            found += [secret, unquote(secret)]
    return found
