"""Broker URLs: every mistake is reported with its line, and only its secret is hidden."""

from pathlib import Path

import pytest

from runbooks.core.broker_url import is_unchecked, problem_of, shown
from tests.unit.core.test_settings import BASE, problems

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis1:6379/0", "redis1:6379/0 is not a URL: expected redis://HOST:PORT/DB"),
        (":hunter2@redis1:6379/0", "********@redis1:6379/0 is not a URL"),
        ("redis:/:hunter2@redis1/0", "********@redis1/0 is not a URL"),
        ("hunter2", "******** is not a URL"),
        (
            "reddis://:hunter2@redis1/0",
            "reddis://********@redis1/0 is not a Redis URL, and this tool needs Redis",
        ),
        ("amqp://guest:hunter2@rabbit//", "amqp://********@rabbit// is not a Redis URL"),
        ("valkey://:hunter2@redis1/0", "write redis:// instead of valkey://"),
        ("valkeys://:hunter2@redis1/0", "write rediss:// instead of valkeys://"),
        (
            "redis://:hunter2/x@redis1:6379/0",
            "redis://********@redis1:6379/0 ends before its host: write / as %2F",
        ),
        ("redis://:hunter2#x@redis1:6379/0", "redis://********@redis1:6379/0 ends before its host"),
        ("redis://:hunter2?x@redis1:6379/0", "redis://********@redis1:6379/0 ends before its host"),
        (
            "redis://:hunter2 x'y@redis1:6379/zero",
            "redis://********@redis1:6379/zero has no db number",
        ),
        (
            "redis://:hunter2@redis1:port/0",
            "redis://********@redis1:port/0: the text after the host's `:` is not a port",
        ),
        ("redis://:hunter2@redis1:99999/0", "is not a port"),
        ("redis://:hunter2@[::1/0", "write an IPv6 address in brackets"),
        (
            "redis://:hunter2@redis1/celery",
            "redis://********@redis1/celery has no db number",
        ),
        (
            "redis://redis1/x?password=hunter2",
            "redis://redis1/x?password=******** has no db number",
        ),
        (
            "redis://:hunter2@a/0;redis://:hunter2@b/0",
            "redis://********@a/0;redis://********@b/0 names several brokers",
        ),
        (
            "sentinel://:hunter2@a/0;redis://:hunter2@b/0",
            "redis://********@b/0: each part has to begin with sentinel://",
        ),
        ("redis+socket://?virtual_host=0", "expected redis+socket:///PATH?virtual_host=DB"),
    ],
)
def test_what_is_wrong_is_reported_with_the_line_and_without_the_secret(
    url: str, expected: str, tmp_path: Path
) -> None:
    quoted = '"' + url.replace('"', '\\"') + '"'
    base = BASE.replace(
        "celery_broker_url: redis://:hunter2@broker:6379/0", f"celery_broker_url: {quoted}"
    )
    (problem,) = problems(tmp_path, base=base)  # which sees to it that the secret is not in it
    assert problem.startswith("6: celery_broker_url: ")
    assert expected in problem


@pytest.mark.parametrize(
    "url",
    [
        "redis://", "redis://redis1", "redis://redis1/", "redis://:p@w@redis1/0",
        "redis://user:p%2Fw%40x@redis1:6379/12", "redis:///3",
        "REDIS://redis1/0", "rediss://:x@redis1:6380/0", "rediss://redis1/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=/ca.pem",
        "redis+socket:///run/redis.sock?virtual_host=3", "socket:///run/redis.sock", "redis://[2001:db8::1]:6379/0",
        "sentinel://:x@a:26379/0;sentinel://:x@b:26379/0", "redis://redis1/0?socket_timeout=5", "redis://redis_1.local/0",
    ],
)  # fmt: skip
def test_what_celery_takes_is_taken(url: str) -> None:
    assert problem_of(url) is None


@pytest.mark.parametrize(
    ("url", "unchecked"),
    [("rediss://a/0", True), ("rediss://a/0?ssl_cert_reqs=required", False), ("rediss://a/0?ssl_ca_certs=/x", False),
     ("rediss://a/0?ssl_cert_reqs=none", False), ("redis://a/0", False), ("rediss://a/0?db=1", True)],
)  # fmt: skip
def test_a_certificate_is_unchecked_where_the_url_has_no_options_for_it(
    url: str, unchecked: bool
) -> None:
    assert is_unchecked(url) is unchecked


def test_behind_sentinels_the_masters_name_is_asked_for_with_the_line(tmp_path: Path) -> None:
    base = BASE.replace("redis://:hunter2@broker:6379/0", "sentinel://:hunter2@a:26379/0")
    (problem,) = problems(tmp_path, base=base)
    assert (
        problem == "6: celery_broker_url: a Sentinel URL needs master_name in celery_broker_options"
    )


def test_what_is_not_a_secret_stays_readable() -> None:
    assert (
        shown("redis://redis1:6379/0?ssl_ca_certs=/etc/ca.pem")
        == "redis://redis1:6379/0?ssl_ca_certs=/etc/ca.pem"
    )
    assert shown("rediss://:x@redis1:6379/0") == "rediss://********@redis1:6379/0"
