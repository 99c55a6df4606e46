"""What a real Django project says of itself; it is as Celery's guide has it, with a broker composed
in its settings.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import pytest

from lab.world import celery_command
from tests.brokers import servers, until
from tests.sandbox.conftest import World, deploy, make_world

FILES = {
    "site/shop/__init__.py": "from .celery import app as celery_app\n__all__ = ('celery_app',)\n",
    "site/shop/celery.py": (
        """\
import os
from celery import Celery
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""
    ),
    "site/shop/settings.py": (
        """\
import os
SECRET_KEY = "x"
INSTALLED_APPS = ["orders"]
REDIS_HOST = os.environ.get("REDIS_HOST", "127.0.0.1")
REDIS_PORT = int(os.environ.get("REDIS_PORT", 6379))
REDIS_DB = int(os.environ.get("REDIS_DB", 0))
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": os.environ["CACHE_URL"]}}
CELERY_BROKER_URL = f"redis://{REDIS_HOST}:{REDIS_PORT}/{REDIS_DB}"
CELERY_TASK_ROUTES = {"orders.tasks.bill*": {"queue": "bills"}, "orders.tasks.ship": {"queue": "ships", "priority": 3}}
CELERY_TASK_DEFAULT_QUEUE = "bills"
"""
    ),
    "site/orders/__init__.py": "",
    "site/orders/tasks.py": (
        """\
from celery import shared_task

@shared_task
def bill(order): ...
"""
    ),
}
NEWER = """
@shared_task
def bill_again(order): ...
"""
BY_FUNCTION = """
def by_name(name, args, kwargs, options, task=None, **_):
    return {"queue": "bills"} if name.startswith("orders.") else None

CELERY_TASK_ROUTES = (by_name,)
"""
INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: shop
      celery_broker_url: "{{ lookup('file', inventory_dir ~ '/broker.url') }}"
      celery_directory: "{{ inventory_dir }}/site"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/shop.env"
      celery_service_manager: commands
      celery_commands: {start: "false", stop: "false", status: "cat {worker}.pid 2>/dev/null || exit 3"}
      celery_workers:
        - {name: bills, queues: [bills]}
"""


class Shop:
    """The project, its inventory, and the way to its Redis."""

    def __init__(self, world: World, port: int) -> None:
        self.world, self.port, self.queues = world, port, "bills"
        for name, text in {**FILES, "inventory.yaml": INVENTORY}.items():
            path = world.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (world.path / "broker.url").write_text(f"redis://127.0.0.1:{port}/0")
        self.environment(db=0)

    def environment(self, db: int) -> None:
        """A cache in the inventory's db, whatever the broker's is; written long before anything was
        started.
        """
        self.variables = {
            "REDIS_PORT": str(self.port), "REDIS_DB": str(db), "CACHE_URL": f"redis://127.0.0.1:{self.port}/0",
        }  # fmt: skip
        path = self.world.path / "shop.env"
        path.write_text("".join(f"{name}={value}\n" for name, value in self.variables.items()))
        os.utime(path, (0, 0))

    @contextmanager
    def worker(self) -> Iterator[None]:
        """A real worker with the code and the environment as they are now."""
        log, site = self.world.path / "bills.log", self.world.path / "site"
        command = celery_command("-A shop worker -P solo -l INFO")
        with log.open("wb") as file:
            environment = {**os.environ, **self.variables}
            process = subprocess.Popen(
                [*command, "-Q", self.queues, "-n", "bills@here"],
                cwd=site,
                stdout=file,
                stderr=file,
                env=environment,
            )
        (site / "bills.pid").write_text(f"{process.pid}\n")
        try:
            until(lambda: b" ready." in log.read_bytes())
            yield
        finally:
            process.kill()
            process.wait()

    def findings(self) -> dict[str, Any]:
        return {one["code"]: one for one in self.world.inv("diagnose", "--json").json["findings"]}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    for name in ("servers", "world"):
        (tmp_path / name).mkdir()
    with servers(tmp_path / "servers") as start:
        url = start().url(0)
        yield Shop(make_world(tmp_path / "world"), int(url.rpartition(":")[2].partition("/")[0]))


@pytest.mark.parametrize("more", ["", BY_FUNCTION], ids=["routes by pattern", "routes by function"])
def test_a_healthy_project_gives_no_finding_and_is_checked_without_naming_a_task(
    shop: Shop, more: str
) -> None:
    settings = shop.world.path / "site/shop/settings.py"
    settings.write_text(settings.read_text() + more)
    with shop.worker():
        done = shop.world.inv("verify")
    assert done.code == 0, done.out
    assert "No findings." in done.out
    assert "nodes register the tasks of their queues (1, from the routes): 1 of 1" in done.out


TO_ALL = """
from kombu import Queue
from kombu.common import Broadcast
CELERY_TASK_QUEUES = (Queue("bills"), Broadcast("all"))
CELERY_TASK_ROUTES = {"orders.tasks.bill*": {"queue": "bills"}, "orders.tasks.clear": {"queue": "all"}}
CELERY_BEAT_SCHEDULE = {"clear": {"task": "orders.tasks.clear", "schedule": 3600.0}}
"""
CLEAR = """
@shared_task
def clear(): ...
"""


def test_a_broadcast_whose_queue_has_another_name_in_each_worker_comes_to_its_workers(
    shop: Shop,
) -> None:
    site, inventory = shop.world.path / "site", shop.world.path / "inventory.yaml"
    (site / "shop/settings.py").write_text(FILES["site/shop/settings.py"] + TO_ALL)
    (site / "orders/tasks.py").write_text(FILES["site/orders/tasks.py"] + CLEAR)
    inventory.write_text(INVENTORY.replace("queues: [bills]", "queues: [bills, all]"))
    shop.queues = "bills,all"
    with shop.worker():
        done = shop.world.inv("verify")
        (without_beat,) = shop.findings()
        (line,) = shop.world.inv("schedule", "--json").json["schedule"]
        misspelt = TO_ALL.replace('{"queue": "all"}', '{"queue": "alll"}')
        (site / "shop/settings.py").write_text(FILES["site/shop/settings.py"] + misspelt)
        found = shop.findings()
    assert (done.code, without_beat) == (0, "beat.none"), done.out
    assert (line["queue"], line["consumers"], line["broken"], line["unknown"]) == (
        "all",
        ["bills@here"],
        [],
        [],
    )
    assert set(found) == {
        "route.no_consumer",
        "schedule.no_consumer",
        "worker.older_code",
        "beat.none",
    }
    assert found["route.no_consumer"]["summary"].endswith("; did you mean 'all'?")


def test_workers_that_use_another_db_by_their_settings_are_not_told_to_restart(shop: Shop) -> None:
    shop.environment(db=5)
    with shop.worker():
        found = shop.findings()
        refused = shop.world.inv("remediate", "--yes")
    assert set(found) == {"broker.not_the_workers"}
    fault, port = found["broker.not_the_workers"], shop.port
    assert f"do not answer at 127.0.0.1:{port}/0" in fault["summary"]
    assert f"their application uses 127.0.0.1:{port}/5: correct one of the two" in fault["summary"]
    settings = shop.world.path / "site/shop/settings.py"
    assert f"{shop.world.path}/shop.env: REDIS_DB is '5', read at {settings}:6" in fault["evidence"]
    assert (
        f"{shop.world.path}/shop.env: REDIS_HOST is not set, read at {settings}:4"
        in fault["evidence"]
    )
    assert fault["remedy"] is None
    assert refused.code == 2, refused.out


def test_a_restart_that_would_take_workers_to_another_db_is_blocked(shop: Shop) -> None:
    with shop.worker():
        shop.environment(db=5)
        found = shop.findings()
        restarted = shop.world.inv("restart-workers", "--yes")
    assert "broker.would_be_another" in found
    assert found["broker.would_be_another"]["blocks"]
    assert restarted.code == 2, restarted.out
    assert f"would use 127.0.0.1:{shop.port}/5 and not 127.0.0.1:{shop.port}/0" in restarted.err


def test_a_worker_of_before_a_deployment_lacks_what_is_routed_to_it(shop: Shop) -> None:
    with shop.worker():
        tasks = shop.world.path / "site/orders/tasks.py"
        deploy(tasks, tasks.read_text() + NEWER)
        found = shop.findings()
    assert set(found) == {"worker.older_code", "task.not_registered"}
    lacking = found["task.not_registered"]
    assert lacking["caused_by"][0]["code"] == "worker.older_code"
    assert lacking["evidence"][0] == "inspect registered: bills@here lacks orders.tasks.bill_again"
    assert lacking["remedy"].startswith("restart the workers")


OPTIONS = "\nCELERY_BROKER_TRANSPORT_OPTIONS = {'visibility_timeout': 7200}\n"
QUEUES = """
from kombu import Queue
CELERY_TASK_QUEUES = [Queue("bills"), Queue("ships", routing_key="ships.#")]
"""
ELSEWHERE = """
CELERY_RESULT_BACKEND = f"redis://:hunter2@{REDIS_HOST}:{REDIS_PORT}/9"
CELERY_TASK_ROUTES["orders.tasks.bill*"] = {"queue": "bills", "priority": 6}
"""
OLDER_KOMBU = """
import kombu
kombu.__version__ = "5.0"
"""
OF_ITS_OWN = """
import sys
if "worker" in sys.argv: CELERY_TASK_DEFAULT_QUEUE = "rest"
"""


def test_a_worker_with_settings_of_before_a_deployment_is_reported_with_both_sides_and_restarted(
    shop: Shop,
) -> None:
    settings, inventory = (
        shop.world.path / "site/shop/settings.py",
        shop.world.path / "inventory.yaml",
    )
    inventory.write_text(
        INVENTORY.replace(
            "celery_app:", "celery_broker_options: {visibility_timeout: 7200}\n      celery_app:"
        )
    )
    before = BY_FUNCTION.replace("(by_name,)", "(by_name, CELERY_TASK_ROUTES)") + OPTIONS + QUEUES
    settings.write_text(settings.read_text() + before + OLDER_KOMBU)
    with shop.worker():
        assert shop.findings() == {}, (
            "options with Django's namespace are read, and functions are alike"
        )
        settings.write_text(FILES["site/shop/settings.py"] + OPTIONS + QUEUES + ELSEWHERE)
        found = shop.findings()
        planned = shop.world.inv("remediate", "--dry-run", "--json")
    assert set(found) == {"worker.older_code"}
    fault = found["worker.older_code"]
    assert fault["remedy"] == "restart it"
    assert any(
        line.startswith("result_backend: bills@here has the default, the application")
        for line in fault["evidence"]
    )
    assert any(
        line.startswith("task_routes: bills@here has ['<function by_name>'")
        for line in fault["evidence"]
    )
    now = kombu.__version__
    assert (
        f"inspect report: bills@here runs with kombu 5.0, the application with {now}"
        in fault["evidence"]
    )
    assert "hunter2" not in str(fault)
    assert "restart bills: it was started before the application's files changed" in str(
        planned.json["plan"]
    )


def test_what_is_set_for_a_worker_alone_is_reported_and_no_restart_is_offered(shop: Shop) -> None:
    settings = shop.world.path / "site/shop/settings.py"
    settings.write_text(settings.read_text() + OF_ITS_OWN)
    with shop.worker():
        found = shop.findings()
        planned = shop.world.inv("remediate", "--dry-run", "--json")
    (fault,) = found.values()
    assert (fault["code"], fault["remedy"]) == ("worker.settings_differ", None)
    assert fault["evidence"] == [
        "task_default_queue: bills@here has 'rest', the application 'bills'"
    ]
    assert planned.json["plan"] == []


def test_a_deployment_that_cannot_be_loaded_is_reported_before_a_restart_ends_the_workers(
    shop: Shop,
) -> None:
    with shop.worker():
        (shop.world.path / "site/orders/tasks.py").write_text("import nosuch\n")
        found = shop.findings()
    assert set(found) == {"task.import_fails"}
    assert found["task.import_fails"]["blocks"]
