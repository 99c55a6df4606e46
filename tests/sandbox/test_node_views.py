"""`inv workers NODE`, `inv tasks` and the controls, on two real workers that a module shares."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import redis
from celery import Celery

from lab.redis_server import free_port, redis_server_binary
from lab.world import celery_command
from runbooks.broker.archive.reader import read
from runbooks.broker.archive.search import row
from tests.brokers import servers, until
from tests.sandbox.conftest import CHECKOUT, World, make_world
from tests.transcripts import require_shown

SHOP = """\
import os
from celery import Celery
url = open(os.path.dirname(os.path.abspath(__file__)) + "/broker.url").read()
app = Celery("shop", broker=url, backend=url)
app.conf.task_routes = {"shop.*": "work"}
app.conf.result_extended = True
app.conf.worker_prefetch_multiplier = 2

@app.task
def hold(name):
    app.backend.client.blpop("release:" + name)
    return name

@app.task(rate_limit="100/s", time_limit=90)
def add(x, y): return x + y

@app.task(bind=True, max_retries=5)
def fail(self, number):
    app.backend.client.hincrby("ran", self.request.id, 1)
    if not app.backend.client.exists("repaired"):
        raise ValueError("no %d" % number)
    return number
"""
INVENTORY = """\
all:
  hosts:
    here:
      ansible_connection: local
      runbooks_state_directory: "{{ inventory_dir }}/state"
      celery_app: shop
      celery_broker_url: "{{ lookup('file', inventory_dir ~ '/broker.url') }}"
      celery_result_backend: "{{ lookup('file', inventory_dir ~ '/broker.url') }}"
      celery_directory: "{{ inventory_dir }}"
      celery_python: "{{ inventory_dir }}/.venv/bin/python"
      celery_user: "{{ lookup('pipe', 'id -un') }}"
      celery_env_file: "{{ inventory_dir }}/shop.env"
      celery_service_manager: commands
      celery_commands: {start: "false", stop: "false", status: "exit 3"}
      celery_expected_tasks: [shop.expected]
      celery_workers:
        - {name: one, queues: [work]}
        - {name: two, queues: [rest]}
"""


NAMES = "klmnrstuvw"
"""More than a worker fetches."""


@dataclass(frozen=True, slots=True)
class Shop:
    """The workers' world, a client of their broker, and a producer."""

    world: World
    client: "redis.Redis"
    app: Celery

    def send(self, task: str, *args: Any, **options: Any) -> str:
        return str(self.app.send_task(f"shop.{task}", args, **{"queue": "work", **options}).id)

    def release(self, *names: str) -> None:
        for name in names:
            self.client.lpush(f"release:{name}", "now")

    def inspect(self, what: str, node: str = "one@here") -> Any:
        """What the node says; a node that is still starting, or whose machine is busy, is asked
        again.
        """
        answers: dict[str, Any] = {}

        def answered() -> bool:
            answers.update(getattr(self.app.control.inspect([node], timeout=3), what)() or {})
            return node in answers

        until(answered)
        return answers[node]

    def ended(self, *ids: str) -> bool:
        return all(self.app.AsyncResult(one).ready() for one in ids)


@contextmanager
def worker(world: World, name: str, queues: str, size: int) -> Iterator[None]:
    """A real worker."""
    log = world.path / f"{name}.log"
    command = celery_command("-A shop worker -c", str(size), "-l", "INFO")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "-Q", queues, "-n", f"{name}@here"], cwd=world.path, stdout=file, stderr=file
        )
    try:
        until(lambda: b" ready." in log.read_bytes())
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    path: Path = tmp_path_factory.mktemp("shop")
    for name in ("servers", "world"):
        (path / name).mkdir()
    with servers(path / "servers") as start, ExitStack() as running:
        world, url = make_world(path / "world"), start().url(0)
        for file, text in (
            ("broker.url", url),
            ("shop.py", SHOP),
            ("inventory.yaml", INVENTORY),
            ("shop.env", ""),
        ):
            (world.path / file).write_text(text)
        running.enter_context(worker(world, "one", "work", 2))
        running.enter_context(worker(world, "two", "rest", 1))
        with (
            Celery(broker=url, backend=url, set_as_current=False) as app,
            redis.Redis.from_url(url) as client,
        ):
            yield Shop(world, client, app)


def documented_fields() -> set[str]:
    """The fields of a node that `docs/workers.md` lists, without those of its tasks."""
    text = (CHECKOUT / "docs/workers.md").read_text().partition("and `nodes`, a list of ")[2]
    return set(re.findall(r"`(\w+)`", re.sub(r"\(each .*?\)", "", text, flags=re.DOTALL)))


def test_a_node_is_shown_with_what_it_holds_as_celery_inspect_has_it(shop: Shop) -> None:
    done = [shop.send("add", 1, 2) for _ in range(3)]
    until(lambda: shop.ended(*done))
    holding = [shop.send("hold", name) for name in "abc"]
    later = shop.send("add", 5, 6, countdown=600)
    until(
        lambda: (
            len(shop.inspect("active")) == 2
            and shop.inspect("reserved")
            and shop.inspect("scheduled")
        )
    )
    seen = shop.world.inv("workers", "one*", "--json").json
    text = shop.world.inv("workers", "one@here").out
    require_shown("workers.md", "inv workers one@here", text, numbers=False)
    [node] = seen["nodes"]
    for kind in ("active", "reserved"):
        assert {one["id"]: one["pid"] for one in node[kind]} == {
            one["id"]: one["worker_pid"] for one in shop.inspect(kind)
        }
    assert {one["id"] for one in (*node["active"], *node["reserved"])} == {*holding}
    assert [(one["id"], one["args"]) for one in node["scheduled"]] == [(later, "(5, 6)")]
    stats = shop.inspect("stats")
    assert node["started"] == stats["total"]
    assert (node["pids"], node["pool_pids"]) == ([stats["pid"]], sorted(stats["pool"]["processes"]))
    assert (node["size"], node["prefetch"]) == (2, stats["prefetch_count"])
    assert node["done"] == sum(stats["total"].values()) - 2
    assert node["rate_limits"] == {"shop.add": "100/s"}
    assert node["settings"]["worker_prefetch_multiplier"] == 2
    assert node["settings"]["task_acks_late"] is False, "a default"
    assert set(node) == documented_fields()
    assert (node["queues"], node["unanswered"]) == (["work"], [])
    for expected in (
        f"shop.hold  {holding[0]}",
        "due in 9 min",
        "('a',)",
        "3 shop.add",
        "shop.add 100/s",
    ):
        assert expected in text
    shop.app.control.revoke(later)
    shop.release(*"abc")
    until(lambda: shop.ended(*holding))


Api = Callable[[str], Any]
"""What Flower answers to a path of its API."""


@contextmanager
def flower(world: World) -> Iterator[Api]:
    """A real Flower that has asked both workers."""
    port, log = free_port(), world.path / "flower.log"
    command = celery_command("-A shop flower --address=127.0.0.1", f"--port={port}")
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=world.path,
            stdout=file,
            stderr=file,
            env={**os.environ, "FLOWER_UNAUTHENTICATED_API": "true"},
        )

    def api(path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=30) as answer:
            return json.load(answer)

    def has_both() -> bool:
        try:
            workers = api("workers?refresh=true")
        except URLError:  # it does not listen yet
            return False
        return all(workers.get(name, {}).get("stats") for name in ("one@here", "two@here"))

    try:
        until(has_both, timeout_s=90)
        yield api
    finally:
        process.terminate()
        process.wait(20)


def redis_cli(shop: Shop, *words: str) -> str:
    """What the command prints."""
    command = shutil.which("redis-cli") or str(redis_server_binary().with_name("redis-cli"))
    url = (shop.world.path / "broker.url").read_text()
    return subprocess.run(
        [command, "-u", url, *words], capture_output=True, text=True, check=True
    ).stdout


def test_the_figures_agree_side_by_side_with_redis_cli_celery_inspect_and_flower(
    shop: Shop,
) -> None:
    with flower(shop.world) as api:

        def hears() -> bool:
            """Whether it gets the events of tasks: it has nodes send them, and some time later they
            do.
            """
            done = shop.send("add", 0, 0)
            until(lambda: shop.ended(done))
            return bool(api("tasks?taskname=shop.add"))

        until(hears, timeout_s=90)
        holding = [shop.send("hold", name) for name in NAMES]
        until(lambda: shop.client.hlen("unacked") == shop.inspect("stats")["prefetch_count"])
        until(lambda: len(shop.inspect("active")) == 2)
        queues = {
            queue["name"]: queue for queue in shop.world.inv("queues", "--json").json["queues"]
        }
        nodes = {
            node["name"]: node
            for node in shop.world.inv("workers", "*@here", "--json").json["nodes"]
        }
        tasks = {task["task"]: task for task in shop.world.inv("tasks", "--json").json["tasks"]}
        assert tasks["shop.hold"]["running"] == 2
        broker = shop.world.inv("broker", "--json").json["broker"]

        asked = [api(f"workers?refresh=true&workername={name}")[name] for name in nodes]
        assert all("active" in one for one in asked)
        theirs = api("workers")
        lengths = {one["name"]: one["messages"] for one in api("queues/length")["active_queues"]}
        assert {name: queues[name]["depth"] for name in lengths} == lengths
        assert lengths == {name: int(redis_cli(shop, "LLEN", name)) for name in ("work", "rest")}
        assert lengths["work"] > 0
        for name, node in nodes.items():
            its, inspected = theirs[name], shop.inspect("stats", name)
            assert set(node["queues"]) == {one["name"] for one in its["active_queues"]}
            assert (
                node["size"]
                == its["stats"]["pool"]["max-concurrency"]
                == inspected["pool"]["max-concurrency"]
            )
            assert node["started"] == its["stats"]["total"] == inspected["total"]
            assert node["prefetch"] == its["stats"]["prefetch_count"]
            for kind in ("active", "reserved"):
                ids = {one["id"] for one in its[kind]}
                assert (
                    {one["id"] for one in node[kind]}
                    == ids
                    == {one["id"] for one in shop.inspect(kind, name)}
                )
        for task, line in tasks.items():
            knowing = [
                name
                for name in nodes
                if any(one.split()[0] == task for one in theirs[name]["registered"])
            ]
            assert line["registered_by"] == knowing
        info = dict(
            line.split(":", 1) for line in redis_cli(shop, "INFO").splitlines() if ":" in line
        )
        assert broker["version"]["value"]["version"] == info["redis_version"]
        assert broker["role"]["value"]["role"] == info["role"]
        assert broker["evictions"]["value"] == int(info["evicted_keys"])
        assert (tasks["shop.hold"]["running"], tasks["shop.add"]["running"]) == (2, 0)

        shop.release(*NAMES)
        until(lambda: shop.ended(*holding))
        until(lambda: len(api("tasks?taskname=shop.hold&state=SUCCESS")) == len(holding))
        seen = api(f"task/info/{holding[0]}")
        ours = shop.world.inv("task", holding[0], "--json").json
        assert (ours["result"]["state"], ours["result"]["worker"]) == (
            seen["state"],
            seen["worker"],
        )
        assert ours["name"] == seen["name"]
    shop.app.control.disable_events()


def test_a_pattern_shows_each_node_that_it_fits_and_a_wrong_name_is_reported(shop: Shop) -> None:
    both = shop.world.inv("workers", "on*,two@here", "--json").json["nodes"]
    assert [node["name"] for node in both] == ["one@here", "two@here"]
    away = shop.world.inventory(("ansible_connection: local", "ansible_host: 192.0.2.1"))
    alone = shop.world.inv("workers", "one@here", "--inventory", away)
    assert (alone.code, "one@here" in alone.out) == (0, True), alone.err
    wrong = shop.world.inv("workers", "oen@here")
    assert wrong.code == 5
    assert "no node is called 'oen@here'; did you mean 'one@here'?" in wrong.err


def test_every_task_is_shown_with_its_route_its_limits_and_its_failures(shop: Shop) -> None:
    failing = [shop.send("fail", n) for n in (1, 2)]
    until(lambda: shop.ended(*failing))
    ended = json.dumps({"status": "SUCCESS", "result": 1, "name": "shop.renamed"})
    shop.client.set("celery-task-meta-of-old", ended, ex=600)
    seen = shop.world.inv("tasks", "--json").json
    tasks = {task["task"]: task for task in seen["tasks"]}
    assert set(tasks) == {"shop.add", "shop.expected", "shop.fail", "shop.hold", "shop.renamed"}
    assert (tasks["shop.renamed"]["succeeded"], tasks["shop.renamed"]["is_loaded"]) == (1, False)
    add, fail = tasks["shop.add"], tasks["shop.fail"]
    assert (add["queue"], add["rate_limit"], add["time_limit_s"], add["max_retries"]) == (
        "work",
        "100/s",
        90,
        3,
    )
    assert add["registered_by"] == ["one@here", "two@here"]
    assert add["node_rate_limits"] == {"one@here": "100/s", "two@here": "100/s"}
    assert (fail["failed"], fail["max_retries"]) == (2, 5)
    assert fail["errors"] == [{"value": "ValueError", "count": 2}]
    results = [
        json.loads(raw or "") for raw in shop.client.mget(shop.client.keys("celery-task-meta-*"))
    ]
    unnamed = [one for one in results if not one.get("name")]  # tasks that were revoked
    assert (seen["results"], seen["unnamed"], seen["results_complete"]) == (
        len(results),
        len(unnamed),
        True,
    )
    assert add["succeeded"] == sum(
        one.get("name") == "shop.add" and one["status"] == "SUCCESS" for one in results
    )
    text = shop.world.inv("tasks").out
    assert "killed after 1 min 30 s" in text
    assert "2: 2 ValueError" in text
    assert f"count {len(results)} results, all that the backend keeps" in text
    shop.client.delete("celery-task-meta-of-old")


VIEWS = ("workers one@here", "broker", "messages work", "tasks", "task no-such-id")


def test_watching_shows_look_after_look_and_ends_with_ctrl_c_or_its_reader(shop: Shop) -> None:
    def started(line: str, *flags: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            shop.world.command(*line.split(), "--watch", "1s", *flags),
            cwd=shop.world.path, env=shop.world.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    watched = {line: started(line, "--json") for line in VIEWS}
    for line, watching in watched.items():
        assert watching.stdout is not None
        first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
        watching.send_signal(signal.SIGINT)
        *_, last = watching.communicate(timeout=60)[0].splitlines()
        assert (watching.returncode, json.loads(last)["exit_code"]) == (99, 99), line
        assert second["at"] - first["at"] >= 1
        assert first["about"] == second["about"]
    piped = {line: started(line) for line in VIEWS}
    for line, reading in piped.items():
        assert reading.stdout is not None
        assert reading.stdout.readline()
        reading.stdout.close()
        assert reading.wait(timeout=60) == 0, f"the reader of {line} has seen enough"


def test_one_task_is_followed_from_its_queue_to_its_result(shop: Shop) -> None:
    waiting = shop.send("add", 8, 9, queue="nowhere")
    held, failed = shop.send("hold", "z"), shop.send("fail", 7)
    until(lambda: shop.ended(failed) and shop.inspect("active"))
    before = {key: shop.client.dump(key) for key in ("nowhere", f"celery-task-meta-{failed}")}
    place = shop.world.inv("task", waiting, "--json").json
    assert [(one["queue"], one["ahead"], one["args"]) for one in place["places"]] == [
        ("nowhere", 0, "(8, 9)")
    ]
    assert (place["name"], place["result"], place["holders"]) == ("shop.add", None, [])
    [holder] = shop.world.inv("task", held, "--json").json["holders"]
    assert (holder["node"], holder["task"], holder["doing"]) == ("one@here", "shop.hold", "active")
    assert abs(time.time() - holder["since_at"]) < 60
    shop.release("z")
    until(lambda: shop.ended(held))
    log = shop.world.path / "one.log"
    until(lambda: f"Task shop.hold[{held}] succeeded in " in log.read_text())
    text = shop.world.inv("task", held).out
    assert "result   SUCCESS on one@here" in text
    assert "in no queue and on no node" in text
    view = shop.world.inv("task", failed, "--json").json
    assert (view["result"]["state"], view["result"]["value"]) == ("FAILURE", "ValueError: no 7")
    assert before == {key: shop.client.dump(key) for key in before}
    taken = shop.world.inv("clean-queues", "--queue", "nowhere", "--yes", "--json")
    assert taken.code == 0, taken.err
    [archived] = shop.world.inv("task", waiting, "--json").json["archived"]
    assert (archived["queue"], archived["state"], archived["run"]) == (
        "nowhere",
        "taken",
        taken.json["run"],
    )
    nobody = shop.world.inv("task", "no-such-id")
    assert nobody.code == 1
    assert "in no queue and on no node" in nobody.out


def controlled(shop: Shop, *line: str) -> str:
    """Make a control after its dry run, which changes nothing; returns the run."""
    dry = shop.world.inv(*line, "--dry-run", "--json")
    assert (dry.code, dry.json.get("run")) == (0, None), dry.err
    done = shop.world.inv(*line, "--yes", "--json")
    assert done.code == 0, done.err
    assert [change["outcome"] for change in done.json["changes"]] == ["changed"] * len(
        dry.json["plan"]
    )
    again = shop.world.inv(*line, "--yes", "--json")
    assert "pool" in line or (again.code, again.json["plan"]) == (0, [])
    return str(done.json["run"])


def undone(shop: Shop, run: str) -> None:
    back = shop.world.inv("undo", run, "--yes")
    assert back.code == 0, back.err
    assert "Nothing left to undo." in shop.world.inv("undo", run, "--yes").out


def test_a_rate_limit_is_given_to_every_node_that_knows_the_task_and_undone(shop: Shop) -> None:
    def limits() -> list[Any]:
        return [
            task for node in ("one@here", "two@here") for task in shop.inspect("registered", node)
        ]

    before = limits()
    run = controlled(shop, "rate-limit", "shop.hold", "30/m")
    assert limits().count("shop.hold [rate_limit=30/m]") == 2
    undone(shop, run)
    run = controlled(shop, "rate-limit", "shop.add", "none", "--node", "two*")
    assert (limits().count("shop.add"), limits().count("shop.add [rate_limit=100/s]")) == (1, 1)
    shop.app.control.rate_limit("shop.add", "7/s", destination=["two@here"], reply=True)
    back = shop.world.inv("undo", run, "--yes")
    assert "it has been changed since" in back.out, back.out + back.err
    assert limits().count("shop.add [rate_limit=7/s]") == 1, "someone else has set it"
    shop.app.control.rate_limit("shop.add", "100/s", destination=["two@here"], reply=True)
    assert limits() == before


def test_a_pool_grows_and_shrinks_and_a_consumer_comes_and_goes(shop: Shop) -> None:
    def size(node: str) -> int:
        return len(shop.inspect("stats", node)["pool"]["processes"])

    busy = [shop.send("hold", name) for name in "gh"]
    until(lambda: len(shop.inspect("active")) == 2)
    grown = shop.world.inv("pool", "*@here", "--grow", "1", "--yes", "--json")
    assert (grown.code, size("one@here"), size("two@here")) == (0, 3, 2), grown.err
    assert [
        node["size"] for node in shop.world.inv("workers", "*@here", "--json").json["nodes"]
    ] == [3, 2]
    undone(shop, grown.json["run"])
    assert (size("one@here"), size("two@here")) == (2, 1)
    assert {one["id"] for one in shop.inspect("active")} == {*busy}, "an idle process was removed"
    shop.release(*"gh")
    until(lambda: shop.ended(*busy))
    assert {shop.app.AsyncResult(one).state for one in busy} == {"SUCCESS"}
    refused = shop.world.inv("pool", "two@here", "--shrink", "1", "--yes")
    assert refused.code == 2
    assert "two@here is not changed: its pool has 1 process, and one has to stay" in refused.err
    run = controlled(shop, "consumer", "two@here", "add", "work")
    assert {one["name"] for one in shop.inspect("active_queues", "two@here")} == {"rest", "work"}
    undone(shop, run)
    run = controlled(shop, "consumer", "two@here", "cancel", "rest")
    assert shop.inspect("active_queues", "two@here") == []
    undone(shop, run)
    assert [one["name"] for one in shop.inspect("active_queues", "two@here")] == ["rest"]


def test_a_node_is_kept_from_a_queue_whose_messages_it_would_discard(shop: Shop) -> None:
    shop.app.send_task("other.task", queue="foreign")
    done = shop.world.inv("consumer", "two@here", "add", "foreign", "--yes")
    assert done.code == 2
    assert (
        "messages of other.task wait in foreign, which it does not register: it would discard them"
        in done.err
    )
    assert [one["name"] for one in shop.inspect("active_queues", "two@here")] == ["rest"]
    wrong = shop.world.inv("consumer", "two@here", "add", "wrok", "--yes")
    assert wrong.code == 5
    assert "did you mean 'work'?" in wrong.err


def test_what_is_revoked_is_discarded_by_every_node(shop: Shop) -> None:
    holding = [shop.send("hold", name) for name in "pq"]
    until(lambda: len(shop.inspect("active")) == 2)
    waiting = [shop.send("add", n, n) for n in range(20)]
    plan = shop.world.inv("revoke", waiting[-1], "--dry-run").out
    assert "shop.add" in plan
    assert "this cannot be undone" in plan
    assert waiting[-1] not in shop.inspect("revoked")
    typed = shop.world.inv("revoke", ",".join((*waiting[-2:], holding[0])), "--yes")
    assert typed.code == 0, typed.err
    assert {*waiting[-2:]} <= set(shop.inspect("revoked")) & set(
        shop.inspect("revoked", "two@here")
    )
    meant = shop.world.inv("revoke", "--task", "shop.add", "--yes", "--json")
    assert meant.code == 0, meant.err
    revoked = set(meant.json["plan"][0]["do"]["ids"])
    assert revoked <= set(shop.inspect("revoked")) & set(shop.inspect("revoked", "two@here"))
    assert {shop.app.AsyncResult(one).state for one in revoked} == {"REVOKED"}, "at once"
    followed = shop.world.inv("task", waiting[-1], "--json").json
    assert followed["revoked_on"] == ["one@here", "two@here"]
    shop.release(*"pq")
    until(lambda: shop.ended(*holding, *waiting))
    until(lambda: shop.app.AsyncResult(holding[0]).result == "p")  # it was running
    states = {one: shop.app.AsyncResult(one).state for one in waiting}
    assert {states[one] for one in revoked} == {"REVOKED"}
    assert states[waiting[-1]] == "REVOKED"
    nothing_back = shop.world.inv("undo", meant.json["run"], "--yes").out
    assert "CANNOT be undone" in nothing_back


def test_a_name_that_two_answer_to_is_sent_nothing(shop: Shop) -> None:
    with worker(shop.world, "two", "rest", 1):
        for line in (
            ("shutdown", "two@here"),
            ("pool", "two@here", "--grow", "1"),
            ("rate-limit", "shop.hold", "9/s"),
        ):
            done = shop.world.inv(*line, "--yes")
            assert done.code == 2
            assert (
                "two@here is not changed: 2 processes answer to it, and each would do it"
                in done.err
            )
        [both] = shop.world.inv("workers", "two@here", "--json").json["nodes"]
        assert (both["twins"], len(both["pool_pids"])) == (2, 2)
        assert "shop.hold" not in both["rate_limits"]
    shop.world.inv("undo", "last", "--yes")


def test_a_node_ends_once_its_tasks_are_done(shop: Shop) -> None:
    held = shop.send("hold", "last", queue="end")
    with worker(shop.world, "three", "end", 1):
        until(lambda: bool(shop.inspect("active", "three@here")))
        done = shop.world.inv("shutdown", "three@here", "--yes", "--json")
        assert done.code == 0, done.err
        [change] = done.json["changes"]
        assert (
            change["result"]
            == "it takes no more messages and no longer answers; it ends after the tasks that ran on it (1)"
        )
        assert not shop.ended(held)
        shop.release("last")
        until(lambda: shop.ended(held))
    assert "CANNOT be undone" in shop.world.inv("undo", done.json["run"], "--yes").out


def failures(shop: Shop) -> dict[str, int]:
    """The failed tasks that do not belong to a group, each with its argument."""
    results = [
        json.loads(shop.client.get(key) or "") for key in shop.client.keys("celery-task-meta-*")
    ]
    failed = [of for of in results if of["status"] == "FAILURE" and "group_id" not in of]
    return {of["task_id"]: of["args"][0] for of in failed}


def test_what_failed_is_sent_again_once_though_the_run_is_killed_and_repeated(shop: Shop) -> None:
    sent = [shop.send("fail", n) for n in range(10, 16)]
    grouped = shop.send("fail", 99, group_id="some-group")
    until(lambda: shop.ended(*sent, grouped))
    failed, length = failures(shop), shop.client.llen("work")
    plan = shop.world.inv("retry", "--task", "shop.fail", "--dry-run", "--json")
    assert plan.code == 2
    assert "1 failure skipped: shop.fail belongs to a group or chord" in plan.err
    said = shop.world.inv("retry", "--task", "shop.fail", "--dry-run").out
    require_shown("tasks.md", "inv retry --task shop.fail --dry-run", said, numbers=False)
    [change] = plan.json["plan"]
    new = {row["id"]: row["new_id"] for row in change["messages"]}
    assert (set(new), shop.client.llen("work")) == (set(failed), length)
    assert change["do"]["ids"] == {after: before for before, after in new.items()}
    shop.client.set("repaired", 1)
    killed = subprocess.Popen(
        shop.world.command("retry", "--task", "shop.fail", "--per-second", "1", "--yes"),
        cwd=shop.world.path, env=shop.world.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: any(shop.client.hexists("ran", one) for one in new.values()))
    killed.kill()
    killed.wait()
    assert not all(shop.client.hexists("ran", one) for one in new.values())
    newest = max((shop.world.path / "state/runs").glob("*/work.messages.jsonl"))
    written = read(newest)
    assert {row(one, written, "")["id"] for one in written.messages.values()} == set(new.values())
    shop.client.delete("celery-runbooks:lock")  # it expires within a minute
    again = shop.world.inv("retry", "--task", "shop.fail", "--yes", "--json")
    assert again.code == 2, again.err
    until(lambda: shop.ended(*new.values()))
    assert {old: shop.app.AsyncResult(one).result for old, one in new.items()} == failed
    assert {shop.client.hget("ran", one) for one in new.values()} == {b"1"}
    nothing = shop.world.inv("retry", "--task", "shop.fail", "--yes", "--json")
    assert nothing.json["plan"] == []
    assert "sent again by run" in nothing.err
    elsewhere = ("retry", "--task", "shop.fail", "--state-dir", "elsewhere", "--yes", "--json")
    assert "the new task has a result" in shop.world.inv(*elsewhere).err
    assert (
        shop.world.inv("task", next(iter(new.values())), "--json")
        .json["archived"][0]["reason"]
        .startswith("sent again")
    )
    shop.client.delete("repaired")


def test_what_was_sent_again_and_still_waits_is_recalled_by_undo(shop: Shop) -> None:
    failed = shop.send("fail", 50)
    until(lambda: shop.ended(failed))
    holding = [shop.send("hold", name) for name in NAMES]
    until(lambda: shop.client.hlen("unacked") == shop.inspect("stats")["prefetch_count"])
    waiting = shop.client.llen("work")
    for other in (("--exception", "Key*"), ("--since", "0s")):
        none = shop.world.inv("retry", *other, "--task", "shop.fail", "--dry-run", "--json")
        assert none.json["plan"] == []
    done = shop.world.inv(
        "retry", "--exception", "Value*", "--since", "5m", "--task", "shop.fail", "--yes", "--json"
    )
    [change] = done.json["plan"]
    assert failed in change["do"]["ids"].values()
    assert shop.client.llen("work") == waiting + len(change["do"]["ids"]) > waiting
    undone(shop, done.json["run"])
    assert shop.client.llen("work") == waiting
    shop.release(*NAMES)
    until(lambda: shop.ended(*holding))


def test_what_was_taken_out_is_sent_again_once_and_is_not_put_back_besides(shop: Shop) -> None:
    holding = [shop.send("hold", name) for name in NAMES]
    until(lambda: shop.client.hlen("unacked") == shop.inspect("stats")["prefetch_count"])
    waiting = {shop.send("add", n, n, priority=3): n + n for n in range(3)}
    shop.send("add", 9, 9, group_id="a-group")
    taken = shop.world.inv(
        "clean-queues", "--queue", "work", "--task", "shop.add", "--yes", "--json"
    )
    assert taken.code == 0, taken.err
    shop.release(*NAMES)
    until(lambda: shop.ended(*holding))
    line = ("retry", "--archive", taken.json["run"], "--task", "shop.add")
    plan = shop.world.inv(*line, "--dry-run", "--json")
    assert (plan.code, plan.json.get("run")) == (2, None), plan.err
    assert (
        "1 message skipped: shop.add belongs to a group or chord, which would ignore the new task"
        in plan.err
    )
    [change] = plan.json["plan"]
    new = {row["id"]: row["new_id"] for row in change["messages"]}
    assert set(new) == set(waiting)
    sent = shop.world.inv(*line, "--per-second", "50", "--yes", "--json")
    assert sent.code == 2, sent.err
    until(lambda: shop.ended(*new.values()))
    assert {old: shop.app.AsyncResult(one).result for old, one in new.items()} == waiting
    again = shop.world.inv(*line, "--yes", "--json")
    assert again.json["plan"] == []
    assert f"3 messages skipped: sent again by run {sent.json['run']} already" in again.err
    back = shop.world.inv("archive.restore", taken.json["run"], "--id", ",".join(waiting), "--yes")
    assert "Nothing to restore" in back.out
    assert f"sent again under new ids by run {sent.json['run']}" in back.err
    undone_first = shop.world.inv("undo", taken.json["run"], "--yes")
    assert undone_first.code == 5
    assert (
        f"run {sent.json['run']} is newer, changed the same things and is not undone"
        in undone_first.err
    )
    wrong = shop.world.inv("retry", "--archive", sent.json["run"], "--yes")
    assert (wrong.code, "itself sent tasks again" in wrong.err) == (5, True)
    assert "name its run with --archive RUN" in shop.world.inv("retry", "--id", "x", "--yes").err
