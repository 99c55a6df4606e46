"""The pages in a real browser: readable at every width, in light and dark, on paper and by
keyboard.

One Chromium, of Debian's package, opens each page once; what is asked of it is asked in one script.
"""

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys

from lab import packages
from runbooks.core.model import Crossing, LogLine
from runbooks.core.outside import on_one_line
from runbooks.monitoring.scrapes import serve
from runbooks.pages.found import finding_rows
from runbooks.pages.render import Pages
from runbooks.pages.run_facts import Around
from runbooks.pages.run_facts import facts as run_facts
from runbooks.pages.site import Site
from tests.unit.monitoring.conftest import NOW
from tests.unit.pages import looks
from tests.unit.pages.records import NO_CONSUMER, NOT_RUNNING, NOTED, message, record

PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver"}
WIDTHS = (360, 820, 1440)

SHAPES = (
    "<script>document.title='forged'</script>{}", '"><img src=x onerror="document.title=\'forged\'">{}',
    "</style></pre></details><h1>forged {}</h1>", "' onmouseover='document.title=1' {}", "{{{{ 7 * 7 }}}} {}",
    "</title><meta http-equiv=refresh content='0;url=http://127.0.0.1:1/'>{}", "<svg/onload=document.title=1>{}",
    "&lt;b&gt; &amp; {}", "javascript:document.title=1//{}", "\u202eevil\u2066 {}",
)  # fmt: skip
HOSTILE = [shape.format(n) for shape in SHAPES for n in range(10)]
"""A hundred texts that anything outside may be called, or say."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    """Debian's Chromium without a window; without it the test is skipped here, and in CI, as root,
    it is installed.
    """
    if lacking := packages.lacking(PROGRAMS):
        if not (os.environ.get("CI") and os.geteuid() == 0):
            pytest.skip(f"needs Debian's {' and '.join(lacking)}")
        packages.install(lacking)
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each page by its name, all of them with the hostile texts in every place that has one."""
    folder = tmp_path_factory.mktemp("pages")
    messages = [message(text, text, text) for text in HOSTILE]
    around = Around(
        {HOSTILE[0]: [(NOW - 900, 7), (NOW, 5)], "low_q": [(NOW - 900, 5000), (NOW, 0)]},
        [(Crossing("queue.depth", text, NOW - 60, text), NOW) for text in HOSTILE],
        [LogLine(NOW + n, text, text, text) for n, text in enumerate(HOSTILE)],
        (HOSTILE[0],),
    )
    made = record(
        folder,
        ["web1", "web2", *HOSTILE[:20]],
        {"low_q": messages, HOSTILE[10]: messages[:3]},
        HOSTILE,
    )
    pages, look = Pages(), looks.facts(HOSTILE)
    site = Site(pages, every_s=600.0, patience_s=120.0)
    site.show(look, looks.ABOUT)
    found = finding_rows([NOT_RUNNING, NO_CONSUMER, NOTED])
    written = {
        "run": pages.html("run", run=made, facts=run_facts(made, around)),
        "diagnosis": pages.html(
            "diagnosis",
            facts=look,
            about=looks.ABOUT,
            found=found,
            summary="3 findings",
            faults=True,
            fixable=True,
        ),
    }
    for name, page in written.items():
        (folder / f"{name}.html").write_bytes(page)
    port = serve(CollectorRegistry(), "127.0.0.1", 0, site)
    return {name: (folder / f"{name}.html").as_uri() for name in written} | {
        "live": f"http://127.0.0.1:{port}/"
    }


NAMES = ("run", "diagnosis", "live")


def show(browser: Chrome, width: int, scheme: str = "light", media: str = "") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [feature]})


def said(browser: Chrome) -> list[dict[str, Any]]:
    """What stands in the console since it was asked for last."""
    lines: list[dict[str, Any]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return lines


MEASURED = """
const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * x + .7152 * y + .0722 * z;
};
const behind = node => {
  for (; node; node = node.parentElement) {
    const found = parse(getComputedStyle(node).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found;
  }
  return [255, 255, 255];
};
document.querySelectorAll('details').forEach(one => one.open = true);
const weak = [], sizes = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const parent = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !parent.getClientRects().length) continue;
  const style = getComputedStyle(parent), one = light(parse(style.color)), other = light(behind(parent));
  const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
  sizes.add(parseFloat(style.fontSize));
  if (ratio < 4.5) weak.push([walker.currentNode.data.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
}
const wide = [...document.querySelectorAll('body *')].filter(one =>
  !one.closest('.scroll, pre, svg, .skip') && one.getBoundingClientRect().right > innerWidth + 1);
return {
  weak: weak.slice(0, 5), smallest: Math.min(...sizes), scrolls: document.documentElement.scrollWidth - innerWidth,
  wide: wide.slice(0, 3).map(one => one.outerHTML.slice(0, 80)), width: innerWidth,
};
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_every_width_and_can_be_read_in_light_and_dark(
    browser: Chrome, urls: dict[str, str], name: str
) -> None:
    browser.get(urls[name])
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            show(browser, width, scheme)
            seen: dict[str, Any] = browser.execute_script(MEASURED)
            assert seen.pop("smallest") >= 12
            assert seen == {"weak": [], "scrolls": 0, "wide": [], "width": width}, (width, scheme)


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_hostile_texts_are_text_and_the_console_stays_silent(
    browser: Chrome, urls: dict[str, str], name: str
) -> None:
    said(browser)
    show(browser, WIDTHS[-1])
    browser.get(urls[name])
    text: str = browser.execute_script("return document.body.textContent")
    for hostile in HOSTILE:
        assert on_one_line(hostile) in text, hostile
    assert "forged" not in browser.title
    foreign = (
        "script, img, iframe, object, embed, form, input, meta[http-equiv=refresh], h1 ~ h1,"
        " [onload], [onerror]"
    )
    assert (
        browser.execute_script("return document.querySelectorAll(arguments[0]).length", foreign)
        == 0
    )
    assert browser.current_url == urls[name]
    assert said(browser) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_keyboard_reaches_all_that_can_be_used_and_shows_where_it_is(
    browser: Chrome, urls: dict[str, str], name: str
) -> None:
    show(browser, WIDTHS[-1])
    browser.get(urls[name])
    wanted: int = browser.execute_script(
        "return document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length -"
        " document.querySelectorAll('details:not([open]) > :not(summary) :is(a, summary,"
        " [tabindex]),details:not([open]) > :not(summary)[tabindex]').length"
    )
    reached: int = browser.execute_script("window.reached = new Set(); window.bare = []; return 0")
    for _ in range(min(wanted, 60)):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached = browser.execute_script(
            "const at = document.activeElement, style = getComputedStyle(at); reached.add(at);if"
            " (style.outlineStyle === 'none' || parseFloat(style.outlineWidth) < 2)"
            " bare.push(at.outerHTML);return reached.size"
        )
    assert reached == min(wanted, 60)
    assert browser.execute_script("return bare") == []
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].every(one => one.tabIndex === 0 &&"
        " one.ariaLabel)"
    )


@pytest.mark.parametrize("name", NAMES)
def test_on_paper_nothing_is_folded_or_cut_off(
    browser: Chrome, urls: dict[str, str], name: str
) -> None:
    browser.get(urls[name])
    show(browser, 720, media="print")
    cut = browser.execute_script(
        "return [...document.querySelectorAll('.scroll, pre')].filter(one =>"
        " one.getClientRects().length && one.scrollWidth > one.clientWidth + 1).map(one =>"
        " one.ariaLabel || one.textContent.slice(0, 60))"
    )
    assert cut == []
    folded = browser.execute_script(
        "return [...document.querySelectorAll('details > :not(summary)')]"
        ".filter(one => !one.checkVisibility({contentVisibilityAuto: true})).length"
    )
    assert folded == 0
    kept_whole = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(one =>"
        " getComputedStyle(one).breakInside === 'avoid' && one.getBoundingClientRect().height >"
        " 380).map(one => one.outerHTML.slice(0, 80))"
    )
    assert kept_whole == [], "more than a third of a sheet may stay empty before it"
    show(browser, 720)
    paper = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
    assert base64.b64decode(paper["data"]).startswith(b"%PDF-")


def test_a_page_of_very_much_opens_at_once(browser: Chrome, tmp_path: Path) -> None:
    hosts = [f"web{n}.example.com" for n in range(100)]
    many = [message(f"shop.tasks.t{n % 400}", f"({'x' * 200},)", str(n)) for n in range(10_000)]
    made = record(tmp_path, hosts, {"low_q": many})
    (tmp_path / "run.html").write_bytes(
        Pages().html("run", run=made, facts=run_facts(made, Around()))
    )
    assert (tmp_path / "run.html").stat().st_size < 2_000_000
    show(browser, WIDTHS[0])
    browser.get((tmp_path / "run.html").as_uri())
    assert re.search(r"5,000 messages of other tasks", browser.page_source)
    opened_ms = browser.execute_script(
        "const one = performance.getEntriesByType('navigation')[0]; return one.loadEventEnd -"
        " one.startTime"
    )
    assert opened_ms < 5_000
