"""What GLPI answers to a request, apart from how it travels: the sessions, the checks and the
search.
"""

import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.glpi.cards import card_ids

DEFAULT_RANGE = "0-49"
SERIAL_FIELD = "5"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer: its status, its JSON body and the headers beyond the usual ones."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """A request GLPI turns down: its status and the `[code, message]` array it sends as body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.answer = Answer(status, [code, message])


class Api:
    """The API behind `/apirest.php`: one instance holds the tokens it accepts and the sessions it
    has opened.
    """

    def __init__(self, app_token: str, user_token: str) -> None:
        self._app_token = app_token
        self._authorization = f"user_token {user_token}"
        self._sessions: set[str] = set()

    def answer(self, resource: str, headers: Mapping[str, str], query: Mapping[str, str]) -> Answer:
        """The answer to `GET /apirest.php/{resource}`; raises `RefusedError`."""
        self._check_app_token(headers.get("App-Token", ""))
        if resource == "initSession":
            return self._open_session(headers.get("Authorization", ""))
        session = self._session(headers.get("Session-Token", ""))
        if resource == "killSession":
            self._sessions.discard(session)
            return Answer(200, True)
        if resource == "search/Printer":
            return _search(query)
        raise RefusedError(
            400,
            "ERROR_RESOURCE_NOT_FOUND_NOR_COMMONDBTM",
            "resource not found or not an instance of CommonDBTM",
        )

    def _check_app_token(self, app_token: str) -> None:
        if not app_token:
            raise RefusedError(
                400, "ERROR_APP_TOKEN_PARAMETERS_MISSING", "missing parameter app_token"
            )
        if not _same(app_token, self._app_token):
            raise RefusedError(
                400, "ERROR_WRONG_APP_TOKEN_PARAMETER", "parameter app_token seems wrong"
            )

    def _open_session(self, authorization: str) -> Answer:
        if not authorization.startswith("user_token "):
            raise RefusedError(
                400, "ERROR_LOGIN_PARAMETERS_MISSING", "parameter user_token is missing"
            )
        if not _same(authorization, self._authorization):
            raise RefusedError(
                401, "ERROR_GLPI_LOGIN_USER_TOKEN", "parameter user_token seems invalid"
            )
        session = secrets.token_hex(20)
        self._sessions.add(session)
        return Answer(200, {"session_token": session})

    def _session(self, session: str) -> str:
        if not session:
            raise RefusedError(
                400, "ERROR_SESSION_TOKEN_MISSING", "parameter session_token is missing or empty"
            )
        if session not in self._sessions:
            raise RefusedError(401, "ERROR_SESSION_TOKEN_INVALID", "session_token seems invalid")
        return session


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _search(query: Mapping[str, str]) -> Answer:
    serial = _wanted_serial(query)
    start, end = _wanted_range(query.get("range", DEFAULT_RANGE))
    ids = card_ids(serial)
    if start > len(ids):
        raise RefusedError(
            400,
            "ERROR_RANGE_EXCEED_TOTAL",
            f"Provided range exceed total count of data: {len(ids)}",
        )
    page = ids[start : end + 1]
    content_range = f"{start}-{min(end, len(ids) - 1)}/{len(ids)}"
    body: dict[str, Any] = {
        "totalcount": len(ids),
        "count": len(page),
        "content-range": content_range,
    }
    if page:  # GLPI leaves the key out where nothing was found
        body["data"] = [{"2": card_id, SERIAL_FIELD: serial} for card_id in page]
    headers = {"Content-Range": content_range, "Accept-Range": "Printer 1000"}
    return Answer(200 if len(page) == len(ids) else 206, body, headers)


def _wanted_serial(query: Mapping[str, str]) -> str:
    """The serial of the one criterion this inventory can search by; `^` and `$` mark an exact match
    in GLPI.
    """
    if "criteria[0][searchtype]" not in query or "criteria[0][value]" not in query:
        raise RefusedError(400, "ERROR", "Malformed search criteria")
    if query.get("criteria[0][field]") != SERIAL_FIELD:
        raise RefusedError(400, "ERROR", "Bad field ID in search criteria")
    return query["criteria[0][value]"].removeprefix("^").removesuffix("$")


def _wanted_range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise RefusedError(400, "ERROR", "range must be in format : [start-end] with integers")
    return int(match[1]), int(match[2])
