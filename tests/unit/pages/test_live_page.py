"""The live page: what the last look showed, served unchanged, only to those who may read it."""

import http.client
import re
from http import HTTPStatus

import pytest
from prometheus_client import CollectorRegistry

from runbooks.core.reporter import About
from runbooks.monitoring.scrapes import serve
from runbooks.pages.fleet_facts import fleet_facts
from runbooks.pages.render import Pages
from runbooks.pages.site import Site
from tests.unit.fleets import make_fleet, make_snapshot
from tests.unit.monitoring.conftest import make_look
from tests.unit.pages.looks import ABOUT, facts


@pytest.fixture(scope="module")
def site() -> Site:
    return Site(Pages(), every_s=60.0, patience_s=120.0)


@pytest.fixture(scope="module")
def port(site: Site) -> int:
    return serve(CollectorRegistry(), "127.0.0.1", 0, site)


@pytest.fixture
def shown(site: Site) -> Site:
    site.show(facts(), ABOUT)
    return site


def get(port: int, path: str, host: str = "") -> tuple[int, dict[str, str], str]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        client.request("GET", path, headers={"Host": host} if host else {})
        answer = client.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode()
    finally:
        client.close()


def test_before_the_first_look_the_page_says_so_and_comes_again_soon() -> None:
    page = Site(Pages(), 60.0, 120.0).answer("/")
    assert page
    assert "The first look is running" in page.body.decode()
    assert page.headers["Refresh"] == "2"


def test_the_page_has_what_the_look_has(shown: Site, port: int) -> None:
    status, headers, page = get(port, "/")
    assert status == 200
    for text in (
        "700 messages wait", "since 2025-06-15T14:06:40Z", "low_q", "in 2 h 46 min", "not at this rate", "low@web1",
        "does not answer", "2 expected tasks", "shop.tasks.bill", "beat on web1", "leads to a worker", "disabled",
        "no worker has shop.tasks.bill", "No route to host", "More messages wait than the inventory allows",
        "worker.not_answering high@web1", "1 of 2 hosts", "it lacks 3 tasks", "An earlier look saw this.",
    ):  # fmt: skip
        assert text in page, text
    assert page.count('<svg class="spark"') == 2
    assert headers["Refresh"] == "60"
    assert headers["Cache-Control"] == "no-store"
    assert "<script" not in page


def test_the_policy_allows_the_style_sheet_of_the_page_and_nothing_else(
    shown: Site, port: int
) -> None:
    _, headers, page = get(port, "/")
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert re.search(
        "<meta http-equiv=.Content-Security-Policy. content=.default-src &#39;none&#39;", page
    )
    assert "style=" not in page


def test_nothing_can_be_sent_to_the_page(shown: Site, port: int) -> None:
    for method in ("POST", "PUT", "DELETE"):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request(method, "/", b"x")
        assert client.getresponse().status == HTTPStatus.NOT_IMPLEMENTED
        client.close()


def test_a_look_can_be_stayed_with(shown: Site, port: int) -> None:
    _, headers, page = get(port, "/still")
    assert "Refresh" not in headers
    assert "This page does not change" in page


def test_a_name_of_someone_elses_that_leads_here_reads_nothing(shown: Site, port: int) -> None:
    for host in ("localhost", f"127.0.0.1:{port}", f"localhost:{port}", "127.0.0.2"):
        assert get(port, "/", host)[0] == 200, host
    for host in (
        "evil.example.com",
        f"evil.example.com:{port}",
        "127.0.0.1.evil.example.com",
        "10.0.0.1",
    ):
        status, _, page = get(port, "/", host)
        assert (status, "high_q" in page) == (HTTPStatus.MISDIRECTED_REQUEST, False), host


def test_health_is_lost_when_no_look_is_made_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("runbooks.pages.site.time.monotonic", lambda: now)
    site = Site(Pages(), every_s=60.0, patience_s=120.0)
    seen = []
    for later_s, shows in ((100, False), (0, True), (500, False), (100, False)):
        now += later_s
        if shows:
            site.show(facts(), ABOUT)
        answer = site.answer("/healthz")
        assert answer
        seen.append((answer.status, answer.body))
    assert seen == [
        (HTTPStatus.OK, b"ok: no look has ended for 1 min 40 s\n"),
        (HTTPStatus.OK, b"ok: 0 s since the last look\n"),
        (HTTPStatus.OK, b"ok: 8 min 20 s since the last look\n"),
        (HTTPStatus.SERVICE_UNAVAILABLE, b"late: 10 min since the last look\n"),
    ]


def test_of_a_broker_that_was_not_reached_nothing_is_said_that_it_would_have_to_report() -> None:
    fleet = make_fleet()
    look = make_look(reached=False, queues=(), missing_tasks={}, beat_silence_s={})
    known = fleet_facts(fleet, make_snapshot(fleet), look, {}, ())
    page = (
        Pages().html("live", facts=known, about=About("shop"), every_s=60.0, stays=False).decode()
    )
    assert "broker not reached" in page
    assert page.count("<b>not known</b>") == 3
    assert "Not known: the broker was not reached" in page
    assert "nothing is crossed" not in page
