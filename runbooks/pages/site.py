"""The live page: what the last look showed, at `/`, and whether looks are still made, at
`/healthz`. It only reads.
"""

import time
from http import HTTPStatus

from runbooks.core.reporter import About
from runbooks.core.wording import span
from runbooks.monitoring.scrapes import Answer
from runbooks.pages.fleet_facts import FleetFacts
from runbooks.pages.render import Pages

_LATE = 3
"""So many looks may be missed before it counts as unhealthy."""

_FIRST_S = 2.0
_REFRESH_LEAST_S = 5.0


class Site:
    """What a browser gets. A page is made once for each look, not for each request."""

    def __init__(self, pages: Pages, every_s: float, patience_s: float) -> None:
        """Looks come every `every_s`; one of them may take `patience_s`."""
        self._pages, self._every_s = pages, every_s
        self._late_s = _LATE * (every_s + patience_s)
        self._looked_at, self._has_looked = time.monotonic(), False
        self._headers = {
            "Content-Security-Policy": f"{pages.csp}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        self._made = {path: self._page(path, None, About()) for path in ("/", "/still")}

    def show(self, facts: FleetFacts, about: About) -> None:
        """Make the pages of a look."""
        self._made = {path: self._page(path, facts, about) for path in ("/", "/still")}
        self._looked_at, self._has_looked = time.monotonic(), True

    def answer(self, path: str) -> Answer | None:
        """What stands at a path, None where nothing does."""
        if path == "/healthz":
            return self._health()
        return self._made.get(path)

    def _page(self, path: str, facts: FleetFacts | None, about: About) -> Answer:
        refresh_s = _FIRST_S if facts is None else max(_REFRESH_LEAST_S, self._every_s)
        stays = path == "/still"
        body = self._pages.html(
            "live", facts=facts, about=about, every_s=self._every_s, stays=stays
        )
        refresh = {} if stays else {"Refresh": f"{refresh_s:.0f}"}
        return Answer(HTTPStatus.OK, "text/html; charset=utf-8", body, self._headers | refresh)

    def _health(self) -> Answer:
        silent_s = time.monotonic() - self._looked_at
        late = silent_s > self._late_s
        said = (
            f"{span(silent_s)} since the last look"
            if self._has_looked
            else f"no look has ended yet, for {span(silent_s)}"
        )
        status = HTTPStatus.SERVICE_UNAVAILABLE if late else HTTPStatus.OK
        return Answer(
            status,
            "text/plain; charset=utf-8",
            f"{'late' if late else 'ok'}: {said}\n".encode(),
            self._headers,
        )
