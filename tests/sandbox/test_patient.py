"""The printer inventory and the GLPI stand-in, run as they are run in the sandbox: real processes,
a real Redis.
"""

import http.client
import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlencode, urlsplit

import psutil
import pytest
from celery import Celery
from celery.result import AsyncResult

from lab.glpi.cards import MANY, card_ids
from lab.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
PATIENT = ROOT / "lab" / "patient"
TOKENS = {"GLPI_APP_TOKEN": "app-token", "GLPI_USER_TOKEN": "user-token"}
CHECK_ALL = "integrations.tasks.check_all_devices_in_glpi"
POLL = "inventory.tasks.poll_printer"
PRINTERS = 30
ALL_WORKERS = ("worker_high", "worker_low", "worker_daemon", "beat")


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 20) -> Any:
    """The first true value of `condition`; fails after the timeout, saying what did not happen."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"within {timeout_s} s not seen: {what}")


@dataclass(frozen=True)
class Site:
    """One installation of the printer inventory: a home directory with its env file, database, logs
    and pid files.
    """

    home: Path
    settings: dict[str, str]
    env: dict[str, str] = field(default_factory=dict)

    def write(self, **changes: str) -> None:
        """Write the env file, with `changes` to its usual settings."""
        self.home.mkdir(exist_ok=True)
        lines = [f"{key}={value}\n" for key, value in (self.settings | changes).items()]
        (self.home / "printer_inventory.env").write_text("".join(lines))

    def run(self, command: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run one of the project's scripts."""
        return self._call([str(PATIENT / command), *args], self.env | env)

    def manage(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `manage.py`."""
        return self._call(
            [sys.executable, str(PATIENT / "manage.py"), *args], self.env | self.settings | env
        )

    def pid(self, worker: str) -> int:
        """The main process of a worker that runs."""
        return int(self.run("workers_status.sh", worker).stdout)

    def log(self, worker: str) -> str:
        """All that a worker has written."""
        return (self.home / "logs" / f"{worker}.log").read_text()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What the database answers."""
        with closing(sqlite3.connect(self.settings["DATABASE_PATH"], timeout=20)) as database:
            return database.execute(sql).fetchall()

    @contextmanager
    def celery(self) -> Iterator[Celery]:
        """An app that knows the broker and the results, and none of the project's code."""
        with Celery(
            broker=self.settings["CELERY_BROKER_URL"],
            backend=self.settings["CELERY_RESULT_BACKEND"],
        ) as app:
            app.conf.accept_content = ["json"]
            yield app
            app.backend.client.close()

    def _call(self, command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )


@dataclass(frozen=True)
class Glpi:
    """The stand-in, running."""

    url: str
    process: subprocess.Popen[bytes]

    def request(
        self, method: str, path: str, body: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """The status and the decoded body of one answer."""
        with closing(
            http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        ) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def get(self, resource: str, **headers: str) -> tuple[int, Any]:
        """An answer of the API; `App_Token` stands for the header `App-Token`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("GET", f"/apirest.php/{resource}", headers=named)

    @contextmanager
    def behaving(self, **behaviour: Any) -> Iterator[None]:
        """Behave badly inside the block, well after it."""
        assert self.request("PUT", "/lab/behaviour", json.dumps(behaviour))[0] == 200
        try:
            yield
        finally:
            self.request("PUT", "/lab/behaviour", "{}")


@contextmanager
def running_glpi(directory: Path) -> Iterator[Glpi]:
    """A stand-in of its own; its end is checked too."""
    port_file = directory / "glpi.port"
    process = subprocess.Popen(
        [sys.executable, "-m", "lab.glpi", "--port", "0", "--port-file", str(port_file)],
        cwd=ROOT,
        env=os.environ | TOKENS,
        stdin=subprocess.DEVNULL,
    )
    try:
        wait_until(port_file.exists, "the port file of the stand-in")
        yield Glpi(f"http://127.0.0.1:{port_file.read_text().strip()}", process)
    finally:
        process.terminate()
        assert process.wait(timeout=10) == 0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of this file's own."""
    server = RedisServer.start(tmp_path_factory.mktemp("broker"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def glpi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glpi]:
    """The stand-in that the sites use."""
    with running_glpi(tmp_path_factory.mktemp("glpi")) as server:
        yield server


@contextmanager
def made_site(home: Path, broker: RedisServer, glpi: Glpi, db: int) -> Iterator[Site]:
    """A site whose queues are in `db` and whose results are in the next; nothing of it runs
    afterwards.
    """
    settings = {
        "CELERY_BROKER_URL": broker.url(db),
        "CELERY_RESULT_BACKEND": broker.url(db + 1),
        "DATABASE_PATH": str(home / "db.sqlite3"),
        "DJANGO_SECRET_KEY": "only-for-tests",
        "GLPI_URL": glpi.url,
        "GLPI_TIMEOUT_S": "5",
        **TOKENS,
    }
    inherited = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    env = {"PRINTER_INVENTORY_HOME": str(home), "PRINTER_INVENTORY_PYTHON": sys.executable}
    site = Site(home, settings, inherited | env)
    site.write()
    yield site
    site.write()
    assert site.run("stop_workers.sh", PRINTER_INVENTORY_STOP_TIMEOUT_S="10").returncode == 0


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, broker: RedisServer, glpi: Glpi
) -> Iterator[Site]:
    """A healthy site with printers, whose workers for both priorities run."""
    with made_site(tmp_path_factory.mktemp("site"), broker, glpi, db=3) as made:
        assert made.manage("migrate", "-v0").returncode == 0
        assert made.manage("seed_printers", "--count", str(PRINTERS)).returncode == 0
        assert made.run("start_workers.sh", "worker_high", "worker_low").returncode == 0
        yield made


@pytest.fixture
def idle_site(tmp_path: Path, broker: RedisServer, glpi: Glpi) -> Iterator[Site]:
    """A site where nothing runs and no database is."""
    with made_site(tmp_path, broker, glpi, db=5) as made:
        yield made


def lives(process: psutil.Process) -> bool:
    """Whether it still runs; one that waits for its parent to take note of its end does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def load_client(timeout_s: str = "0.3") -> ModuleType:
    """The client's module, imported again with this value of GLPI_TIMEOUT_S."""
    spec = importlib.util.spec_from_file_location(
        "glpi_client", PATIENT / "integrations" / "glpi" / "client.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLPI_TIMEOUT_S", timeout_s)
        spec.loader.exec_module(module)
    return module


def new_client(module: ModuleType, glpi: Glpi, user_token: str = TOKENS["GLPI_USER_TOKEN"]) -> Any:
    """A client of the stand-in."""
    return module.GLPIClient(glpi.url, TOKENS["GLPI_APP_TOKEN"], user_token)


def serial_with(count: int) -> str:
    """A serial number with so many cards."""
    return next(
        serial for serial in (f"SN{n}" for n in range(10_000)) if len(card_ids(serial)) == count
    )


# --- the incident -----------------------------------------------------------------------------------------------------


def test_a_worker_with_a_bad_glpi_timeout_runs_and_lacks_only_the_glpi_tasks(
    idle_site: Site,
) -> None:
    idle_site.write(GLPI_TIMEOUT_S="30s")
    assert idle_site.run("start_workers.sh", "worker_high").returncode == 0

    with idle_site.celery() as app:
        replies = app.control.inspect(["worker_high@sandbox"], timeout=5).registered()

    assert set(replies["worker_high@sandbox"]) == {POLL, "inventory.tasks.collect_daemon_status"}
    assert "30s" not in idle_site.log("worker_high")


def test_a_bad_glpi_timeout_is_named_by_the_check_itself(idle_site: Site) -> None:
    failed = idle_site.manage("check_glpi", "--sync", GLPI_TIMEOUT_S="30s")

    assert failed.returncode != 0
    assert failed.stderr.splitlines()[-1] == "ValueError: could not convert string to float: '30s'"


# --- the tasks --------------------------------------------------------------------------------------------------------


def test_the_daily_check_runs_to_its_end_and_its_counts_add_up(site: Site) -> None:
    cards = Counter(min(len(card_ids(f"PRN{number:06d}")), 2) for number in range(1, PRINTERS + 1))
    queued = site.run("run_glpi_check.sh", "async")
    task_id = queued.stdout.strip()

    with site.celery() as app:
        result = AsyncResult(task_id, app=app).get(timeout=20)

    counts = {"found": cards[1], "conflicts": cards[2], "not_found": cards[0], "errors": 0}
    assert (
        result.items()
        >= (counts | {"current": PRINTERS, "total": PRINTERS, "percent": 100}).items()
    )
    states = dict(
        site.rows(
            f"SELECT state, count(*) FROM integrations_glpisync WHERE task_id = '{task_id}' GROUP"
            " BY 1"
        )
    )
    assert states == {"found": cards[1], "conflict": cards[2], "not_found": cards[0]}
    log = site.log("worker_high")
    assert f"Found {PRINTERS} devices to check" in log
    assert f"Progress: {PRINTERS}/{PRINTERS} (100%)" in log
    assert f"Found {cards[2]} devices with conflicts" in log
    assert "state: SUCCESS" in site.run("run_glpi_check.sh", "status", task_id).stdout


def test_a_failed_check_is_retried_after_300_1200_and_4800_seconds_and_then_given_up(
    site: Site, glpi: Glpi
) -> None:
    with site.celery() as app, glpi.behaving(fail=401):
        tries = [
            app.send_task(CHECK_ALL, queue="high_priority", retries=retries) for retries in range(4)
        ]
        wait_until(
            lambda: {task.state for task in tries} <= {"RETRY", "FAILURE"},
            "the end of all four tries",
        )
        states = [task.state for task in tries]
    log = site.log("worker_high")
    delays = [re.search(rf"\[{task.id}\] retry: Retry in (\d+)s", log) for task in tries[:3]]

    assert states == ["RETRY", "RETRY", "RETRY", "FAILURE"]
    assert [delay and int(delay[1]) for delay in delays] == [300, 1200, 4800]
    assert (
        "Fatal error in GLPI check task: initSession: HTTP 401, ERROR_SESSION_TOKEN_INVALID" in log
    )


def test_every_poll_leaves_exactly_one_record(site: Site) -> None:
    with site.celery() as app:
        ids = {
            app.send_task(POLL, args=[1 + n % PRINTERS], queue="low_priority").id for n in range(60)
        }
        for task_id in ids:
            AsyncResult(task_id, app=app).get(timeout=20)

    assert dict(
        site.rows("SELECT task_id, count(*) FROM inventory_pollrecord GROUP BY 1")
    ) == dict.fromkeys(ids, 1)


def test_an_unknown_task_is_said_to_be_unknown_or_expired(site: Site) -> None:
    shown = site.run("run_glpi_check.sh", "status", "no-such-task")

    assert shown.returncode == 1
    assert "no-such-task is unknown or expired" in shown.stderr


def test_sync_checks_what_is_due_and_fails_where_glpi_does(site: Site, glpi: Glpi) -> None:
    site.manage("sync_glpi")

    assert "total: 0" in site.manage("sync_glpi").stdout
    assert "total: 5" in site.manage("sync_glpi", "--limit", "5", "--force").stdout
    with glpi.behaving(fail=500):
        failed = site.manage("sync_glpi", "--force")
    assert failed.returncode == 1
    assert "the check was given up: initSession: HTTP 500, ERROR_SQL" in failed.stderr


# --- the scripts ------------------------------------------------------------------------------------------------------


def test_workers_start_once_however_often_they_are_started_and_stop_without_a_trace(
    idle_site: Site,
) -> None:
    with ThreadPoolExecutor() as pool:
        starts = list(pool.map(lambda _: idle_site.run("start_workers.sh"), range(2)))
    mains = {name: psutil.Process(idle_site.pid(name)) for name in ALL_WORKERS}
    processes = [
        process for main in mains.values() for process in (main, *main.children(recursive=True))
    ]
    said = Counter(
        re.sub(r" \(pid \d+\)", "", line) for start in starts for line in start.stdout.splitlines()
    )

    assert [start.returncode for start in starts] == [0, 0]
    assert said == Counter(
        f"{name}: {what}" for name in ALL_WORKERS for what in ("started", "runs already")
    )
    assert len(processes) == 4 + 2 + 2 + 1
    assert all(os.getsid(process.pid) == process.pid for process in mains.values())

    assert idle_site.run("stop_workers.sh").returncode == 0
    assert not any(map(lives, processes))
    assert idle_site.run("stop_workers.sh", "beat").stdout == "beat: stopped already\n"


def test_status_speaks_the_exit_codes_of_an_init_script(idle_site: Site) -> None:
    stopped = idle_site.run("workers_status.sh", "beat")
    unknown = idle_site.run("workers_status.sh", "worker_lwo")

    assert (stopped.returncode, stopped.stdout) == (3, "stopped\n")
    assert unknown.returncode == 64
    assert "no worker is called worker_lwo" in unknown.stderr


def test_a_worker_that_dies_while_starting_is_a_failure_with_the_end_of_its_log(
    idle_site: Site,
) -> None:
    idle_site.write(CELERY_BROKER_URL="nonsense://")
    started = idle_site.run("start_workers.sh", "worker_low")

    assert started.returncode == 1
    assert "worker_low: died while starting" in started.stderr
    assert "nonsense" in started.stderr
    assert idle_site.run("workers_status.sh", "worker_low").returncode == 3


def test_a_stuck_worker_and_its_children_are_killed_after_the_timeout(idle_site: Site) -> None:
    idle_site.run("start_workers.sh", "worker_daemon")
    main = psutil.Process(idle_site.pid("worker_daemon"))
    processes = [main, *main.children(recursive=True)]
    for process in processes:
        process.suspend()

    assert (
        idle_site.run(
            "stop_workers.sh", "worker_daemon", PRINTER_INVENTORY_STOP_TIMEOUT_S="0"
        ).returncode
        == 0
    )
    assert not any(map(lives, processes))


def test_a_process_that_only_has_the_pid_of_a_worker_is_left_alone(idle_site: Site) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        (idle_site.home / "run").mkdir()
        (idle_site.home / "run" / "beat.pid").write_text(f"{stranger.pid} 1\n")

        status = idle_site.run("workers_status.sh", "beat")
        stopped = idle_site.run("stop_workers.sh", "beat")
        survived = stranger.poll() is None
        stranger.kill()

    assert (status.returncode, stopped.returncode) == (3, 0)
    assert survived


def test_the_scripts_name_what_they_miss(idle_site: Site) -> None:
    homeless = idle_site.run("start_workers.sh", PRINTER_INVENTORY_HOME="")
    usage = idle_site.run("run_glpi_check.sh", "later")

    assert (homeless.returncode, usage.returncode) == (78, 64)
    assert "PRINTER_INVENTORY_HOME is not set" in homeless.stderr
    assert "usage: run_glpi_check.sh sync|async|status TASK_ID" in usage.stderr


# --- the client and the stand-in --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, MANY])
def test_the_client_finds_all_cards_page_by_page(glpi: Glpi, count: int) -> None:
    module, serial = load_client(), serial_with(count)
    assert module.PAGE_SIZE < MANY

    with new_client(module, glpi) as client:
        assert client.printer_card_ids(serial) == list(card_ids(serial))


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (401, "GLPIUnauthorizedError", "HTTP 401, ERROR_SESSION_TOKEN_INVALID"),
        (500, "GLPIError", "HTTP 500, ERROR_SQL"),
        ("hang", "GLPIUnavailableError", "no answer within 0.3 s"),
    ],
)
def test_a_fault_of_glpi_is_an_error_of_the_client(
    glpi: Glpi, fail: int | str, error: str, message: str
) -> None:
    module = load_client("0.3")
    module.__dict__["BACKOFF_S"] = (0.01, 0.01)
    with (
        glpi.behaving(fail=fail),
        pytest.raises(module.GLPIError, match=message) as caught,
        new_client(module, glpi),
    ):
        pass

    assert type(caught.value).__name__ == error


def test_a_wrong_user_token_is_refused_by_its_name(glpi: Glpi) -> None:
    module = load_client()
    with pytest.raises(module.GLPIUnauthorizedError, match="ERROR_GLPI_LOGIN_USER_TOKEN"):
        new_client(module, glpi, user_token="wrong").__enter__()


def test_the_session_is_closed_even_when_its_block_fails(glpi: Glpi) -> None:
    module = load_client()
    client = new_client(module, glpi)
    with pytest.raises(ZeroDivisionError), client:
        _ = 1 / 0

    with pytest.raises(module.GLPIUnauthorizedError, match="ERROR_SESSION_TOKEN_INVALID"):
        client.printer_card_ids("SN1")


def test_the_stand_in_refuses_as_glpi_does(glpi: Glpi) -> None:
    app = {"App_Token": TOKENS["GLPI_APP_TOKEN"]}
    session = glpi.get(
        "initSession", **app, Authorization=f"user_token {TOKENS['GLPI_USER_TOKEN']}"
    )[1]
    signed_in = app | {"Session_Token": session["session_token"]}
    search = {
        "criteria[0][field]": 5,
        "criteria[0][searchtype]": "contains",
        "criteria[0][value]": serial_with(1),
    }

    def refusal(resource: str, **headers: str) -> tuple[int, str]:
        status, body = glpi.get(resource, **headers)
        return status, body[0]

    assert refusal("initSession") == (400, "ERROR_APP_TOKEN_PARAMETERS_MISSING")
    assert refusal("initSession", App_Token="wrong") == (400, "ERROR_WRONG_APP_TOKEN_PARAMETER")
    assert refusal("initSession", **app) == (400, "ERROR_LOGIN_PARAMETERS_MISSING")
    assert refusal("search/Printer", **app) == (400, "ERROR_SESSION_TOKEN_MISSING")
    assert refusal("search/Printer", **app, Session_Token="old") == (
        401,
        "ERROR_SESSION_TOKEN_INVALID",
    )
    assert refusal(f"search/Printer?{urlencode(search | {'range': '9-19'})}", **signed_in) == (
        400,
        "ERROR_RANGE_EXCEED_TOTAL",
    )


def test_the_stand_in_answers_a_part_with_206(glpi: Glpi) -> None:
    module, serial = load_client(), serial_with(MANY)
    with new_client(module, glpi) as client:
        query = urlencode(module._search_by_serial(serial, start=50))
        status, page = glpi.request(
            "GET", f"/apirest.php/search/Printer?{query}", headers=client._headers
        )

    assert (status, page["count"], page["content-range"]) == (
        206,
        MANY - 50,
        f"50-{MANY - 1}/{MANY}",
    )


def test_the_stand_in_ends_at_once_while_a_request_hangs(tmp_path: Path) -> None:
    module = load_client()
    with running_glpi(tmp_path) as glpi:
        glpi.request("PUT", "/lab/behaviour", '{"fail": "hang"}')
        with pytest.raises(module.GLPIUnavailableError):
            new_client(module, glpi).__enter__()
