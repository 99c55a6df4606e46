"""Answers Prometheus and browsers: a few clients at a time, and none forever."""

import ipaddress
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any, Protocol

from msgspec import Struct
from prometheus_client import CollectorRegistry, MetricsHandler

CLIENTS = 16
"""How many connections are kept. A new one closes the oldest, so Prometheus can always connect."""

SILENCE_S = 10.0
"""How long a client may neither send nor receive."""


class Answer(Struct, frozen=True):
    """What a client gets."""

    status: HTTPStatus
    """The status."""
    content_type: str
    """The type of the body."""
    body: bytes
    """The body."""
    headers: Mapping[str, str]
    """Further headers."""


class Site(Protocol):
    """The pages that are served in addition to the metrics."""

    def answer(self, path: str) -> Answer | None:
        """The page at a path; None if there is none."""
        ...


class _Handler(MetricsHandler):
    timeout = SILENCE_S
    site: Site | None = None

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        if path == "/metrics":
            return super().do_GET()
        answer = self.site.answer(path) if self.site else None
        if answer is None:
            return self.send_error(HTTPStatus.NOT_FOUND, explain="the metrics are at /metrics")
        if not self._is_meant():
            return self.send_error(
                HTTPStatus.MISDIRECTED_REQUEST, explain="this address is only for this machine"
            )
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.content_type, **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _is_meant(self) -> bool:
        """Whether the client used a name of this machine.

        A foreign name that resolves to a loopback address would let a foreign page read ours.
        """
        if not _is_loopback(self.connection.getsockname()[0]):
            return True
        name = self.headers.get("Host", "")
        host, _, port = name.rpartition(":")
        if not port.isdigit():
            host = name
        host = host.strip("[]")
        return host in ("", "localhost") or _is_loopback(host)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class _Server(ThreadingHTTPServer):
    def __init__(
        self, address: str, port: int, registry: CollectorRegistry, site: Site | None
    ) -> None:
        handler = _Handler.factory(registry)
        handler.site = site  # type: ignore[attr-defined]
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        self._clients: list[Any] = []
        self._changing = threading.Lock()
        super().__init__((address, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changing:
            self._clients.append(request)
            if len(self._clients) > CLIENTS:
                with suppress(OSError):  # it has just closed itself
                    self._clients.pop(0).shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._changing:
            if request in self._clients:
                self._clients.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that closed its connection."""


def serve(registry: CollectorRegistry, address: str, port: int, site: Site | None = None) -> int:
    """Serve metrics and `site` in a thread of its own; return the port (0 chooses a free one).

    Raises OSError.
    """
    server = _Server(address, port, registry, site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port
