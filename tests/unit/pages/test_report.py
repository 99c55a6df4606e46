"""`inv report` on the record of a run, as an operator types it."""

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from lab.redis_server import free_port
from runbooks.inventory.build import build_fleet
from runbooks.inventory.read import load_inventory
from runbooks.monitoring.history import History, history_path
from tests.unit.pages.records import RUN, message, record

CHECKOUT = Path(__file__).parents[3]
INVENTORY = """\
all:
  hosts:
    web1:
      ansible_host: 127.0.0.1
      ansible_port: {port}
      runbooks_state_directory: "{{{{ inventory_dir }}}}/state"
      celery_app: shop
      celery_broker_url: redis://127.0.0.1:6379/3
      celery_directory: /srv/shop
      celery_python: /srv/shop/bin/python
      celery_user: shop
      celery_env_file: /etc/shop.env
      celery_service_manager: systemd
      celery_workers: [{{name: low, queues: [low_q]}}]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A run on record, and an inventory of a host that no one can log in to."""
    (tmp_path / "state").mkdir(mode=0o700)
    record(tmp_path / "state", ["web1"], {"low_q": [message("shop.tasks.bill")]})
    (tmp_path / "inventory.yaml").write_text(INVENTORY.format(port=free_port()))
    return tmp_path


def reported(place: Path, run: str, *flags: str) -> tuple[str, str]:
    """What is printed, and the page."""
    words = [
        sys.executable,
        str(CHECKOUT / "tasks.py"),
        "report",
        run,
        "--html",
        "run.html",
        *flags,
    ]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, (place / "run.html").read_text()


def test_only_with_the_logs_is_a_host_contacted_and_one_that_does_not_answer_is_named(
    place: Path,
) -> None:
    printed, page = reported(place, "last")
    assert f"Wrote run.html: run {RUN}, remediate, ok." in printed
    assert "logs of web1" not in page
    assert "the monitor recorded no look around the time of the run" in page
    _, page = reported(place, RUN[:8], "--logs")
    assert "the logs of web1 were not read: " in page


def test_what_the_monitor_saw_around_a_run_is_shown_as_far_as_the_inventory_is_of_its_fleet(
    place: Path,
) -> None:
    inventory = load_inventory(place / "inventory.yaml")
    path = history_path(build_fleet(inventory, tuple(inventory.hosts)), place / "state")
    path.parent.mkdir(parents=True, mode=0o700)
    with closing(History(path)) as history:
        for ago_s, depth in ((7200, 77_777), (300, 66_666)):
            history.remember(
                time.time() - ago_s,
                {"low_q": depth},
                [],
                unsure=lambda *_: False,
                targets=0,
                keep_s=1e9,
            )
    for folder in (path, *path.parents[:2]):
        folder.chmod(0o600 if folder == path else 0o700)
    _, page = reported(place, "last")
    assert ("66,666" in page, "77,777" in page) == (True, False)
    (place / "inventory.yaml").write_text("all: [")
    _, page = reported(place, "last", "--state-dir", "state")
    assert "66,666" not in page
    assert "the inventory cannot be read, so the monitor" in page
