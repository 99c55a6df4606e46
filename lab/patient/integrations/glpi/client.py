"""A client of GLPI's REST API: opens a session, looks printers up by serial number, always closes
the session.

**Source:** GLPI's `apirest.md`; field numbers from `listSearchOptions/Printer` (2: id, 5: serial
number).
"""

import json
import logging
import os
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

logger = logging.getLogger(__name__)

TIMEOUT_S = float(os.environ.get("GLPI_TIMEOUT_S", "10"))
BACKOFF_S = (0.2, 0.6)
PAGE_SIZE = 50


class GLPIError(Exception):
    """GLPI refused or failed to answer one request."""


class GLPIUnavailableError(GLPIError):
    """GLPI cannot be reached, or does not answer in time: further requests would fare no better."""


class GLPIUnauthorizedError(GLPIError):
    """GLPI does not accept the tokens, or no longer knows the session."""


class GLPIClient:
    """One session with GLPI, open inside a `with` block; `url` is the site's, without
    `/apirest.php`.
    """

    def __init__(
        self, url: str, app_token: str, user_token: str, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._url = urlsplit(url.rstrip("/"))
        self._headers = {"App-Token": app_token, "Content-Type": "application/json"}
        self._user_token = user_token
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        login = {"Authorization": f"user_token {self._user_token}"}
        self._headers["Session-Token"] = self._get("initSession", headers=login)["session_token"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self._get("killSession")
        except GLPIError as error:
            logger.warning("GLPI session was left open: %s", error)

    def printer_card_ids(self, serial: str) -> list[int]:
        """The ids of all printer cards filed under exactly this serial number."""
        card_ids: list[int] = []
        while True:
            page = self._get("search/Printer", _search_by_serial(serial, start=len(card_ids)))
            rows = page.get("data", [])
            card_ids += [int(row["2"]) for row in rows]
            if not rows or len(card_ids) >= page["totalcount"]:
                return card_ids

    def _get(
        self,
        resource: str,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """The decoded answer of a resource; a lost connection and a 5xx are tried again, a silent
        server is not.
        """
        path = f"{self._url.path}/apirest.php/{resource}" + (
            f"?{urlencode(query)}" if query else ""
        )
        for delay_s in (*BACKOFF_S, None):
            try:
                status, body = self._exchange(path, self._headers | (headers or {}))
            except TimeoutError:
                raise GLPIUnavailableError(
                    f"{resource}: no answer within {self._timeout_s:g} s"
                ) from None
            except (OSError, HTTPException) as exc:
                failure: GLPIError = GLPIUnavailableError(f"{resource}: {exc}")
            else:
                if status < 500:
                    return _accepted(resource, status, body)
                failure = _refusal(resource, status, body)
            if delay_s is None:
                raise failure
            time.sleep(delay_s)

    def _exchange(self, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        connection_class = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = connection_class(self._url.netloc, timeout=self._timeout_s)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _search_by_serial(serial: str, start: int) -> dict[str, str]:
    return {
        "criteria[0][field]": "5",
        "criteria[0][searchtype]": "contains",
        "criteria[0][value]": f"^{serial}$",
        "forcedisplay[0]": "2",
        "forcedisplay[1]": "5",
        "sort": "2",
        "range": f"{start}-{start + PAGE_SIZE - 1}",
    }


def _accepted(resource: str, status: int, body: bytes) -> Any:
    """The decoded body of an answer that is not a refusal."""
    if status >= 400:
        raise _refusal(resource, status, body)
    try:
        return json.loads(body)
    except ValueError:
        raise GLPIError(f"{resource}: HTTP {status}, but the answer is not JSON") from None


def _refusal(resource: str, status: int, body: bytes) -> GLPIError:
    """The error for an answer of 400 or more; GLPI's reasons are arrays of a code and a message, a
    proxy's are HTML.
    """
    try:
        reason = ": ".join(json.loads(body))
    except (ValueError, TypeError):
        reason = "without a reason"
    error_class = GLPIUnauthorizedError if status == 401 else GLPIError
    return error_class(f"{resource}: HTTP {status}, {reason}")
