"""The page of a run: all of its record, small even for a large record, only text, and no secret."""

import re
from pathlib import Path

import pytest
from markupsafe import escape

from runbooks.core.model import Crossing, LogLine
from runbooks.core.outside import on_one_line
from runbooks.core.redaction import keep_secret
from runbooks.diagnosis.codes import catalogue
from runbooks.engine.journal import Journal, Where, find_run
from runbooks.pages.render import Pages
from runbooks.pages.run_facts import Around, Facts, facts
from tests.unit.pages.records import RUN, changes_of, message, record

NOW = 1_750_000_000.0
AROUND = Around(
    {"low_q": [(NOW - 600, 5000), (NOW + 60, 0)]},
    [(Crossing("queue.depth", "low_q", NOW - 600, "16,000 messages wait"), NOW + 60)],
    [LogLine(NOW + 1, "web1", "low.log", "worker: Warm shutdown (MainProcess)")],
    ("the monitor was restarted",),
)


@pytest.fixture
def known(tmp_path: Path) -> Facts:
    low = [message("shop.tasks.bill", "(1,)", str(n)) for n in range(9)] + [
        message("shop.tasks.ship")
    ]
    return facts(record(tmp_path, ["web1", "web2"], {"low_q": low, "high_q": []}), AROUND)


def pages(known: Facts) -> tuple[str, str]:
    return (
        Pages("inv", " --state-dir /s").html("run", run=known.record, facts=known).decode(),
        Pages("inv", " --state-dir /s").markdown("run", run=known.record, facts=known).decode(),
    )


def test_a_run_is_reported_with_what_was_wrong_what_was_done_and_how_to_take_it_back(
    known: Facts,
) -> None:
    assert [(one.code, one.depth, one.left) for one in known.found or ()] == [
        ("worker.not_running", 0, False),
        ("queue.no_consumer", 1, False),
        ("queue.selected", 0, True),
    ]
    assert [(one.queue, one.before, one.during, one.after) for one in known.depths] == [
        ("low_q", 20, (10,), 4),
        ("high_q", 10, (10,), 4),
    ]
    assert known.matrix["web2"]["units"].word == "failed"
    assert list(known.matrix) == ["web1", "web2", "the broker"]
    assert known.matrix["web2"]["workers"].word == "not verified"
    assert known.outcomes == {"failed": 2, "not verified": 1, "changed": 5}
    assert [(one.task, one.count, len(one.samples)) for one in known.taken] == [
        ("shop.tasks.bill", 9, 3),
        ("shop.tasks.ship", 1, 1),
    ]
    assert (known.diffs[0].summary, known.diffs[0].hosts) == (
        "set TIMEOUT in /etc/shop.env",
        ("web1", "web2"),
    )
    assert [sum(one.fates.values()) for one in known.taken] == [9, 1]
    assert set(known.taken[0].fates) == {"in the archive"}
    assert (known.charts[0].queue, known.charts[0].most) == ("low_q", 5000), "the monitor's looks"
    kinds = [event.kind for event in known.events]
    assert (kinds.count("monitor"), kinds.count("log")) == (2, 1)
    assert sorted(event.at for event in known.events) == [event.at for event in known.events]
    assert catalogue()["worker.not_running"].meaning[:40] in pages(known)[0].replace("&#39;", "'")
    for page in pages(known):
        for text in (
            "5,000 messages wait in low", "start its workers", "LLEN", "hosts answer", "not known",
            "16,000 messages wait", "Warm shutdown", f"inv undo {RUN} --state-dir /s", "shop.tasks.bill", "+TIMEOUT=30",
            "the monitor was restarted", "exit code 1: no such unit", "a second look still finds: start it",
        ):  # fmt: skip
            assert text in page.replace("\\", "").replace("&#39;", "'")


def test_the_page_needs_nothing_else_and_its_policy_allows_nothing_else(known: Facts) -> None:
    page, _ = pages(known)
    assert not re.search(r"<script|<link|<img|<iframe|src=|url\(|@import|style=|\son\w+=", page)
    assert set(re.findall(r'href="([^"]*)"', page)) >= {"#wrong", "#undo", "#main"}
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in re.findall(r'href="([^"]*)"', page)} <= set(ids)


def test_a_run_of_a_hundred_hosts_that_took_ten_thousand_messages_makes_a_small_page(
    tmp_path: Path,
) -> None:
    hosts = [f"web{n}.example.com" for n in range(100)]
    many = [message(f"shop.tasks.t{n % 400}", f"({'x' * 200},)", str(n)) for n in range(10_000)]
    known = facts(record(tmp_path, hosts, {"low_q": many}), AROUND)
    page, text = pages(known)
    assert known.taken_count == 10_000
    assert known.more_taken == 10_000 // 400 * 200
    assert "5,000 messages of other tasks not shown" in page
    assert "web99.example.com" in page
    assert len(page) < 2_000_000
    assert len(text) < 2_000_000


def test_a_secret_stands_on_no_page_however_it_came_in(tmp_path: Path) -> None:
    keep_secret("correct horse battery")
    text = "correct horse battery and redis://u:hunter22@h/0"
    known = facts(record(tmp_path, ["web1"], {"q": [message(text, text, text)]}, [text]), AROUND)
    for page in pages(known):
        assert "horse" not in page
        assert "hunter22" not in page
        assert "****" in page.replace("\\", "")


def test_a_record_that_kept_no_look_says_so_and_invents_nothing(tmp_path: Path) -> None:
    known = facts(record(tmp_path, [], {}, complete=False), Around())
    assert (known.found, known.left, known.depths, known.charts) == (None, None, [], [])
    page, text = pages(known)
    for expected in (
        "the fleet was not diagnosed",
        "recorded no look at the queues",
        "nothing to undo",
        "No message was archived",
    ):
        assert expected in page
        assert expected in text


def test_a_run_that_was_killed_has_no_end_and_its_last_change_is_not_known(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, RUN, "remediate", Where("i", "b", "shop"))
    journal.intend_all(changes_of("web1")[:2])
    journal.close()
    known = facts(find_run(tmp_path, RUN), Around())
    page, text = pages(known)
    assert known.outcomes == {"not known": 2}
    assert "its end is not recorded" in page
    assert "its end is not recorded" in text
    assert "unfinished" in page


HOSTILE = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "</style><b>", "</pre></details>", "{{ 7 * 7 }}",
    "javascript:alert(1)", "\x1b[2J\x07", "a\u202eb\u2066", "--><!--", "| a | b |", "```\n# forged\n```", "[x](http://e)",
    "![x](http://e/x.png)", "&lt;b&gt;", "' onload='x", "${7*7}", "<svg/onload=x>", "\ud800", "# forged", "- forged",
)  # fmt: skip


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The elements of a page on which nothing is hostile."""
    found = record(tmp_path_factory.mktemp("plain"), ["web1"], {"low_q": [message("t")]}, ["t"])
    return set(re.findall(r"<([a-z]\w*)", pages(facts(found, AROUND))[0]))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_only_text_in_html_and_in_markdown(
    text: str, harmless: set[str], tmp_path: Path
) -> None:
    known = facts(
        record(tmp_path, ["web1"], {"low_q": [message(text, text, text)]}, [text]),
        Around({text: [(NOW - 9, 1), (NOW, 2)]}, [], [LogLine(NOW, text, text, text)], (text,)),
    )
    page, markdown = pages(known)
    assert set(re.findall(r"<([a-z]\w*)", page)) == harmless
    assert page.count(escape(on_one_line(text.split("\n")[0]))) > 10
    for line in _outside_of_fences(markdown):
        assert not re.search(r"(?<!\\)!?\[[^\]]*\]\(|<[a-zA-Z/!]", line), line
        assert line != "# forged"
    assert "\x1b" not in page + markdown


def _outside_of_fences(markdown: str) -> list[str]:
    lines, fence = [], ""
    for line in markdown.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif found := re.match(r"`{3,}", line):
            fence = found[0]
        else:
            lines.append(line)
    assert not fence
    return lines
