"""The inventory's settings for the monitor: limits of single queues, cron, and notifications."""

from pathlib import Path

import pytest

from tests.unit.core.test_settings import FIRST, fleet_of, problems

QUEUES = "celery_workers: [{name: high, queues: [high_q, low_q]}]\n"
CRON = "inventory: /etc/shop/inventory.yaml, log: /var/log/shop/monitor.log"


def test_a_queue_has_its_own_limits_and_those_of_all_queues_for_the_rest(tmp_path: Path) -> None:
    text = (
        QUEUES + "celery_thresholds: {depth: 100, drain_time: 6h, queues: {low_q: {depth: 9000,"
        " eta_overdue: 1d}}}"
    )
    thresholds = fleet_of(tmp_path, text).app.thresholds
    high, low = thresholds.of("high_q"), thresholds.of("low_q")
    assert (high.depth, high.retries, high.eta_overdue, high.drain_time) == (100, 2, 3600, 21600)
    assert (low.depth, low.retries, low.eta_overdue, low.drain_time) == (9000, 2, 86400, 21600)
    assert (thresholds.unacked_age, thresholds.beat_silence) == (3600, None)


def test_limits_of_a_queue_that_no_one_consumes_are_a_mistake(tmp_path: Path) -> None:
    text = QUEUES + "celery_thresholds:\n  queues:\n    low: {depth: 9000}"
    assert problems(tmp_path, text) == [
        f"{FIRST + 3}: celery_thresholds.queues: no worker consumes 'low'; did you mean 'low_q'?"
    ]


def test_beat_writes_too_seldom_to_be_held_to_less_than_five_minutes(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "celery_thresholds: {beat_silence: 1m}")
    assert "celery_thresholds.beat_silence" in problem
    assert "300" in problem


@pytest.mark.parametrize(("name", "host"), [("web1", "web1"), ("all", "web1"), ("crons", "cron2")])
def test_cron_runs_the_monitor_on_one_host_by_its_own_name_or_its_groups(
    tmp_path: Path, name: str, host: str
) -> None:
    base = (
        "all:\n  hosts:\n    web1:\n  children:\n    crons:\n      hosts:\n        cron2:\n       "
        " cron1:\n  vars:\n    celery_app: shop\n    celery_broker_url: redis://broker/0\n   "
        " celery_directory: /srv/shop\n    celery_python: /srv/shop/bin/python\n    celery_user:"
        " deploy\n    celery_env_file: /etc/shop.env\n"
    )
    fleet = fleet_of(tmp_path, f"celery_monitor: {{host: {name}, {CRON}}}", base=base)
    assert fleet.monitor_host == host
    assert fleet_of(tmp_path, base=base).monitor_host is None


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (
            f"{{host: web, {CRON}}}",
            "celery_monitor.host: no host or group of the application is called 'web'; did you",
        ),
        ("{host: web1}", "celery_monitor: cron needs `inventory` and `log`"),
        (f"{{host: web1, user: root, {CRON}}}", "celery_monitor: the monitor changes nothing"),
        ("{schedule: hourly}", "celery_monitor.schedule: not a cron schedule"),
        ("{timeouts: 5}", "celery_monitor.timeouts: unknown key; did you mean 'timeout'?"),
    ],
)
def test_a_mistake_in_the_monitors_settings_is_reported_with_its_line(
    tmp_path: Path, setting: str, text: str
) -> None:
    (problem,) = problems(tmp_path, f"celery_monitor: {setting}")
    assert problem.startswith(f"{FIRST}: {text}")


def test_who_is_notified_may_come_out_of_a_vault_or_a_lookup_and_is_never_shown(
    tmp_path: Path,
) -> None:
    (tmp_path / "url").write_text("mailtos://ops:hunter2@example.com\n")
    fleet = fleet_of(tmp_path, "celery_notify: [\"{{ lookup('file', inventory_dir ~ '/url') }}\"]")
    assert fleet.app.notify[0].get_secret_value() == "mailtos://ops:hunter2@example.com"
    assert "hunter2" not in repr(fleet)
    assert "hunter2" not in str(fleet.app.model_dump())
    reported = problems(tmp_path, "celery_notify: [hunter2]")
    assert reported == [
        f"{FIRST}: celery_notify.0: not an Apprise URL, e.g. mailtos://user:password@example.com"
    ]


def test_an_encrypted_url_may_name_who_is_notified(tmp_path: Path) -> None:
    """`_SECRETS` names the variables that decrypted text may go into."""
    from runbooks.inventory.build import _SECRETS

    assert set(_SECRETS) == {"celery_broker_url", "celery_result_backend", "celery_notify"}
