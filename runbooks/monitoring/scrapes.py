"""Answering Prometheus: a few clients at once, and none for ever, whoever can reach the port."""

import socket
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, MetricsHandler

CLIENTS = 16
"""How many connections are kept; the oldest makes way for one more, so nobody keeps Prometheus out."""

SILENCE_S = 10.0
"""For how long a client may send or take nothing."""


class _Handler(MetricsHandler):
    timeout = SILENCE_S

    def do_GET(self) -> None:  # noqa: N802
        if self.path.partition("?")[0] == "/metrics":
            return super().do_GET()
        self.send_error(HTTPStatus.NOT_FOUND, explain="the metrics are at /metrics")


class _Server(ThreadingHTTPServer):
    def __init__(self, address: str, port: int, registry: CollectorRegistry) -> None:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        self._clients: list[Any] = []
        self._changing = threading.Lock()
        super().__init__((address, port), _Handler.factory(registry))

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changing:
            self._clients.append(request)
            if len(self._clients) > CLIENTS:
                with suppress(OSError):  # it has just gone away by itself
                    self._clients.pop(0).shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._changing:
            if request in self._clients:
                self._clients.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is its own affair."""


def serve(registry: CollectorRegistry, address: str, port: int) -> int:
    """Answer scrapes in a thread of its own; returns the port, which 0 leaves open. Raises OSError."""
    server = _Server(address, port, registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port
