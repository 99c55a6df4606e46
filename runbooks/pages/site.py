"""The live page: the last look at `/`, and at `/healthz` whether looks go on."""

import time
from http import HTTPStatus

from runbooks.core.reporter import About
from runbooks.core.wording import span
from runbooks.monitoring.scrapes import Answer
from runbooks.pages.fleet_facts import FleetFacts
from runbooks.pages.render import Pages

_LATE = 3
"""The number of looks that may be missed before the page counts as unhealthy."""

_FIRST_S = 2.0
_REFRESH_LEAST_S = 5.0


class Site:
    """Answers browsers. A page is rendered once for each look, not for each request."""

    def __init__(self, pages: Pages, every_s: float, patience_s: float) -> None:
        """A look begins every `every_s` seconds, and may take `patience_s`."""
        self._pages = pages
        self._every_s = every_s
        self._late_s = _LATE * (every_s + patience_s)
        self._looked_at = time.monotonic()
        self._has_looked = False
        self._headers = {
            "Content-Security-Policy": f"{pages.csp}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        self._rendered = self._both(None, About())

    def show(self, facts: FleetFacts, about: About) -> None:
        """Render the pages of a look."""
        self._rendered = self._both(facts, about)
        self._looked_at = time.monotonic()
        self._has_looked = True

    def answer(self, path: str) -> Answer | None:
        """Return the answer for a path, None for an unknown one."""
        if path == "/healthz":
            return self._health()
        return self._rendered.get(path)

    def _both(self, facts: FleetFacts | None, about: About) -> dict[str, Answer]:
        return {path: self._page(path, facts, about) for path in ("/", "/still")}

    def _page(self, path: str, facts: FleetFacts | None, about: About) -> Answer:
        refresh_s = _FIRST_S
        if facts is not None:
            refresh_s = max(_REFRESH_LEAST_S, self._every_s)
        stays = path == "/still"
        body = self._pages.html(
            "live", facts=facts, about=about, every_s=self._every_s, stays=stays
        )
        refresh = {} if stays else {"Refresh": f"{refresh_s:.0f}"}
        return Answer(HTTPStatus.OK, "text/html; charset=utf-8", body, self._headers | refresh)

    def _health(self) -> Answer:
        silent_s = time.monotonic() - self._looked_at
        text = f"no look has ended for {span(silent_s)}"
        if self._has_looked:
            text = f"{span(silent_s)} since the last look"
        status = HTTPStatus.OK
        word = "ok"
        if silent_s > self._late_s:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            word = "late"
        body = f"{word}: {text}\n".encode()
        return Answer(status, "text/plain; charset=utf-8", body, self._headers)
