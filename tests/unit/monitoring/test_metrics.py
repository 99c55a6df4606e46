"""The metrics, the alerts and the dashboard are made of one list; the real promtool reads them."""

import json
import os
import re
import threading
from pathlib import Path

import pytest
import yaml

from runbooks.core.errors import UsageError
from runbooks.core.model import PastRun
from runbooks.core.settings import Limits, Thresholds
from runbooks.diagnosis.codes import catalogue
from runbooks.monitoring.alerts import alert_rules
from runbooks.monitoring.dashboard import dashboard
from runbooks.monitoring.metrics import METRICS, Exposition, write_textfile
from tests.unit.fleets import make_fleet
from tests.unit.monitoring.conftest import NOW, Promtool, make_crossing, make_look, make_queue_look

CHECKOUT = Path(__file__).parents[3]
ALERTS = CHECKOUT / "templates/prometheus/alerts.yml"
FLEET = make_fleet(thresholds=Thresholds(beat_silence=600, queues={"high_q": Limits(depth=500)}))


@pytest.fixture
def exposition() -> Exposition:
    exposition = Exposition(FLEET)
    exposition.look = make_look(
        make_queue_look(depth=700, per_s=0.5, max_retries=3, eta_overdue_s=4000.0),
        unacked=2, unacked_age_s=9.0, silent_nodes=("low@web1",), crossings=(make_crossing(),),
        runs=(PastRun("20250615-150640-0000", "undo", "u@m", NOW - 60),),
    )  # fmt: skip
    return exposition


def written(exposition: Exposition, folder: Path) -> dict[str, float]:
    write_textfile(folder / "celery.prom", exposition)
    lines = (folder / "celery.prom").read_text().splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if not line.startswith("#")
    }


def test_the_textfile_has_what_was_seen_and_the_limits_of_the_inventory(
    exposition: Exposition, tmp_path: Path, promtool: Promtool
) -> None:
    found = written(exposition, tmp_path)
    queue = '{app="shop",queue="high_q"}'
    assert found[f"celery_queue_depth{queue}"] == 700
    assert found[f"celery_queue_depth_limit{queue}"] == 500
    assert found[f"celery_queue_retries_limit{queue}"] == 2
    assert found[f"celery_queue_drain_seconds{queue}"] == float("inf")
    assert found['celery_node_up{app="shop",node="high@web1"}'] == 1
    assert found['celery_node_up{app="shop",node="low@web1"}'] == 0
    assert found['celery_beat_last_send_timestamp_seconds{app="shop",host="web1"}'] == NOW - 30
    assert found[f"celery_queue_change_per_second{queue}"] == 0.5
    run = 'app="shop",by="u@m",run="20250615-150640-0000",verb="undo"'
    assert found[f"celery_run_started_timestamp_seconds{{{run}}}"] == NOW - 60
    assert found['celery_crossed{app="shop",code="queue.depth",subject="high_q"}'] == 1
    assert {re.sub(r"\{.*", "", name) for name in found} == {gauge.name for gauge in METRICS}
    checked = promtool("check", "metrics", stdin=(tmp_path / "celery.prom").read_text())
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_without_the_broker_nothing_is_said_of_what_it_knows(
    exposition: Exposition, tmp_path: Path
) -> None:
    exposition.look = make_look(
        reached=False, queues=(), missing_tasks={}, beat_silence_s={}, crossings=()
    )
    names = {re.sub(r"\{.*", "", name) for name in written(exposition, tmp_path)}
    assert "celery_broker_up" in names
    assert not names & {"celery_queue_depth", "celery_unacked", "celery_node_up"}


def test_node_exporter_may_read_the_textfile_whatever_the_umask_of_cron(
    exposition: Exposition, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        written(exposition, tmp_path)
        assert os.umask(0o077) == 0o077, "it is as it was"
    finally:
        os.umask(before)
    assert (tmp_path / "celery.prom").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["celery.prom"], (
        "nothing half-written is left beside it"
    )


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bcelery_\w+", expression))


def test_every_expression_of_the_dashboard_and_of_the_alerts_uses_a_metric_that_exists() -> None:
    document = json.loads(json.dumps(dashboard()))
    shown = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    (mark,) = document["annotations"]["list"]
    assert "celery_run_started_timestamp_seconds" in mark["expr"]
    shown.append(mark["expr"])
    assert metrics_in(" ".join(shown)) == {gauge.name for gauge in METRICS}, (
        "and every metric is shown"
    )
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    assert [
        panel["title"] for panel in document["panels"] if panel["type"] == "state-timeline"
    ] == ["Findings"]
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    watched = set().union(*(metrics_in(rule["expr"]) for rule in group["rules"]))
    assert watched <= {gauge.name for gauge in METRICS}


def test_the_labels_that_alerts_speak_of_are_those_of_their_metrics() -> None:
    labels = {gauge.name: {"app", *gauge.labels} for gauge in METRICS}
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]:
        spoken = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert any(spoken <= labels[name] for name in metrics_in(rule["expr"])), rule["alert"]


def test_every_rule_leads_to_a_page_that_is_there() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    urls = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in group["rules"]}
    assert urls.pop("CeleryFinding") == "docs/findings.md#{{ reReplaceAll `[.]` `` $labels.code }}"
    for url in urls.values():
        page, _, anchor = url.partition("#")
        headings = re.findall(r"^#+ (.*)$", (CHECKOUT / page).read_text(), re.M)
        assert anchor in {
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
        }, url
    assert {re.sub("[.]", "", code) for code in catalogue()} == {
        re.sub(r"[^\w -]", "", code) for code in catalogue()
    }, "so the finding's own rule leads to its heading"


def test_a_rule_leads_to_where_the_docs_can_be_read(promtool: Promtool, tmp_path: Path) -> None:
    rules = "\n".join(alert_rules(ALERTS.parents[1], "https://wiki.example.com/docs/"))
    assert rules.count('runbook_url: "https://wiki.example.com/docs/') == rules.count(
        "runbook_url: "
    )
    (tmp_path / "rules.yml").write_text(rules)
    checked = promtool("check", "rules", tmp_path / "rules.yml")
    assert (checked.returncode, checked.stderr) == (0, "")
    with pytest.raises(UsageError, match="expects a URL"):
        alert_rules(ALERTS.parents[1], 'x" evil: "')


def test_promtool_finds_nothing_wrong_with_the_alerts(promtool: Promtool) -> None:
    checked = promtool("check", "rules", ALERTS)
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stderr


def test_the_alerts_fire_above_the_limits_and_not_at_them(promtool: Promtool) -> None:
    """Prometheus' own unit tests of the rules: `alerts_test.yml` beside this file."""
    checked = promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_link_that_lies_in_wait_beside_the_textfile_is_not_followed(
    exposition: Exposition, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "celery.prom"
    for name in (path.name, f"{path.name}.{os.getpid()}.{threading.get_ident()}"):
        (tmp_path / name).symlink_to(victim)
    write_textfile(path, exposition)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o644
