"""Targets are notified through real servers, and secrets are not sent."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from pydantic import SecretStr

from lab.redis_server import free_port
from runbooks.monitoring.history import News
from runbooks.monitoring.notify import deliver

# Apprise imports it for its mails where it is still there (Python 3.11 and 3.12).
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

CROSSED = News(
    1,
    True,
    "CROSSED queue.depth high_q at 2025-06-15T15:06:40Z\n16,000 messages wait\n| 16,000 × *bill*",
)
RECOVERED = News(2, False, "RECOVERED beat.silent web1")


@contextmanager
def http_receiver(status: int = 200) -> Iterator[tuple[int, list[Any]]]:
    """A port, and what was posted to it."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_webhook_gets_all_of_it_in_one_message() -> None:
    with http_receiver() as (port, got):
        assert deliver(SecretStr(f"json://127.0.0.1:{port}/"), "shop", [CROSSED, RECOVERED]) == ""
    (message,) = got
    assert message["title"] == "Celery shop: 1 crossed, 1 recovered"
    assert message["message"] == f"{CROSSED.text}\n\n{RECOVERED.text}"
    assert message["type"] == "warning"


def test_a_mail_server_gets_a_mail_with_the_evidence() -> None:
    class Mailbox:
        mails: list[Any] = []  # noqa: RUF012

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
            return "250 OK"

    server = Controller(Mailbox(), hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        url = f"mailto://127.0.0.1:{server.port}?from=celery@example.com&to=ops@example.com&mode=insecure&format=text"
        assert deliver(SecretStr(url), "shop", [RECOVERED]) == ""
        assert deliver(SecretStr(url), "shop", [CROSSED]) == ""
    finally:
        server.stop()
    assert [mail["Subject"] for mail in Mailbox.mails] == [
        "Celery shop: 1 recovered",
        "Celery shop: 1 crossed",
    ]
    body = Mailbox.mails[1].get_body(("plain",)).get_content()
    assert "| 16,000 × *bill*" in body, "as it is written"


@pytest.mark.parametrize("fault", ["refused", "error", "unknown"])
def test_a_target_that_takes_nothing_is_a_reason_without_its_secrets(
    fault: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with http_receiver(500) as (port, _):
        place = {
            "refused": f"127.0.0.1:{free_port()}",
            "error": f"127.0.0.1:{port}",
            "unknown": "x",
        }[fault]
        scheme = "nosuch" if fault == "unknown" else "json"
        why = deliver(SecretStr(f"{scheme}://someone:hunter2@{place}/hunter2"), "shop", [CROSSED])
    assert why
    out, err = capfd.readouterr()
    assert "hunter2" not in why + out + err + caplog.text
