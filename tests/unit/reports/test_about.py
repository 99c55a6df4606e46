"""The first line of an output names its subject, once, before any kind of output."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runbooks.core.errors import UsageError
from runbooks.core.model import LogLine, OtherRun
from runbooks.core.reporter import About, Reporter, Seen
from runbooks.reports.about import about_line
from runbooks.reports.console import ConsoleReporter
from runbooks.reports.json_document import JsonLinesReporter, JsonReporter
from tests.unit.monitoring.conftest import make_look

FLEET = About("shop", "/srv/fleets/inventory.yaml", "redis1:6379/0")
LINE = LogLine(1.5, "web1", "high", "ready")


@pytest.mark.parametrize(
    ("about", "line"),
    [
        (FLEET, "shop at redis1:6379/0, /srv/fleets/inventory.yaml"),
        (About("shop", "/srv/inventory.yaml"), "shop, /srv/inventory.yaml"),
        (
            About("shop", f"{Path.cwd()}/web.yaml --inventory /etc/more"),
            "shop, web.yaml, /etc/more",
        ),
        (
            About("shop", "/i", "r:1/0", hosts=Seen(1, 2), workers=Seen(0, 4), queues=Seen(1, 1)),
            "shop at r:1/0, /i: checked 1 of 2 hosts, 0 of 4 workers, 1 queue",
        ),
        (About("shop", "/i", "r:1/0", queues=Seen(0, 0)), "shop at r:1/0, /i: checked 0 queues"),
        (
            About("shop", "/i", "r:1/0", queues=Seen(1, 1), loaded_at=1_750_000_000.0),
            "shop at r:1/0, /i: checked 1 queue; application as loaded at 2025-06-15T15:06:40Z",
        ),
        (About(records="/var/lib/runs"), "records in /var/lib/runs"),
        (
            About(
                "shop",
                "/i",
                other_run=OtherRun(
                    "ann on ops1 (pid 7)", "20250615-1", "remediate", 1_750_000_000.0
                ),
            ),
            (
                "shop, /i; run 20250615-1 is in progress: remediate by ann on ops1 (pid 7), since"
                " 2025-06-15T15:06:40Z"
            ),
        ),
        (
            About("shop", "/i", other_run=OtherRun("an unknown program")),
            "shop, /i; an unknown program holds the fleet's lock",
        ),
    ],
)
def test_the_line_has_what_applies(about: About, line: str) -> None:
    assert about_line(about) == line


@pytest.mark.parametrize(
    "tell",
    [
        lambda reporter: reporter.findings(()),
        lambda reporter: reporter.plan((), dry_run=True),
        lambda reporter: reporter.log([LINE]),
        lambda reporter: reporter.table("runs", []),
        lambda reporter: reporter.message("note"),
        lambda reporter: reporter.error(UsageError("it is wrong")),
        lambda reporter: reporter.warning("it may be", "see"),
    ],
)
def test_what_was_reported_first_is_below_it(
    tell: Callable[[Reporter], object], capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = ConsoleReporter()
    reporter.about(About("shop", "/i"))
    reporter.about(FLEET)
    assert capsys.readouterr().out == "", "the subject may still grow before the first output"
    tell(reporter)
    tell(reporter)
    reporter.about(About("shop", "/i"))
    reporter.message("the end")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == about_line(FLEET)
    assert not any(line.startswith("shop") for line in lines[1:])


def test_an_error_before_anything_was_looked_at_is_about_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = ConsoleReporter()
    reporter.about(About("shop", "/i"))
    reporter.error(UsageError("it is wrong"))
    reporter.close(5)
    assert capsys.readouterr() == ("", "it is wrong\n")


def test_a_look_of_the_monitor_says_each_time_what_it_was_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = ConsoleReporter()
    for about in (FLEET, About("shop", "/i")):
        reporter.about(about)
        reporter.look(make_look())
    shown = [line.partition(" shop ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == "LOOK broker=redis1:6379/0 inventory=/srv/fleets/inventory.yaml"
    assert shown[4] == "LOOK inventory=/i"


def test_json_has_it_as_a_field_and_followed_lines_as_the_first_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document, lines = JsonReporter(), JsonLinesReporter()
    for reporter in (document, lines):
        reporter.about(FLEET)
        reporter.log([LINE])
        reporter.close(0)
    whole, _, rest = capsys.readouterr().out.partition("}\n{")
    about = json.loads(whole + "}")["about"]
    assert about == {
        "application": "shop", "inventory": "/srv/fleets/inventory.yaml", "broker": "redis1:6379/0",
        "records": None, "other_run": None, "loaded_at": None, "hosts": None, "workers": None, "queues": None,
    }  # fmt: skip
    first, line, last = (json.loads(one) for one in ("{" + rest).splitlines())
    assert first["about"] == about
    assert (line["line"], last["exit_code"]) == ("ready", 0)
    assert first["application"] == last["application"] == "shop"


def test_json_has_how_many_of_how_many_were_checked_and_the_other_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    by = "ann on ops1 (pid 7)"
    restarts = frozenset({("web1", "high")})
    for other, shown in (
        (
            OtherRun(by, "20250615-1", "remediate", 1.5, restarts),
            {"by": by, "id": "20250615-1", "verb": "remediate", "since_at": 1.5, "restarts": [["web1", "high"]]},
        ),
        (
            OtherRun("an unknown program"),
            {"by": "an unknown program", "id": "", "verb": "", "since_at": None, "restarts": None},
        ),
    ):  # fmt: skip
        reporter = JsonReporter()
        reporter.about(About("shop", "/i", hosts=Seen(1, 2), other_run=other))
        reporter.close(0)
        about = json.loads(capsys.readouterr().out)["about"]
        assert about["hosts"] == {"looked_at": 1, "of": 2}
        assert about["other_run"] == shown
