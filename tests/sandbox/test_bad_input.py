"""Wrong input and a broker that is not as it should be: a clear error with what to do next, and
nothing changed.
"""

import http.client
import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest
import redis

from lab.redis_server import RedisServer, free_port
from runbooks.core.redaction import is_secret_name
from tests.sandbox.conftest import Done, World
from tests.sandbox.test_drained import until

BROKER = (
    "{{ lookup('file', inventory_dir ~ '/.sandbox/broker.url', errors='ignore') or"
    " undef(hint=not_up) }}"
)

EDITED = "# Managed by celery-runbooks for printer_inventory; edited\n"


def refused(done: Done, code: int, *texts: str) -> None:
    """The exit code, the error on stderr alone, and no traceback."""
    assert done.code == code, done.out + done.err
    for text in texts:
        assert text in done.err
    assert "Traceback" not in done.err + done.out


def test_a_missing_inventory_is_named_with_what_to_do(healthy: World) -> None:
    refused(
        healthy.inv("diagnose", "--inventory", "gone.yaml"),
        5,
        "gone.yaml: no such file",
        "--inventory FILE",
    )


def test_an_empty_name_does_not_lead_to_another_fleet(healthy: World) -> None:
    refused(
        healthy.inv("remediate", "--yes", "--inventory", ""),
        5,
        "--inventory is empty",
        "omit --inventory for inventory.yaml",
    )


def test_a_folder_without_runs_is_named(healthy: World) -> None:
    assert (
        "No runs are recorded in /no/where" in healthy.inv("runs", "--state-dir", "/no/where").out
    )


def test_an_inventory_that_is_not_yaml_is_reported_with_its_line(healthy: World) -> None:
    name = healthy.inventory(("celery_app: printer_inventory", "celery_app: [printer_inventory"))
    refused(healthy.inv("diagnose", "--inventory", name), 5, "changed.yaml:", "not valid YAML")


def test_all_mistakes_of_an_inventory_are_reported_at_once_with_their_lines(healthy: World) -> None:
    name = healthy.inventory(
        ("celery_beat: true", "celery_beet: true"),
        (
            "            concurrency: 2\n          - name: worker_low",
            "            concurency: 2\n          - name: worker_low",
        ),
        ("          host: sandbox\n", '          host: sandbox\n          schedule: "0 */6 * *"\n'),
    )
    lines = (healthy.path / name).read_text().splitlines()
    done = healthy.inv("diagnose", "--inventory", name)
    refused(
        done,
        5,
        f"changed.yaml:{line_of(lines, 'celery_beet')}: unknown variable 'celery_beet'; did you"
        " mean 'celery_beat'?",
        f"changed.yaml:{line_of(lines, 'concurency')}: celery_workers.0.concurency: unknown key; "
        "did you mean 'concurrency'?",
        f"changed.yaml:{line_of(lines, '0 */6 * *')}: celery_monitor.schedule: not a cron schedule",
    )


def line_of(lines: list[str], text: str) -> int:
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("", "--limit is empty"),
        ("[", "--limit '[' names nothing"),
        ("@no.txt", "cannot read the file: No such file"),
        ("sandbax", "did you mean 'sandbox'?"),
        ("all:!sandbox", "selects no host"),
    ],
)
def test_a_limit_that_selects_nothing_is_an_error(
    healthy: World, limit: str, expected: str
) -> None:
    refused(healthy.inv("diagnose", "--limit", limit), 5, expected)


def test_no_one_to_ask_and_no_yes_changes_nothing(healthy: World) -> None:
    refused(healthy.inv("remediate"), 5, "not a terminal", "--yes")
    assert not (healthy.root / "state").exists()


@pytest.mark.parametrize("verb", ["show", "undo", "archive.restore"])
def test_an_unknown_run_is_an_error_before_anybody_is_asked(verb: str, healthy: World) -> None:
    refused(healthy.inv(verb, "2019"), 5, "no run '2019'", "inv runs")


def test_a_state_directory_that_cannot_be_written_stops_before_any_change(healthy: World) -> None:
    unit = next((healthy.root / "root").rglob("celery-beat.service"))
    unit.write_text(EDITED)
    done = healthy.inv("install-units", "--yes", "--state-dir", "/proc/nowhere")
    refused(done, 2, "cannot be recorded in /proc/nowhere", "nothing was changed")
    assert unit.read_text() == EDITED
    assert healthy.inv("install-units", "--yes").code == 0
    assert "ExecStart=" in unit.read_text()
    assert healthy.inv("undo", "last", "--yes").code == 0
    assert unit.read_text() == EDITED
    assert healthy.inv("install-units", "--yes").code == 0


def test_an_interrupt_where_a_password_is_asked_for_ends_the_verb(healthy: World) -> None:
    done = healthy.terminal("verify", "--ask-become-pass", answers=[("become password", "\x03")])
    assert (done.code, "interrupted; nothing was changed" in done.out) == (99, True)


def test_a_regular_expression_that_is_invalid_is_an_error(healthy: World) -> None:
    refused(healthy.inv("tail-logs", "--grep", "["), 5, "--grep '[' is not a regular expression")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--lines", "0"), "--lines '0': expected a number of lines"),
        (("--lines", "many"), "--lines 'many'"),
        (("--since", "15 parsecs"), "--since '15 parsecs' is not a time"),
    ],
)
def test_a_number_or_a_time_that_is_not_one_is_an_error(
    healthy: World, flags: tuple[str, str], expected: str
) -> None:
    refused(healthy.inv("tail-logs", *flags), 5, expected)


def test_a_glob_that_no_file_matches_is_reported_with_what_there_is(healthy: World) -> None:
    refused(
        healthy.inv("render", "--only", "nginx*"),
        5,
        "--only 'nginx*'",
        "celery-beat.service",
        "celery.target",
    )


def test_a_mistake_in_a_template_of_ones_own_is_reported_with_its_file_and_line(
    healthy: World,
) -> None:
    own = healthy.path / "own/cron"
    own.mkdir(parents=True)
    (own / "celery.j2").write_text("{{ mark }}\n\n{{ setings.user }}\n")
    state, ours = "    runbooks_state_directory:", "    runbooks_templates_directory:"
    name = healthy.inventory((state, f"{ours} {own.parent}\n{state}"))
    refused(
        healthy.inv("render", "--inventory", name),
        5,
        f"template {own}/celery.j2:3: 'setings' is undefined",
    )
    refused(healthy.inv("remediate", "--yes", "--inventory", name), 5, f"{own}/celery.j2:3")
    name = healthy.inventory((state, f"{ours} /no/where\n{state}"))
    refused(
        healthy.inv("render", "--inventory", name),
        5,
        "changed.yaml:",
        "/no/where is not a folder",
    )


def test_a_reader_that_goes_away_does_not_trouble_the_verb(healthy: World) -> None:
    command = (
        " ".join(healthy.command("tail-logs", "--lines", "2000"))
        + " | head -n 1; exit ${PIPESTATUS[0]}"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=healthy.path,
        env=healthy.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def in_bash(world: World, line: str, *arguments: str) -> Done:
    """Run `inv` with the streams that the line gives it."""
    command = f"{shlex.join(world.command(*arguments))} {line}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=world.path,
        env=world.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "2>/dev/full", "<&-"])
def test_a_closed_stream_does_not_trouble_the_verb(healthy: World, closed: str) -> None:
    done = in_bash(healthy, closed, "hosts")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    "line",
    [
        *(
            "hosts",
            "hosts --json",
            "diagnose",
            "diagnose --json",
            "tail-logs",
            "tail-logs --json",
            "runs",
        ),
        "monitor --alerts",
    ],
)
def test_output_that_cannot_be_written_is_not_success(healthy: World, line: str) -> None:
    refused(
        in_bash(healthy, ">/dev/full", *line.split()),
        2,
        "cannot write the output: No space left on device",
        "→",
    )


def test_a_run_whose_output_cannot_be_written_is_done_and_recorded_all_the_same(
    healthy: World,
) -> None:
    unit = next((healthy.root / "root").rglob("celery-beat.service"))
    good = unit.read_text()
    unit.write_text(EDITED)
    refused(
        in_bash(healthy, ">/dev/full", "install-units", "--yes"),
        2,
        "cannot write the output",
        "inv runs",
    )
    assert unit.read_text() == good
    assert healthy.inv("runs", "--json").json["runs"][-1]["state"] == "ok"


# --- brokers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis_with(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts servers with options of the test's own, and ends them."""
    servers: list[RedisServer] = []

    def start(*args: str) -> RedisServer:
        servers.append(RedisServer.start(tmp_path / f"redis{len(servers)}", args=args))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def at_broker(world: World, url: str) -> str:
    return world.inventory((BROKER, url))


def test_a_broker_that_does_not_answer_is_exit_code_4_and_names_its_address(healthy: World) -> None:
    port = free_port()
    name = at_broker(healthy, f"redis://:hunter2@127.0.0.1:{port}/3")
    done = healthy.inv("remediate", "--yes", "--inventory", name)
    refused(done, 4, f"127.0.0.1:{port}")
    assert "hunter2" not in done.out + done.err


def test_a_wrong_password_is_refused_without_showing_it(
    healthy: World, redis_with: Callable[..., RedisServer]
) -> None:
    server = redis_with("--requirepass", "right")
    name = at_broker(healthy, f"redis://:hunter2@127.0.0.1:{server.port}/3")
    done = healthy.inv("remediate", "--yes", "--inventory", name)
    refused(done, 5, "password")
    assert "hunter2" not in done.out + done.err


def test_a_db_that_does_not_exist_is_refused(
    healthy: World, redis_with: Callable[..., RedisServer]
) -> None:
    name = at_broker(healthy, redis_with().url(99))
    refused(healthy.inv("remediate", "--yes", "--inventory", name), 5, "no such db")


def test_the_wrong_db_is_found_out_by_where_the_queues_are(healthy: World) -> None:
    with healthy.broker() as client:
        client.lpush("low_priority\x06\x167", b"a priority that no worker polls")
        url = (healthy.root / "broker.url").read_text()
        steps = (
            "celery_thresholds:",
            "celery_broker_options: {priority_steps: [0, 7]}\n        celery_thresholds:",
        )
        name = healthy.inventory((BROKER, f"{url.removesuffix('3')}9"), steps)
        done = healthy.inv("diagnose", "--inventory", name, "--json")
        client.delete("low_priority\x06\x167")
    findings = {finding["code"]: finding for finding in done.json["findings"]}
    assert findings["broker.other_db"]["subject"] == "db 3"
    assert "broker.not_the_workers" in findings
    assert "worker.not_answering" not in findings, "restarting them would not help"


def test_a_cluster_is_refused(healthy: World, redis_with: Callable[..., RedisServer]) -> None:
    name = at_broker(healthy, redis_with("--cluster-enabled", "yes").url(0))
    refused(healthy.inv("remediate", "--yes", "--inventory", name), 5, "Redis Cluster")


def test_a_replica_is_refused_and_its_master_named(
    healthy: World, redis_with: Callable[..., RedisServer]
) -> None:
    master = redis_with()
    replica = redis_with("--replicaof", "127.0.0.1", str(master.port))
    with redis.Redis(port=replica.port) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up")
    name = at_broker(healthy, replica.url(3))
    follows = f"is a replica: it follows 127.0.0.1:{master.port}, the link "
    expected = (
        follows,
        f"check who runs 127.0.0.1:{master.port} and since when",
        "if your workers should write there",
    )
    refused(healthy.inv("remediate", "--yes", "--inventory", name), 5, *expected)
    found = healthy.inv("diagnose", "--inventory", name)
    said = " ".join(found.out.split())
    assert (found.code, [text for text in expected if text not in said]) == (1, [])


# --- workers ----------------------------------------------------------------------------------------------------------


def test_a_status_command_that_answers_nonsense_leaves_its_service_alone_and_the_others_are_judged(
    healthy: World,
) -> None:
    confused = (
        "test {worker} != worker_high || { echo it depends; exit; }; ./workers_status.sh {worker}"
    )
    name = healthy.inventory(
        (" ./workers_status.sh {worker}", f" sh -c {confused!r}".replace('"', '\\"'))
    )
    done = healthy.inv("diagnose", "--inventory", name, "--json")
    assert done.code == 1, done.out
    (finding,) = (one for one in done.json["findings"] if one["severity"] == "error")
    assert (finding["code"], finding["subject"]) == ("service.untold", "worker_high on sandbox")
    assert finding["summary"].endswith(
        "because whether it runs is not known: its status command exited with 0 and printed: it depends"
    )
    seen = {
        check["what"]: check
        for check in healthy.inv("verify", "--inventory", name, "--json").json["checks"]
    }
    assert (seen["services run"]["ok"], seen["services run"]["seen"]) == (
        None, "3 of 4; not known: worker_high on sandbox"
    )  # fmt: skip
    left = healthy.inv("restart-workers", "--dry-run", "--inventory", name, "--json")
    assert left.code == 2
    assert not [change for change in left.json["plan"] if "worker_high" in change["summary"]]


def test_an_environment_path_that_is_a_folder_and_a_directory_that_is_missing_are_findings(
    healthy: World,
) -> None:
    (healthy.path / "folder.env").mkdir()
    name = healthy.inventory(("/.sandbox/app/printer_inventory.env", "/folder.env"))
    done = healthy.inv("diagnose", "--inventory", name, "--json")
    assert done.code == 1
    codes = [finding["code"] for finding in done.json["findings"]]
    assert "environment.is_folder" in codes
    assert not [code for code in codes if code.startswith(("host.", "worker.not", "service."))], (
        codes
    )
    name = healthy.inventory(("/lab/patient", "/lab/nobody"))
    done = healthy.inv("diagnose", "--inventory", name, "--json")
    codes = [finding["code"] for finding in done.json["findings"] if finding["severity"] == "error"]
    assert (done.code, codes[0]) == (1, "host.no_directory"), codes
    assert "service.untold" not in codes


@contextmanager
def started_again(world: World) -> Iterator[None]:
    """What a test has stopped runs again after it."""
    try:
        yield
    finally:
        done = world.inv("remediate", "--yes")
        assert done.code == 0, done.out + done.err


def test_a_start_command_that_fails_ends_the_run_with_what_it_said(healthy: World) -> None:
    name = healthy.inventory(
        ("./start_workers.sh {worker}", "false {worker}; echo cannot fork >&2; exit 3")
    )
    with started_again(healthy):
        done = healthy.inv("restart-workers", "--yes", "--inventory", name, "--json")
    assert done.code == 2
    first, *others = done.json["changes"]
    assert (first["outcome"], first["result"].splitlines()[0]) == (
        "failed",
        "exit code 3: cannot fork",
    )
    assert {other["outcome"] for other in others} == {"skipped"}


@pytest.mark.parametrize(
    ("command", "verb"),
    [
        ("./start_workers.sh {worker}", ("restart-workers", "--yes")),
        ("./workers_status.sh {worker}", ("diagnose",)),
        ("./workers_status.sh {worker}", ("restart-workers", "--yes")),
        ("./workers_status.sh {worker}", ("undo", "last", "--yes")),
        ("manage.py sync_glpi --limit 1 --force", ("verify",)),
    ],
)
def test_a_command_of_a_host_that_prints_its_environment_shows_no_secret(
    healthy: World, command: str, verb: tuple[str, ...]
) -> None:
    values = dict(
        line.split("=", 1) for line in healthy.env_file.read_text().splitlines() if "=" in line
    )
    secrets = {value for name, value in values.items() if is_secret_name(name)}
    assert secrets
    tells = (
        f"/dev/null {{worker}}; cat {healthy.env_file}; cat {healthy.env_file} >&2; echo shown; echo"
        " shown >&2; false"
    )
    name = healthy.inventory((command, tells))
    with started_again(healthy) if "start" in command else nullcontext():
        done = healthy.inv(*verb, "--inventory", name)
        said = done.out + done.err + healthy.inv("show", "last").out
    assert (done.code != 0, "shown" in said, "********" in said) == (True, True, True), said
    assert not [secret for secret in secrets if secret in said]


def test_workers_that_never_come_back_are_reported_each_with_its_state(healthy: World) -> None:
    name = healthy.inventory(
        ("./start_workers.sh {worker}", "true {worker}"),
        ("celery_start_timeout: 60s", "celery_start_timeout: 1s"),
    )
    with started_again(healthy):
        done = healthy.inv("restart-workers", "--yes", "--inventory", name)
    assert done.code == 2
    for worker in ("worker_high", "worker_low", "worker_daemon", "beat"):
        assert f"second look still finds: start {worker}: it is not running" in done.out


def test_a_task_that_no_code_defines_blocks_a_remediation_before_any_change(healthy: World) -> None:
    name = healthy.inventory(
        (
            "- inventory.tasks.poll_printer\n",
            "- inventory.tasks.poll_printer\n          - inventory.tasks.gone\n",
        )
    )
    done = healthy.inv("remediate", "--yes", "--inventory", name)
    refused(done, 2, "nothing was changed", "inventory.tasks.gone")


def test_a_broker_that_the_workers_do_not_use_is_found_out_before_they_are_restarted(
    healthy: World,
) -> None:
    url = (healthy.root / "broker.url").read_text()
    name = at_broker(healthy, url.removesuffix("3") + "7")
    done = healthy.inv("remediate", "--yes", "--inventory", name)
    refused(done, 2, "nothing was changed", "do not answer at")
    assert "broker.not_the_workers" in done.out
    assert "is at 127.0.0.1:" in done.out


def glpi(world: World, behaviour: dict[str, object]) -> None:
    """Make the stand-in fail, or well again."""
    port = int((world.root / "glpi.port").read_text())
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("PUT", "/lab/behaviour", json.dumps(behaviour))
        with connection.getresponse() as response:
            assert response.status < 300


def test_a_canary_that_failed_is_run_again_until_it_succeeds(healthy: World) -> None:
    until(lambda: healthy.inv("verify").code == 0)  # the canary runs where all else is well
    name = healthy.inventory(
        ("celery_probes:", "no_probes:")
    )  # these would fail before the canary does
    unit = next((healthy.root / "root").rglob("celery-beat.service"))
    unit.write_text(EDITED)
    with healthy.broker() as client:
        glpi(healthy, {"fail": 500})
        for _ in range(2):
            failed = healthy.inv("remediate", "--yes", "--json", "--inventory", name)
            assert failed.code == 2
            assert failed.json["changes"][-1]["outcome"] == "failed", failed.out
            assert "RETRY" in failed.json["changes"][-1]["result"]
        glpi(healthy, {"fail": None})
        # Messages of other applications are reported, and do not fail the run.
        client.lpush("orphans", a_message())
        again = healthy.inv("remediate", "--yes", "--json", "--inventory", name)
        assert (again.code, again.json["plan"]) == (0, [])
        assert again.json["changes"][-1]["outcome"] == "changed"
        assert (
            healthy.inv("remediate", "--yes", "--json", "--inventory", name).json.get("changes")
            is None
        )
        verified = healthy.inv("verify", "--inventory", name)
        assert (verified.code, "1 warning that remediate cannot fix" in verified.out) == (
            0,
            True,
        ), verified.out
        client.delete("orphans")


def test_what_a_failed_canary_says_is_freed_of_secrets_before_it_is_shown_and_written_down(
    healthy: World,
) -> None:
    (token,) = [
        line.partition("=")[2]
        for line in healthy.env_file.read_text().splitlines()
        if "APP_TOKEN=" in line
    ]
    canary = "celery_canary:\n          task: {}\n"
    name = healthy.inventory(
        (
            canary.format("integrations.tasks.check_all_devices_in_glpi"),
            canary.format("inventory.tasks.poll_printer") + f'          kwargs: {{"{token}": 1}}\n',
        )
    )
    next((healthy.root / "root").rglob("celery-beat.service")).write_text(EDITED)
    failed = healthy.inv("remediate", "--yes", "--json", "--inventory", name)
    assert failed.code == 2
    assert "unexpected keyword argument" in failed.json["changes"][-1]["result"], failed.out
    journal = healthy.root / "state/runs" / failed.json["run"] / "journal.jsonl"
    assert token not in json.dumps(failed.json["changes"]) + failed.err + journal.read_text()
    assert healthy.inv("remediate", "--yes").code == 0


def a_message() -> str:
    """What Celery itself would queue."""
    properties = {
        "delivery_tag": "t",
        "delivery_info": {"exchange": "", "routing_key": "orphans"},
        "body_encoding": "base64",
    }
    headers = {
        "task": "another.app.task",
        "id": "1",
        "retries": 0,
        "eta": None,
        "expires": None,
        "lang": "py",
    }
    envelope = {
        "body": "W1tdLCB7fSwge31d",
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }
    return json.dumps({**envelope, "headers": headers, "properties": properties})


@contextmanager
def held_by_another(world: World) -> Iterator[None]:
    """The fleet's lock is alice's."""
    holder = {
        "user": "alice", "hostname": "bastion", "pid": 1, "process_start": "1", "machine": "another",
        "run_id": "20200101-000000-aaaa", "verb": "remediate", "since_at": time.time() - 42,
    }  # fmt: skip
    with world.broker() as client:
        client.set("celery-runbooks:lock", json.dumps(holder), px=60_000)
        try:
            yield
        finally:
            client.delete("celery-runbooks:lock")


def test_another_operator_is_named_and_nothing_is_changed(healthy: World) -> None:
    with held_by_another(healthy):
        refused(
            healthy.inv("restart-workers", "--yes"), 8, "alice on bastion", "20200101-000000-aaaa"
        )
        ran = healthy.inv("run-task", "check-glpi")
        assert (ran.code, "SUCCESS" in ran.out) == (0, True), "a task changes nothing of the fleet"
        assert healthy.inv("runs", "--json").json["runs"][-1]["verb"] == "run-task"


def test_a_run_that_may_still_go_on_is_not_marked_as_one_that_needs_no_undoing(
    healthy: World,
) -> None:
    unit = next((healthy.root / "root").rglob("celery-beat.service"))
    good = unit.read_text()
    unit.write_text(EDITED)
    assert healthy.inv("install-units", "--yes").code == 0
    unit.write_text(EDITED)
    with held_by_another(healthy):
        refused(healthy.inv("undo", "last", "--yes"), 8, "alice on bastion")
    assert healthy.inv("runs", "--json").json["runs"][-1]["state"] == "ok"
    assert healthy.inv("undo", "last", "--yes").code == 0
    assert healthy.inv("runs", "--json").json["runs"][-1]["state"] == "undone"
    unit.write_text(good)
