"""No secret that is known, or looks like one, is shown in any form; ordinary words stay readable."""

import base64
import html
import json
import re
import shlex
import string
from collections.abc import Callable
from functools import partial
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runbooks.core.redaction import (
    HIDDEN,
    also_secret,
    forget_secrets,
    holds_secret,
    is_secret_name,
    keep_secret,
    keep_secrets_in,
    redact,
    redact_value,
)

# --- by value


@settings(deadline=None)
@given(st.text(max_size=20), st.lists(st.text("abc*", min_size=8, max_size=12), max_size=3))
@example("xabcabcx", ["abcaabca", "abcaabcaabc"])
@example("aaaaaaa", ["aaaaaaa*"])
@example("aaaaaaa", ["*aaaaaaa"])
def test_no_known_secret_survives(text: str, secrets: list[str]) -> None:
    forget_secrets()
    keep_secret(*secrets)
    shown = redact("".join((text, *secrets, text)))
    assert not [secret for secret in secrets if secret in shown and set(secret) != {"*"}]


def test_a_secret_that_begins_with_another_is_hidden_whole() -> None:
    keep_secret("abcd1", "abcd1efgh")
    assert redact("the word abcd1efgh") == "the word ********"


def test_a_short_value_is_not_hidden_for_it_would_hide_everything() -> None:
    words = ("1", "yes", "true", "false", "none", "null", "default")
    keep_secret(*words)
    assert redact(f"retry 1 of 10, {words}") == f"retry 1 of 10, {words}"


def test_a_password_that_is_a_short_word_is_hidden_only_where_it_stands_alone() -> None:
    keep_secret("shop", "4711")
    assert redact("wrong password 'shop' (4711)") == "wrong password '********' (********)"
    assert (
        redact("shop.tasks.bill of /srv/shop at 1247113")
        == "shop.tasks.bill of /srv/shop at 1247113"
    )
    keep_secret("printer", "printers", "1234567", "12345678")
    assert redact("aprinter at 01234567") == "aprinter at 01234567"
    assert redact("aprinters at 012345678") == "a******** at 0********"


def in_base64(encode: Callable[[bytes], bytes], before: int, secret: str) -> str:
    return encode(b"?" * before + secret.encode() + b"yz").decode()


LETTERS = string.ascii_letters + string.digits
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": repr,
    "repr in a container": lambda s: repr({"x": [s]}),
    "repr beside both quotes": lambda s: repr(f"""it's "{s}" there"""),
    "repr of repr": lambda s: repr(repr(s)),
    "ascii": ascii,
    "bytes": lambda s: repr(s.encode()),
    "json": json.dumps,
    "json in utf-8": lambda s: json.dumps(s, ensure_ascii=False),
    "json with escaped slashes": lambda s: json.dumps(s).replace("/", r"\/"),
    "json in json": lambda s: json.dumps(json.dumps({"x": s})),
    "repr in json": lambda s: json.dumps(repr({"x": s})),
    "three times": lambda s: json.dumps(repr(json.dumps({"x": repr(s)}))),
    "shell in a log in json": lambda s: json.dumps(repr(f"+ {shlex.quote(s)} it's")),
    "json for html": lambda s: json.dumps(s).translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&'"}),
    "url in a url": lambda s: quote(quote(s, safe=""), safe=""),
    "shell": shlex.quote,
    "shell, as bash": lambda s: "'" + s.replace("'", r"'\''") + "'",
    "url": quote,
    "url, all of it": lambda s: quote(s, safe=""),
    "url, all of it, lower hex": lambda s: "".join(chr(b) if chr(b) in LETTERS else f"%{b:02x}" for b in s.encode()),
    "url, a form": quote_plus,
    "url, as a browser": lambda s: quote(s, safe="!~*'()"),
    "html": html.escape,
    **{f"base64 at {n}": partial(in_base64, base64.b64encode, n) for n in range(3)},
    **{f"base64 for urls at {n}": partial(in_base64, base64.urlsafe_b64encode, n) for n in range(3)},
}  # fmt: skip


def left_of(secret: str, shown: str) -> bool:
    """Whether six letters of a secret's own are to be read there, as they are or in base64."""
    return any(secret[n : n + 6] in shown for n in range(len(secret) - 5)) or any(
        base64.b64encode(b"x" * n + secret.encode()).decode()[4:16] in shown for n in range(3)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "secret",
    [
        "hunter2-Tr0ub4dor",
        "it's\"both\\quotes",
        "sp ace&pl+us=per%cent",
        "slash/hash#and?q@at:",
        "gr\xfc\xdfe-\u20ac-\U0001f511-key",
    ],
)
def test_a_known_secret_is_hidden_in_every_form_in_which_it_is_written(
    form: str, secret: str
) -> None:
    keep_secret(secret)
    written = f"before {FORMS[form](secret)} after"
    shown = redact(written)
    assert HIDDEN in shown, shown
    assert not left_of(secret, shown), shown
    assert (shown[:7], shown[-6:]) == ("before ", " after")


def test_too_little_of_a_short_secret_is_left_to_be_found_in_base64() -> None:
    keep_secret("a1-B2c", "z9-Y8x7")
    assert HIDDEN not in redact(in_base64(base64.b64encode, 1, "a1-B2c"))
    for before in range(3):
        assert HIDDEN in redact(in_base64(base64.b64encode, before, "z9-Y8x7"))


ESCAPES = [
    form
    for name, form in FORMS.items()
    if not name.startswith(("base64", "three", "html", "json for html", "url, all of it, lower"))
]


@settings(deadline=None, max_examples=300)
@given(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.lists(st.sampled_from(ESCAPES), max_size=3),
)
@example("'\\\"", [shlex.quote, repr, json.dumps])
@example(
    "'",
    [lambda text: json.dumps(repr(f"+ {shlex.quote(text)}")), *[lambda text: repr(repr(text))] * 2],
)
def test_a_secret_is_hidden_however_it_is_escaped_and_escaped_again(
    middle: str, escapes: list[Callable[[str], str]]
) -> None:
    forget_secrets()
    text = secret = f"Kq7{middle}Zx9"
    keep_secret(secret)
    for escape in escapes:
        text = escape(text)
    assert not {"Kq7", "Zx9"} <= set(re.findall("Kq7|Zx9", redact(text)))


def test_a_secret_with_quotes_is_looked_for_in_a_text_full_of_quotes() -> None:
    keep_secret("'abcd''efgh'x")
    hostile = ("'" * 500 + "abcd") * 20 + "efgh"
    assert redact(hostile) == hostile


def test_each_long_line_of_a_secret_is_hidden_where_it_stands_alone() -> None:
    keep_secret("-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----")
    assert redact("| MIIEvQIBADANBgkq\n| hkiG9w0BAQEFAASC") == "| ********\n| ********"
    keep_secret("12-45678\n12-4567\nx")
    assert redact("| 12-45678\n| 12-4567") == "| ********\n| 12-4567"


@pytest.mark.parametrize("cut", ["...", "\u2026", "...', ..."])
def test_what_is_cut_off_in_the_middle_is_hidden_too(cut: str) -> None:
    keep_secret("it's-a-Tr0ub4dor&3")
    for written in ("it's-a-Tr0ub", "it's-a", "it's-", r"it\'s-a-Tr", "it%27s-a"):
        assert redact(f"kwargs={{'x': '{written}{cut}") == f"kwargs={{'x': '{HIDDEN}{cut}"
    assert (
        redact("it's... Trying again in 2.00 seconds...")
        == "it's... Trying again in 2.00 seconds..."
    )


@pytest.mark.parametrize(
    "write",
    [
        lambda text: quote(text, safe=""),
        html.escape,
        lambda text: json.dumps(text)[1:-1],
        lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
        lambda text: shlex.quote(f"{text}'")[1:-6],
        lambda text: json.dumps(shlex.quote(f"{text}'")[1:-6])[1:-1],
    ],
    ids=["URL", "HTML", "JSON", "JSON twice", "shell", "shell in JSON"],
)
def test_a_cut_in_the_middle_of_an_escape_shows_no_letter(write: Callable[[str], str]) -> None:
    secret = 'Kq011it\'s "100%" b\\c & gr\xfc\xdfe'
    keep_secret(secret)
    whole = write(secret)
    for end in range(len(write(secret[:5])), len(whole)):
        assert "Kq0" not in redact(f"['x={whole[:end]}...', ...]"), whole[:end]


def test_a_thousand_secrets_are_hidden_as_one_is() -> None:
    secrets = [f"{n:04}-canary-{n * 7919 % 10007:05}" for n in range(1000)]
    keep_secret(*secrets)
    assert redact(" ".join(secrets)) == " ".join([HIDDEN] * 1000)
    assert (
        redact(" ".join(base64.b64encode(one.encode()).decode() for one in secrets)).count(HIDDEN)
        == 1000
    )


# --- by name


@pytest.mark.parametrize(
    "name",
    ["DB_PASSWORD", "SMTP_PASS", "PASS", "DB_PWD", "DB_PW", "SMTP_PASS_2", "APP_KEY2", "PASSPHRASE", "HTTP_AUTH",
     "SLACK_WEBHOOK_URL", "GLPI_TOKEN",
     "SECRET_KEY", "APP_KEY", "KEY", "AWS_SECRET_ACCESS_KEY", "SENTRY_DSN", "password", "passwd", "userPassword",
     "authToken",
     "api-key", "client_secret", "MYSQL_PWD", "JWT", "Authorization", "DB_PASSCODE", "AwsCredentials", "PRIVATE_KEY_PEM",
     "bearer_of_app", "HASH_SALT", "SESSION_COOKIE", "APP_KEY_2"],
)  # fmt: skip
def test_what_stands_under_the_name_of_a_secret_is_hidden(name: str) -> None:
    assert is_secret_name(name)
    for text in (
        f"{name}=kept-1",
        f"{name}='kept-1'",
        f'{{"{name}": "kept-1"}}',
        f"{{'{name}': 'kept-1'}}",
        f"?a=1&{name}=kept-1&b=2",
        f"sync --{name} kept-1",
    ):
        assert "kept-1" not in redact(text)
    assert redact_value({name: "kept-1", "x": [{name: ["kept-1"]}]}) == {
        name: HIDDEN,
        "x": [{name: HIDDEN}],
    }
    keep_secrets_in({name: "kept-1", "a": {"b": [{name: "kept-2"}]}})
    assert redact("kept-1 kept-2") == "******** ********"


@pytest.mark.parametrize(
    "text",
    [
        "accounts.reset_password: 12 messages wait", "accounts.reset_password: SUCCESS after 3 s",
        "ok     queue=tokens depth=12", "tokens: 5 messages", "queue tokens has 512 of 1000", "max_tokens=512",
        "the key of a queue is not a list",
        "{'exchange': '', 'routing_key': 'celery'}", "public_key=x-1 primary_key=x-1", "Task accounts.reset_password[1c2d3e4f-aa] received",
        "PWD=/srv/shop HOME=/root",
        "TOKENIZERS_PARALLELISM=false", "author=me", "keyboard=de", "passed=3 failed=0 pass=3",
        "POSTGRES_PASSWORD_FILE=/run/secrets/pg",
        "the password is wrong", "see https://docs.example.org/a?mail=me@example.org", "celery@web1: OK",
        "me@example.org",
        "put the password into the broker URL: redis://:PASSWORD@host:port/db", "'token': None",
        "Basic authentication failed",
        "ansible_ssh_private_key_file: /root/.ssh/id_ed25519", "secret: true", "a bearer of news",
    ],
)  # fmt: skip
def test_ordinary_words_stay_readable(text: str) -> None:
    keep_secrets_in(
        {
            "PWD": "/srv/shop",
            "KEY_FILE": "/run/secrets/pg",
            "PASSWORD_FILE": "/root/.ssh/id_ed25519",
        }
    )
    assert redact(text) == text


@pytest.mark.parametrize("end", ["FILE", "PATH", "DIR", "SOCK", "TIMEOUT", "TTL"])
def test_a_name_that_ends_so_is_not_a_secrets(end: str) -> None:
    assert redact(f"DB_PASSWORD_{end}=kept-1 db_password_{end.lower()}=kept-1").count("kept-1") == 2


def test_after_a_colon_only_what_looks_like_a_value_is_hidden() -> None:
    assert (
        redact("api_token: waits, api_token: a1b2c3d4") == "api_token: waits, api_token: ********"
    )
    assert redact("password: swordfish") == "password: ********"


def test_a_flag_that_asks_for_a_password_has_none_after_it() -> None:
    kept = "--ask-become-pass with the right one, or --ask-pass web1"
    assert redact(kept) == kept
    assert redact("--become-pass swordfish") == "--become-pass ********"
    assert redact("--ask-pass=swordfish") == "--ask-pass=********"


def test_the_operators_own_names_are_names_of_secrets_too() -> None:
    assert redact("LICENCE_NR=4711 licence=x-1") == "LICENCE_NR=4711 licence=x-1"
    also_secret(["licence"])
    assert redact("LICENCE_NR=x4711 licence=x-1") == "LICENCE_NR=******** licence=********"


def test_what_is_redacted_twice_stays_as_it_is() -> None:
    text = "{'password': 'x'} redis://:y@h/0 Authorization: Bearer z1234567 PASS=w"
    assert redact(redact(text)) == redact(text)


def test_json_stays_json() -> None:
    document = {
        "password": 1234,
        "a": [{"token": None, "key": True}],
        "text": 'say {"pw": "x"}, PASS=y',
    }
    assert json.loads(redact(json.dumps(document))) == {
        "password": HIDDEN, "a": [{"token": None, "key": True}], "text": 'say {"pw": "********"}, PASS=********'
    }  # fmt: skip


# --- by look


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis://********@host:6379/0"),
        ("amqp://user:hunter2@host//", "amqp://********@host//"),
        ("redis://:hun@ter2@host/0", "redis://********@host/0"),
        ("redis://:hun/te#r2@host:6379/0: refused", "redis://********@host:6379/0: refused"),
        ("rediss://me:1/2@host:6379/0", "rediss://********@host:6379/0"),
        ("https://f00dtoken@example.org/x", "https://********@example.org/x"),
        (
            "redis://a:hunter2@h/0;redis://b:hunter2@h/1",
            "redis://********@h/0;redis://********@h/1",
        ),
        ("http://host:8080/path?x=a@b", "http://host:8080/path?x=a@b"),
    ],
)
def test_what_stands_before_the_host_of_a_url_is_hidden_and_the_rest_stays_readable(
    text: str, shown: str
) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "secret",
    ["sk_live_4eC39HqLyjWDarjtT1zdp7dc", "AKIAIOSFODNN7EXAMPLE", "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
     "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
     "glpat-abcdefghij0123456789",
     "xoxb-123456789012-abcdefABCDEF", "AIzaSyA-1234567890abcdefghijklmnopqrstu",
     "npm_abcdefghijklmnopqrstuvwxyz0123456789", "pypi-AgEIcHlwaS5vcmcCJDU2YzQ", "sk-abcdefghij0123456789",
     "SG.abcdefghij0123456.abcdefghij0123456", "123456789:AAabcdefghijklmnopqrstuvwxyz01234"],
)  # fmt: skip
def test_keys_of_a_well_known_kind_are_hidden_wherever_they_stand(secret: str) -> None:
    for text in (f"got {secret} here", f"({secret})", f"x={secret}&y", json.dumps({"a": secret})):
        assert secret not in redact(text)
        assert HIDDEN in redact(text)
    assert holds_secret(secret)


@pytest.mark.parametrize(
    "text",
    ["Authorization: Bearer abc-123-def", "authorization: Basic dXNlcjpodW50ZXIy",
    "'Authorization': 'Token abc-123-def'", "Cookie: session=abc-123-def; a=b",
     "curl -H 'X-Api-Key: abc-123-def'", "redis-cli -h h -a abc-123-def ping", "psql --password abc-123-def",
     "sent Bearer abc-123-def"],
)  # fmt: skip
def test_what_a_header_or_an_argument_carries_is_hidden(text: str) -> None:
    shown = redact(text)
    assert "abc-123-def" not in shown
    assert "dXNlcjpodW50ZXIy" not in shown


@pytest.mark.parametrize(
    "place",
    [
        "https://hooks.slack.com/services/",
        "https://discord.com/api/webhooks/",
        "https://shop.webhook.office.com/webhookb2/",
        "-----BEGIN RSA PRIVATE KEY-----\n",
    ],
)
def test_what_follows_the_place_of_a_key_is_hidden(place: str) -> None:
    end = "\n-----END RSA PRIVATE KEY-----" if "BEGIN" in place else " 404"
    shown = redact(f"post {place}T00/B00abc/XXXXyyyy{end}")
    assert "XXXXyyyy" not in shown
    assert shown.startswith(f"post {place[:24]}")


def test_a_user_alone_is_not_a_secret_of_a_variable_and_a_password_is() -> None:
    assert not holds_secret("redis://me@cache:6379/1")
    assert holds_secret("redis://:x@cache:6379/1")
    assert holds_secret("postgres://me:x/y@db/1")
    assert holds_secret("--token=abc")


def test_lines_after_a_hidden_value_are_still_shown_where_their_breaks_are_written_out() -> None:
    keep_secret("s3cret-of-django")
    once = redact("DJANGO_SECRET_KEY=s3cret-of-django\nTIMEOUT=30\ntold")
    assert redact(once.replace("\n", "\\n")) == r"DJANGO_SECRET_KEY=********\nTIMEOUT=30\ntold"
