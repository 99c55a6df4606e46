"""Every client gets the metrics and nothing else, and keeps no other client from them."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Gauge

from runbooks.monitoring import scrapes
from runbooks.monitoring.scrapes import CLIENTS, serve


@pytest.fixture
def port() -> int:
    registry = CollectorRegistry()
    Gauge("celery_answer", "", registry=registry).set(42)
    return serve(registry, "127.0.0.1", 0)


@pytest.fixture
def half_open(port: int) -> Iterator[list[socket.socket]]:
    """Clients that have connected and say nothing, many more than are kept."""
    with ExitStack() as held:
        yield [
            held.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            for _ in range(8 * CLIENTS)
        ]


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        text: bytes = answer.read()
    return text.decode()


def test_a_scrape_gets_the_metrics_and_any_other_path_is_not_found(port: int) -> None:
    assert "celery_answer 42.0" in scrape(port)
    assert "celery_answer 42.0" in scrape(port, "/metrics?name[]=celery_answer")
    for path in ("/", "/metrics/more", "/favicon.ico"):
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            scrape(port, path)
        refused.value.close()


def test_an_address_of_either_family_is_served() -> None:
    try:
        port = serve(CollectorRegistry(), "::1", 0)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=30) as answer:
        assert answer.status == 200


def test_clients_that_say_nothing_keep_no_one_out_and_only_the_newest_are_kept(
    port: int, half_open: list[socket.socket], capfd: pytest.CaptureFixture[str]
) -> None:
    assert "celery_answer 42.0" in scrape(port)
    for client in half_open[:-CLIENTS]:
        assert client.recv(1) == b"", "ended by the server"
    half_open[-1].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert half_open[-1].recv(12) == b"HTTP/1.0 200"
    assert capfd.readouterr() == ("", "")


def test_a_client_that_says_nothing_is_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrapes._Handler, "timeout", 0.05)
    port = serve(CollectorRegistry(), "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        assert client.recv(1) == b""
