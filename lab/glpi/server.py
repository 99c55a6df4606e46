"""The stand-in's HTTP side: GLPI's resources below `/apirest.php`, its faults set by `PUT
/lab/behaviour`.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from lab.glpi.api import Answer, Api, RefusedError

API_ROOT = "/apirest.php/"
BEHAVIOUR_PATH = "/lab/behaviour"
Fault = Literal[401, 500, "hang"]


@dataclass(frozen=True)
class Behaviour:
    """How the API behaves from now on: answers come `latency_s` late, or fail as `fail` says (None:
    they do not).
    """

    latency_s: float = 0.0
    fail: Fault | None = None
    replaced: threading.Event = field(default_factory=threading.Event, compare=False)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The behaviour a `PUT` asks for; raises ValueError for anything but its two keys and their
        values.
        """
        wanted = json.loads(text)
        if not isinstance(wanted, dict) or not wanted.keys() <= {"latency_s", "fail"}:
            raise ValueError('the body is {"latency_s": seconds, "fail": null, 401, 500 or "hang"}')
        latency_s, fail = wanted.get("latency_s", 0.0), wanted.get("fail")
        if not isinstance(latency_s, int | float) or latency_s < 0:
            raise ValueError("latency_s is a number of seconds, 0 or more")
        if fail not in (None, 401, 500, "hang"):
            raise ValueError('fail is null, 401, 500 or "hang"')
        return cls(float(latency_s), fail)


class GlpiServer(ThreadingHTTPServer):
    """Serves one `Api`; closing it does not wait for requests that hang."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, port: int, api: Api, address: str = "127.0.0.1") -> None:
        super().__init__((address, port), _Handler)
        self.api = api
        self.behaviour = Behaviour()

    def behave(self, behaviour: Behaviour) -> None:
        """Switch to `behaviour`; requests that hang under the one before are dropped."""
        previous, self.behaviour = self.behaviour, behaviour
        previous.replaced.set()


class _Handler(BaseHTTPRequestHandler):
    server: GlpiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def do_GET(self) -> None:
        behaviour = self.server.behaviour
        if behaviour.fail == "hang":
            behaviour.replaced.wait()
            self.close_connection = True
            return
        time.sleep(behaviour.latency_s)
        try:
            answer = self._answer(behaviour.fail)
        except RefusedError as refusal:
            answer = refusal.answer
        self._send(answer)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != BEHAVIOUR_PATH:
            self._send(Answer(404, {"error": f"only {BEHAVIOUR_PATH} can be put"}))
            return
        try:
            self.server.behave(Behaviour.from_json(body))
        except ValueError as exc:
            self._send(Answer(400, {"error": str(exc)}))
        else:
            self._send(Answer(200, {"ok": True}))

    def _answer(self, fail: Fault | None) -> Answer:
        url = urlsplit(self.path)
        if not url.path.startswith(API_ROOT):
            raise RefusedError(404, "ERROR_RESOURCE_MISSING", f"the API is under {API_ROOT}")
        if fail == 401:
            raise RefusedError(401, "ERROR_SESSION_TOKEN_INVALID", "session_token seems invalid")
        if fail == 500:
            raise RefusedError(500, "ERROR_SQL", "Unexpected SQL Error")
        resource = url.path.removeprefix(API_ROOT).strip("/")
        return self.server.api.answer(
            resource, dict(self.headers), dict(parse_qsl(url.query, keep_blank_values=True))
        )

    def _send(self, answer: Answer) -> None:
        body = json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: requests carry tokens, and the one who tries faults reads the client's log."""
