"""What must not leave this tool: secrets, hidden by value, by the name they stand under, and by
their look.

A value that is known as a secret is remembered for as long as the process lives (`keep_secret`),
whichever host or file it came from. `redact` takes it out of a text in every form that programs
write it in. Whatever is printed, written down or sent goes through it; `docs/secrets.md` says what
an operator has to know of it.
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
"""A shorter value is not hidden by value: half of all words would hold it."""

_MANY = 300
_NEVER_SECRET = {"true", "false", "none", "null", "default"}
_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w%+-]{8,}")
_WORD = re.compile(r"[a-z]{4,7}|[A-Z]{4,7}|\d{4,7}")
_LINE_LEAST = 8

_ANYWHERE = r"passw|passphrase|passcode|secret|credential|webhook|private_?key|private$|api_?key|token(?!i)|bearer"
_AT_THE_END = r"(?:^|[^a-z])(?:pass|pwd|pw|auth|authorization|dsn|jwt|salt|[a-z0-9]+[_-]key|cookie)(?:[_-]?\d+)?$"
_NAME = re.compile(f"{_ANYWHERE}|{_AT_THE_END}", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_SECRET = re.compile(
    r"(?:routing|binding|primary|foreign|public|cache|sort|partition|group|message|host)_?key$"
    r"|(?:[_-]|^)(?:file|path|dir|directory|sock|timeout|ttl|tokens)$",
    re.IGNORECASE,
)
_HIDDEN_ALREADY = re.compile(r"\*+(?:\\|$)")
"""What follows may be the next line, with its line break written as `\\n`."""
_WEAK_NUMBER = re.compile(r"\d{1,5}(?:\.\d+)?")
_PASSWORD = re.compile(r"(?i:passw|passphrase|pwd|pw|secret)|PASS")
_ALONE = re.compile(r"password|passwd|passphrase|pwd", re.IGNORECASE)

_STEMS = ("pass", "pw", "secret", "token", "credential", "webhook", "auth", "key", "dsn", "private", "jwt", "salt",
          "cookie", "bearer")  # fmt: skip
"""In lower case: a text without any of them holds no name of a secret."""


class _Known:
    """The values that are known as secrets, and the operator's own names of such.

    `clues` are texts that stand wherever a value does, each with it: a word of it, or what it is in
    base64. Those of four letters or more are in `by_start`, too, by these. `beginnings` are of what
    may be cut off.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.values: set[str] = set()
        self.clues: list[tuple[str, str]] = []
        self.beginnings: list[tuple[str, str]] = []
        self.by_start: dict[str, list[tuple[str, str]]] = {}
        self.words: dict[str, re.Pattern[str]] = {}
        self.names: re.Pattern[str] | None = None
        self.stems: tuple[str, ...] = _STEMS

    def add(self, value: str) -> None:
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
    """Know nothing any more: for tests, of which each is a run of its own."""
    global _known
    _known = _Known()
    is_secret_name.cache_clear()


def also_secret(names: Iterable[str]) -> None:
    """Take names that hold one of these words, whatever their case, for names of secrets, too."""
    words = sorted({name.lower() for name in names})
    if words and _known.stems != (*_STEMS, *words):
        _known.names = re.compile("|".join(map(re.escape, words)), re.IGNORECASE)
        _known.stems = (*_STEMS, *words)
        is_secret_name.cache_clear()


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether what stands under this name (a variable, an argument, a key) is taken for a secret."""
    if _known.names and _known.names.search(name):
        return True
    if name == "KEY":
        return True
    return not _NO_SECRET.search(name) and _NAME.search(_CAMEL.sub("_", name)) is not None


def keep_secret(*values: str | None) -> None:
    """Never show these values from now on, nor a long line of one that has several."""
    for value in values:
        for one in _worth_hiding(value or ""):
            _known.add(one)


def _worth_hiding(value: str) -> Iterable[str]:
    whole = value.strip()
    if len(whole) >= LEAST and whole.lower() not in _NEVER_SECRET and set(whole) != {"*"}:
        yield whole
        if "\n" in whole:
            lines = map(str.strip, whole.split("\n"))
            yield from (line for line in lines if len(line) >= _LINE_LEAST and "-----" not in line)


def keep_secrets_in(value: Any, name: str = "") -> None:
    """Never show the texts of a variable's value that stand under the name of a secret, nor
    passwords in its URLs.
    """
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
    """`PWD` is the shell's own, too."""
    return name in ("PWD", "OLDPWD") and value.startswith("/")


def keep_webhook(url: str) -> None:
    """Never show the URL of somebody who is told: any part of it may be a token (`slack://A/B/C`)."""
    keep_secret(url, *url_secrets(url))
    keep_secret(*(part for part in re.split(r"[/?&=@:]+", url) if _TOKEN.fullmatch(part)))


def redact(text: str) -> str:
    """The text with every known secret hidden, and what by its name or its look is one.

    Hidden is what stands there: a part of a secret is not known again, so redact before you cut.
    """
    return hide_by_look(_by_value(text))


def redact_value(value: Any) -> Any:
    """A JSON value with the secrets in its texts replaced, and what stands under a name that looks
    like one.
    """
    if isinstance(value, Mapping):
        return {redact_value(key): _of_key(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _of_key(key: Any, item: Any) -> Any:
    if isinstance(key, str) and item not in (None, "", True, False) and is_secret_name(key):
        return HIDDEN
    return redact_value(item)


def holds_secret(text: str) -> bool:
    """Whether a text holds a known secret, a password in a URL, or a key of a well-known kind.

    The name of a user alone, which `redact` hides in a URL because it may be a token, is none.
    """
    without_user = _USER.sub("://", text)
    return redact(without_user) != without_user


def _by_value(text: str) -> str:
    """Replaced until none is left: what stands beside a hidden secret may make one with the stars."""
    before = ""
    while text != before:
        before = text
        for clue, value in sorted(_found(text), key=lambda one: len(one[1]), reverse=True):
            text = written(value).sub(HIDDEN, text) if clue in value else text.replace(clue, HIDDEN)
    if is_cut(text):
        for clue, whole in _known.beginnings:
            if clue in text:
                text = begun(whole).sub(HIDDEN, text)
    for word, alone in _known.words.items():
        if word in text:
            text = alone.sub(HIDDEN, text)
    return text


def _found(text: str) -> list[tuple[str, str]]:
    if len(_known.clues) < _MANY:
        return [one for one in _known.clues if one[0] in text]
    starts = _known.by_start.keys() & {text[n : n + LEAST] for n in range(len(text) - LEAST + 1)}
    short = [start for start in _known.by_start if len(start) < LEAST]
    return [one for start in (*starts, *short) for one in _known.by_start[start] if one[0] in text]


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
"""A text that has to be there, and the expression for what is hidden then: most are never compiled."""
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
    """The text without what shows by itself that it is a secret, or by the name it stands under."""
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
    """What is assigned to the name of a secret: `PASSWORD=x`, `'token': 'x'`, `--password x`,
    `?passwd=x`.
    """
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
    """What stands for a value, "" where it is left as it is: no secret, or hidden already."""
    if value["quote"]:
        return f"{value['open']}{HIDDEN}" if value["body"].strip("*") else ""
    bare = value[0]
    if (
        _HIDDEN_ALREADY.match(bare)
        or bare.lower() in _NEVER_SECRET
        or _is_folder(head["name"], bare)
    ):
        return ""
    if _WEAK_NUMBER.fullmatch(bare) and not _PASSWORD.search(head["name"]):
        return ""
    if head["sep"] == ":" and not head["close"] and not _after_colon(head, bare, text):
        return ""
    return f"{head['close']}{HIDDEN}{head['close']}" if head["close"] else HIDDEN


def _after_colon(head: re.Match[str], bare: str, text: str) -> bool:
    """Whether what follows `name:` is its value, and not a sentence: a task's or a queue's name may
    be any word.
    """
    if text[: head.start()].endswith((".", "/", "@")):
        return False
    mixed = len(bare) >= 6 and any(map(str.isdigit, bare)) and any(map(str.isalpha, bare))
    return mixed or (_ALONE.fullmatch(head["name"]) is not None and len(bare) >= LEAST)


def url_secrets(text: str) -> list[str]:
    """The passwords in the URLs of a text, as they stand there and decoded; without a password,
    what stands for a user.

    A password may hold what has to be escaped in a URL, and is not: it ends at the last `@`.
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
