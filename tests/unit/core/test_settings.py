"""The inventory variables: every mistake is reported with its line, and no secret is shown."""

from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest

from runbooks.core.errors import InventoryError
from runbooks.core.fleet import Fleet
from runbooks.core.redaction import HIDDEN, is_secret_name, redact
from runbooks.core.rules import MALFORMED
from runbooks.inventory.build import build_fleet
from runbooks.inventory.read import load_inventory

BASE = """\
all:
  hosts:
    web1:
  vars:
    celery_app: shop
    celery_broker_url: redis://:hunter2@broker:6379/0
    celery_directory: /srv/shop
    celery_python: /srv/shop/bin/python
    celery_user: deploy
    celery_env_file: /etc/shop.env
    celery_service_manager: commands
    celery_commands: {start: a, stop: b, status: c}
"""
FIRST = BASE.count("\n") + 1
"""The line of the first variable that a test adds."""


def fleet_of(tmp_path: Path, more: str = "", base: str = BASE) -> Fleet:
    path = tmp_path / "inventory.yaml"
    path.write_text(base + indent(dedent(more), "    "))
    inventory = load_inventory(path)
    return build_fleet(inventory, tuple(inventory.hosts))


def problems(tmp_path: Path, more: str = "", base: str = BASE) -> list[str]:
    """The reported problems, as `LINE: what`."""
    with pytest.raises(InventoryError) as caught:
        fleet_of(tmp_path, more, base)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    return [
        problem.removeprefix(f"{tmp_path / 'inventory.yaml'}:") for problem in caught.value.problems
    ]


def test_the_least_inventory_makes_a_fleet_with_the_documented_defaults(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path)
    (host,) = fleet.hosts
    assert (fleet.app.app, fleet.queues, fleet.rules, fleet.state_directory) == (
        "shop",
        (),
        (MALFORMED,),
        None,
    )
    assert (host.settings.unit_directory, host.settings.cron_directory) == (
        "/etc/systemd/system",
        "/etc/cron.d",
    )
    unnamed = fleet_of(tmp_path, base=BASE[: BASE.index("    celery_service_manager")])
    assert unnamed.hosts[0].settings.service_manager == "systemd"
    assert (host.settings.start_timeout, host.settings.stop_timeout, host.services) == (
        90.0,
        60.0,
        (),
    )


def test_a_worker_without_a_queue_is_refused(tmp_path: Path) -> None:
    text = "celery_workers: [{name: a, queues: []}]"
    assert problems(tmp_path, text) == [f"{FIRST}: celery_workers.0.queues: expected at least one"]


def test_what_celery_would_take_for_several_queues_or_for_one_word_is_refused(
    tmp_path: Path,
) -> None:
    text = """\
        celery_workers:
          - name: a
            queues: ["high,low"]
            options: ["-O fair", "--pool=solo", -O, fair, "--pidfile=/a b", "--pool solo"]
        """
    assert problems(tmp_path, text) == [
        (
            f"{FIRST + 2}: celery_workers.0.queues.0: the worker would read 'high,low' as several"
            " queues: write a list, [high,low]"
        ),
        (
            f"{FIRST + 3}: celery_workers.0.options.0: the worker would read '-O fair' as one word:"
            " write [-O, fair]"
        ),
        (
            f"{FIRST + 3}: celery_workers.0.options.5: the worker would read '--pool solo' as one"
            " word: write [--pool, solo]"
        ),
    ]


def test_what_is_left_out_of_a_nested_map_has_its_documented_default(tmp_path: Path) -> None:
    text = """\
        celery_workers: [{name: a, queues: [q]}]
        celery_queue_rules: [{reason: r, queue: q}]
        celery_canary: {task: t, queue: q}
        """
    fleet = fleet_of(tmp_path, text)
    assert fleet.hosts[0].settings.workers[0].concurrency == 1
    assert (fleet.rules[0].task, fleet.rules[0].expired, fleet.rules[0].retries_over) == (
        "*",
        False,
        None,
    )
    limits, canary = fleet.app.thresholds, fleet.app.canary
    assert (limits.depth, limits.retries, limits.eta_overdue) == (15000, 2, 3600)
    assert canary is not None
    assert (canary.priority, canary.kwargs, canary.timeout) == (0, {}, 120)
    options = fleet.app.broker_options
    assert options.priority_steps == (0, 3, 6, 9)  # kombu's
    assert (options.sep, options.visibility_timeout) == ("\x06\x16", 3600)
    assert fleet.app.unpack_limit == 16


def test_the_way_through_sentinels_is_as_kombu_takes_it_and_its_password_is_never_shown(
    tmp_path: Path,
) -> None:
    options = fleet_of(
        tmp_path,
        "celery_broker_options: {master_name: incident, sentinel_kwargs: {username: ops, password:"
        " hunter2}}",
    ).app.broker_options
    assert "hunter2" not in repr(options)
    taken = options.transport_options()
    assert (taken["master_name"], taken["sentinel_kwargs"]) == (
        "incident",
        {"username": "ops", "password": "hunter2"},
    )
    plain = fleet_of(tmp_path).app.broker_options.transport_options()
    assert set(plain) == {"global_keyprefix", "sep", "priority_steps", "visibility_timeout"}


@pytest.mark.parametrize(
    ("key", "value"), [("priority", 10), ("priority", -1), ("priority", "high")]
)
def test_a_canarys_priority_is_one_that_the_broker_knows(
    tmp_path: Path, key: str, value: object
) -> None:
    (problem,) = problems(tmp_path, f"celery_canary: {{task: t, queue: q, {key}: {value}}}")
    assert problem.startswith(f"{FIRST}: celery_canary.{key}: ")


def test_a_worker_needs_a_queue_and_a_process(tmp_path: Path) -> None:
    found = problems(tmp_path, "celery_workers: [{name: a, queues: [], concurrency: 0}]")
    assert [line.split(": ")[1] for line in found] == [
        "celery_workers.0.queues",
        "celery_workers.0.concurrency",
    ]


def test_hosts_that_are_not_selected_are_left_out_but_their_queues_are_known(
    tmp_path: Path,
) -> None:
    text = BASE.replace(
        "    web1:\n", "    web1: {celery_workers: [{name: a, queues: [x]}]}\n    web2:\n"
    )
    path = tmp_path / "inventory.yaml"
    path.write_text(text)
    fleet = build_fleet(load_inventory(path), ("web2",))
    assert [host.name for host in fleet.hosts] == ["web2"]
    assert fleet.queues == ("x",)


def test_the_host_behind_which_the_broker_is_belongs_to_the_fleet(tmp_path: Path) -> None:
    tunnel = fleet_of(tmp_path, "celery_broker_tunnel: web1").tunnel
    assert tunnel
    assert tunnel.name == "web1"
    (problem,) = problems(tmp_path, "celery_broker_tunnel: web9")
    assert "celery_broker_tunnel: 'web9' is not a host of this fleet; did you mean" in problem


def test_hosts_without_the_application_are_not_part_of_the_fleet(tmp_path: Path) -> None:
    text = BASE.replace("all:\n", "db:\n  hosts: {db1: }\nx:\n", 1)
    assert [host.name for host in fleet_of(tmp_path, base=text).hosts] == ["web1"]


def test_an_inventory_without_any_application_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, base="all:\n  hosts: {web1: }\n")
    assert problem == " no host has celery_app, so there is nothing to check"


# --- validators


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("90s", 90),
        ("15m", 900),
        ("1h", 3600),
        ("2d", 172800),
        ("1.5 h", 5400),
        ("0", 0),
    ],
)
def test_a_duration_is_seconds_or_carries_its_unit(
    tmp_path: Path, text: str, seconds: float
) -> None:
    assert (
        fleet_of(tmp_path, f"celery_start_timeout: {text}").hosts[0].settings.start_timeout
        == seconds
    )


@pytest.mark.parametrize(
    "text", ["yes", "soon", "1w", "'90'", "-5", "-1h", ".inf", ".nan", "[1]", "~", "1h30m"]
)
def test_anything_else_is_not_a_duration(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, f"celery_start_timeout: {text}")
    assert problem.startswith(f"{FIRST}: celery_start_timeout: ")
    assert "e.g. 15m" in problem


def test_messages_are_moved_only_to_where_a_worker_gets_them(tmp_path: Path) -> None:
    rule = "celery_queue_rules:\n  - queue: a\n    requeue_to: lwo:5"
    workers = "celery_workers: [{name: w, queues: [low]}]"
    (problem,) = problems(tmp_path, f"{workers}\n{rule}")
    assert (
        problem
        == f"{FIRST + 3}: celery_queue_rules.0.requeue_to: no worker consumes 'lwo'; did you mean"
        " 'low'?"
    )


def test_a_rule_may_name_queues_by_patterns(tmp_path: Path) -> None:
    fleet = fleet_of(
        tmp_path,
        "celery_workers: [{name: w, queues: [low]}]\ncelery_queue_rules: [{queue: 'l*,old'}]",
    )
    assert fleet.queues == ("low", "old")


@pytest.mark.parametrize(("text", "number"), [("'>2'", 2), ("'> 10'", 10), ("'>0'", 0)])
def test_retries_are_given_as_more_than_a_number(tmp_path: Path, text: str, number: int) -> None:
    fleet = fleet_of(tmp_path, f"celery_queue_rules: [{{reason: r, queue: q, retries: {text}}}]")
    assert fleet.rules[0].retries_over == number


@pytest.mark.parametrize("text", ["2", "'2'", "'>=2'", "'<2'", "'>-1'", "'>two'", "yes"])
def test_retries_without_the_sign_are_refused_for_they_could_mean_both(
    tmp_path: Path, text: str
) -> None:
    (problem,) = problems(
        tmp_path, f"celery_queue_rules:\n  - reason: r\n    queue: q\n    retries: {text}"
    )
    assert problem == f"{FIRST + 3}: celery_queue_rules.0.retries: write it as '>N', e.g. '>2'"


@pytest.mark.parametrize(
    "name", ["directory", "python", "env_file", "unit_directory", "cron_directory"]
)
@pytest.mark.parametrize("value", ["srv/shop", "~/shop", "./x", "''"])
def test_a_path_must_be_absolute(tmp_path: Path, name: str, value: str) -> None:
    base = "".join(line for line in BASE.splitlines(keepends=True) if f"celery_{name}:" not in line)
    (problem,) = problems(tmp_path, f"celery_{name}: {value}", base)
    assert f"celery_{name}: must be an absolute path" in problem


@pytest.mark.parametrize(
    "schedule", ["0 */6 * * *", "*/5 0-6,22 1 jan MON-fri", "0 0 * * 7", "@daily"]
)
def test_a_cron_schedule_is_what_cron_takes(tmp_path: Path, schedule: str) -> None:
    fleet = fleet_of(
        tmp_path, f"celery_cron: [{{schedule: '{schedule}', user: deploy, command: 'true'}}]"
    )
    assert fleet.hosts[0].settings.cron[0].schedule == schedule


@pytest.mark.parametrize(
    "schedule",
    [
        '"* * * *"', '"60 * * * *"', '"0 0 0 * * *"', '"hourly"', '""', '"* * * * 8"', '"*/0 * * * *"',
        '"0 0 L * *"', '"0 0 LW * *"', '"0 0 * * 5L"', '"0 0 * * 5#2"',  # cronsim takes these, cron does not
        r'"0 0 * *\n*"', r'"0 0 * * *\n"',  # a line break would be two lines of the cron file
    ],
)  # fmt: skip
def test_a_schedule_that_cron_would_not_take_is_refused(tmp_path: Path, schedule: str) -> None:
    (problem,) = problems(
        tmp_path, f"celery_cron:\n  - user: deploy\n    command: ls\n    schedule: {schedule}"
    )
    assert problem.startswith(f"{FIRST + 3}: celery_cron.0.schedule: not a cron schedule")


def test_environment_variables_need_names_that_a_shell_knows(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "celery_env: {GLPI-URL: x}")
    assert "'GLPI-URL' is not the name of an environment variable" in problem


@pytest.mark.parametrize(
    "name",
    [
        "DJANGO_SECRET_KEY",
        "GLPI_APP_TOKEN",
        "db_password",
        "API_KEY",
        "APIKEY",
        "SSH_KEY",
        "SENTRY_DSN",
    ],
)
def test_a_secret_does_not_belong_into_the_inventory(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, f"celery_env: {{{name}: hunter2}}")
    assert f"'{name}' looks like a secret" in problem


@pytest.mark.parametrize(
    "name", ["SMTP_PASS", "DB_PWD", "HTTP_AUTH", "CHAT_WEBHOOK_URL", "SSH_PASSPHRASE"]
)
def test_what_is_hidden_everywhere_by_its_name_is_refused_by_the_same_list(
    tmp_path: Path, name: str
) -> None:
    (problem,) = problems(tmp_path, f"celery_env: {{{name}: hunter2}}")
    assert f"'{name}' looks like a secret" in problem


def test_a_name_of_the_operators_own_is_one_of_that_list(tmp_path: Path) -> None:
    assert fleet_of(tmp_path, "celery_env: {LICENCE_NR: x}").hosts[0].settings.env == {
        "LICENCE_NR": "x"
    }
    (problem,) = problems(tmp_path, "celery_secret_names: [licence]\ncelery_env: {LICENCE_NR: x}")
    assert "'LICENCE_NR' looks like a secret" in problem
    (problem,) = problems(tmp_path, "celery_secret_names: ['a*']")
    assert "'a*' is not a part of a variable's name" in problem


def test_a_value_that_looks_like_a_secret_is_refused_under_any_name(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "celery_env: {PAYMENTS: sk_live_4eC39HqLyjWDarjtT1}")
    assert "'PAYMENTS' holds a secret" in problem


@pytest.mark.parametrize(
    "value",
    ["redis://:hunter2@cache:6379/1", "amqp://me:hunter2@mq", "postgres+pg://u:hunter2@db/x"],
)
def test_a_password_in_a_url_does_not_belong_into_the_inventory_either(
    tmp_path: Path, value: str
) -> None:
    (problem,) = problems(tmp_path, f"celery_env: {{CACHE_URL: '{value}'}}")
    assert "CACHE_URL" in problem
    assert "holds a secret" in problem
    assert "hunter2" not in problem


def test_a_url_without_a_password_may_stand_in_the_inventory(tmp_path: Path) -> None:
    (host,) = fleet_of(
        tmp_path, "celery_env: {CACHE_URL: 'redis://me@cache:6379/1', T: '12:30@x'}"
    ).hosts
    assert host.settings.env["CACHE_URL"] == "redis://me@cache:6379/1"


@pytest.mark.parametrize("name", ["GLPI_TIMEOUT_S", "KEYBOARD", "DATABASE_PATH", "MONKEYS"])
def test_a_harmless_name_is_not_a_secret(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("value", [r'"a\nb"', r'"a\tb"', r'"\0"', r'"x\x7f"'])
def test_a_value_for_a_file_is_one_line_without_control_characters(
    tmp_path: Path, value: str
) -> None:
    reported = problems(tmp_path, f"celery_workers:\n  - name: a\n    queues:\n      - {value}")
    assert any(
        problem.startswith(f"{FIRST + 3}: celery_workers.0.queues.0: must be one line")
        for problem in reported
    )


def test_a_queue_has_a_name_but_an_environment_variable_may_be_empty(tmp_path: Path) -> None:
    problem, *_ = problems(tmp_path, "celery_workers: [{name: a, queues: ['']}]")
    assert problem == f"{FIRST}: celery_workers.0.queues.0: must not be empty"
    assert fleet_of(tmp_path, "celery_env: {GLPI_PROXY: ''}").hosts[0].settings.env == {
        "GLPI_PROXY": ""
    }


@pytest.mark.parametrize("name", ["beat", "a b", "a@b", "''", "ä", "a/b", '"$(id)"'])
def test_a_workers_name_is_plain(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, f"celery_workers: [{{name: {name}, queues: [q]}}]")
    assert problem.startswith(f"{FIRST}: celery_workers.0.name: a worker's name has")


def test_two_workers_of_one_name_on_one_host_are_refused(tmp_path: Path) -> None:
    (problem,) = problems(
        tmp_path, "celery_workers: [{name: a, queues: [x]}, {name: a, queues: [y]}]"
    )
    assert problem.startswith(f"{FIRST}: celery_workers: ")
    assert "'a'" in problem


TWO = "celery_workers: [{name: a, queues: [q]}, {name: b, queues: [q]}]\n"
PATTERN = "celery_workers: [{name: a, queues: [q], node: 'a@*'}]"
NO_COMMANDS = BASE[: BASE.index("    celery_commands")]


@pytest.mark.parametrize(
    ("commands", "more", "where", "what"),
    [
        ("start: './x {wroker}'", "", ".start", "unknown placeholder {wroker}; use {worker}, {node}, {queues}"),
        ("status: './x {host}'", "", ".status", "unknown placeholder {host}"),
        ("start: './x {worker}', stop: ./y", TWO, "", "`start` acts on one service"),
        ("start: './x {node}'", "celery_beat: true", "", "`start` also runs for beat, which has no {node}"),
        ("start: './x {node}'", PATTERN, "", "`start` has {node}, but a@* is a pattern"),
        ("go: ./x", "", ".go", "unknown key"),
    ],
)  # fmt: skip
def test_a_command_that_would_do_something_else_is_reported_with_its_line(
    tmp_path: Path, commands: str, more: str, where: str, what: str
) -> None:
    (problem,) = problems(tmp_path, f"celery_commands: {{{commands}}}\n{more}", NO_COMMANDS)
    assert problem.startswith(f"{FIRST - 1}: celery_commands{where}: {what}"), problem


def test_commands_are_left_out_where_nothing_uses_them(tmp_path: Path) -> None:
    (host,) = fleet_of(tmp_path, TWO, NO_COMMANDS).hosts
    assert (host.known_from_processes, host.together) == (True, ())
    assert host.why_not("restart") == "celery_commands has no `stop` and no `start`"
    (host,) = fleet_of(
        tmp_path, f"{TWO}celery_commands: {{start: ./x, stop: ./y}}", NO_COMMANDS
    ).hosts
    assert (host.known_from_processes, host.together, host.why_not("restart")) == (
        True,
        ("a", "b"),
        "",
    )


SYSTEMD = BASE[: BASE.index("    celery_service_manager")]


@pytest.mark.parametrize(
    ("worker", "what"),
    [
        ("unit: celery", ".unit: 'celery' is not the name of a service unit; write it in full"),
        ("unit: celery@.service", ".unit: celery@.service is a template: name one of its instances"),
        ("unit: celery-worker@a.service", ".unit: celery-worker@a.service is a unit that this tool installs"),
        ("unti: celery.service", ".unti: unknown key; did you mean 'unit'?"),
        ("service: high", ": 'a' has a `service`, but systemd needs a `unit`"),
        ("node: w1@web1", ": 'a' has a `node`, but this tool's unit names the node"),
        ("unit: c.service, node: w1", ".node: 'w1' is not the name of a node"),
        ("unit: c.service, node: 'w1@%i'", ".node: unknown placeholder %i"),
    ],
)  # fmt: skip
def test_what_would_name_no_unit_or_node_is_reported(
    tmp_path: Path, worker: str, what: str
) -> None:
    (problem,) = problems(
        tmp_path, f"celery_workers: [{{name: a, queues: [q], {worker}}}]", SYSTEMD
    )
    where = "celery_workers" if what.startswith(":") else "celery_workers.0"
    assert problem.partition(": ")[2].startswith(f"{where}{what}"), problem


def test_a_worker_may_be_an_instance_of_a_template_and_two_may_share_a_unit(tmp_path: Path) -> None:
    text = (
        "celery_workers: [{name: a, queues: [q], unit: c@1.service}, {name: b, queues: [q], unit:"
        " c@%s.service}]"
    )
    assert fleet_of(tmp_path, text % 2, SYSTEMD).hosts[0].services == ("c@1.service", "c@2.service")
    host = fleet_of(tmp_path, text % 1, SYSTEMD).hosts[0]
    assert (host.services, host.nodes_of("c@1.service")) == (("c@1.service",), ("a@web1", "b@web1"))


def test_with_commands_a_worker_has_a_service_and_a_node_and_no_unit(tmp_path: Path) -> None:
    text = "celery_workers: [{name: a, queues: [q], service: prio.high, node: 'celery@*'}]"
    assert fleet_of(tmp_path, text).hosts[0].services == ("prio.high",)
    (twice,) = problems(
        tmp_path, "celery_workers: [{name: a, queues: [q]}, {name: b, queues: [q], service: a}]"
    )
    assert "two workers have the service 'a'; each needs its own" in twice
    (problem,) = problems(tmp_path, "celery_workers: [{name: a, queues: [q], unit: c.service}]")
    assert "'a' has a `unit`, but commands needs a `service`" in problem


def test_beat_may_have_a_unit_where_it_runs(tmp_path: Path) -> None:
    text = "celery_beat: true\ncelery_beat_unit: celerybeat.service"
    assert fleet_of(tmp_path, text, SYSTEMD).hosts[0].services == ("celerybeat.service",)
    (problem,) = problems(tmp_path, "celery_beat_unit: celerybeat.service", SYSTEMD)
    assert problem.endswith("celery_beat_unit: it needs `celery_beat: true` and systemd")


def test_under_supervisord_what_exists_is_a_service_and_files_go_where_debian_has_them(
    tmp_path: Path,
) -> None:
    under = "celery_service_manager: supervisor\n"
    worker = "celery_workers: [{name: a, queues: [q], service: 'low:low_00', node: 'a@*'}]"
    text = f"{under}celery_beat: true\ncelery_beat_service: 'low:beat'\n{worker}"
    host = fleet_of(tmp_path, text, SYSTEMD).hosts[0]
    assert (host.services, host.own_services) == (("low:low_00", "low:beat"), ())
    assert host.settings.unit_directory == "/etc/supervisor/conf.d"
    assert host.settings.supervisor.conf == "/etc/supervisor/supervisord.conf"
    (problem,) = problems(tmp_path, f"{under}celery_beat_service: beat1", SYSTEMD)
    assert problem.endswith(
        "celery_beat_service: it needs `celery_beat: true` and supervisord or Docker"
    )
    (problem,) = problems(
        tmp_path, f"{under}celery_workers: [{{name: a, queues: [q], unit: c.service}}]", SYSTEMD
    )
    assert "'a' has a `unit`, but supervisor needs a `service`" in problem


def test_containers_that_a_pattern_finds_take_no_variables(tmp_path: Path) -> None:
    by_name = "celery_service_manager: docker\ncelery_docker: {containers: 'shop_{worker}_*'}\n"
    assert fleet_of(tmp_path, by_name, SYSTEMD).hosts
    (problem,) = problems(tmp_path, f"{by_name}celery_env: {{TIMEOUT: '30'}}", SYSTEMD)
    assert "celery_env needs a Compose project in celery_docker" in problem


@pytest.mark.parametrize("value", ["state", "5", "[a]", "''"])
def test_the_state_directory_must_be_an_absolute_path_too(tmp_path: Path, value: str) -> None:
    (problem,) = problems(tmp_path, f"runbooks_state_directory: {value}")
    assert problem.startswith(f"{FIRST}: runbooks_state_directory: must be an absolute path")


def test_the_directory_of_ones_own_templates_has_to_be_there(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "runbooks_templates_directory: templates")
    assert problem.startswith(f"{FIRST}: runbooks_templates_directory: must be an absolute path")
    (problem,) = problems(tmp_path, 'runbooks_templates_directory: "{{ inventory_dir }}/none"')
    assert problem == f"{FIRST}: runbooks_templates_directory: {tmp_path}/none is not a folder"
    fleet = fleet_of(tmp_path, 'runbooks_templates_directory: "{{ inventory_dir }}"')
    assert fleet.templates_directory == tmp_path


def test_the_state_directory_is_taken_from_the_inventory(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, 'runbooks_state_directory: "{{ inventory_dir }}/state"')
    assert fleet.state_directory == tmp_path / "state"


# --- where a mistake stands


def test_an_unknown_variable_is_reported_with_the_nearest_known_one_and_its_line(
    tmp_path: Path,
) -> None:
    assert problems(tmp_path, "\ncelery_worker: []") == [
        f"{FIRST + 1}: unknown variable 'celery_worker'; did you mean 'celery_workers'? If it"
        " belongs to a role, name it in runbooks_ignore"
    ]


def test_variables_of_other_prefixes_are_the_operators_own(tmp_path: Path) -> None:
    assert fleet_of(tmp_path, "shop_colour: red").hosts[0].variables["shop_colour"] == "red"


def test_an_unknown_nested_key_is_reported_with_its_own_line(tmp_path: Path) -> None:
    text = (
        "celery_workers:\n  - name: a\n    queues: [q]\n  - name: b\n    queues: [q]\n   "
        " concurency: 2"
    )
    assert problems(tmp_path, text) == [
        f"{FIRST + 5}: celery_workers.1.concurency: unknown key; did you mean 'concurrency'?"
    ]


def test_a_wrong_value_that_came_in_through_a_merge_key_is_reported_and_no_traceback(
    tmp_path: Path,
) -> None:
    text = """\
        shared: &shared
          depth: many
        celery_thresholds:
          <<: *shared
          retries: 2
        """
    (problem,) = problems(tmp_path, text)
    assert "celery_thresholds.depth: " in problem
    assert FIRST <= int(problem.split(":")[0]) <= FIRST + 4


def test_a_missing_variable_is_reported_with_its_host(tmp_path: Path) -> None:
    base = BASE.replace("    celery_user: deploy\n", "")
    assert problems(tmp_path, base=base) == ["3: host 'web1' lacks the variable 'celery_user'"]


def test_an_environment_file_is_needed_where_a_unit_of_ours_or_a_variable_needs_it(
    tmp_path: Path,
) -> None:
    without = BASE.replace("    celery_env_file: /etc/shop.env\n", "")
    worker = "celery_workers: [{name: a, queues: [q]}]"
    assert fleet_of(tmp_path, worker, without).hosts[0].settings.env_file == ""
    lacks = "host 'web1' lacks the variable 'celery_env_file'"
    (problem,) = problems(tmp_path, f"{worker}\ncelery_env: {{A: b}}", without)
    assert lacks in problem
    systemd = without[: without.index("    celery_service_manager")]
    (problem,) = problems(tmp_path, worker, systemd)
    assert lacks in problem


def test_a_service_manager_that_is_not_supported_is_reported(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, base=BASE.replace("manager: commands", "manager: upstart"))
    assert problem.startswith("11: celery_service_manager: ")


def test_the_format_of_an_environment_file_is_for_commands_alone(tmp_path: Path) -> None:
    (host,) = fleet_of(tmp_path, "celery_env_file_format: compose").hosts
    assert host.env_reader == "compose"
    assert fleet_of(tmp_path).hosts[0].env_reader == "shell"
    docker = "celery_service_manager: docker\ncelery_docker: {project: shop}"
    assert fleet_of(tmp_path, docker, SYSTEMD).hosts[0].env_reader == "compose"
    base = "".join(line for line in BASE.splitlines(keepends=True) if "commands" not in line)
    (problem,) = problems(tmp_path, "celery_env_file_format: compose", base)
    assert "systemd reads the file by its own rules" in problem
    (problem,) = problems(tmp_path, "celery_env_file_format: dotenv")
    assert "celery_env_file_format: " in problem


def test_what_cannot_be_a_timer_is_refused_at_load(tmp_path: Path) -> None:
    (problem,) = problems(
        tmp_path, 'celery_cron: [{schedule: "@reboot", user: deploy, command: "true"}]'
    )
    assert (
        "celery_cron.0.schedule: @reboot is not supported: as a timer it would also run when installed"
        in problem
    )
    (problem,) = problems(tmp_path, "celery_cron_scheduler: systemd")
    assert "celery_cron_scheduler: timers need `celery_service_manager: systemd`" in problem


def test_all_problems_of_all_hosts_are_reported_at_once_and_shared_ones_once(
    tmp_path: Path,
) -> None:
    base = BASE.replace(
        "    web1:\n",
        "    web1: {celery_user: [x], celery_beat: maybe}\n    web2:\n      celery_workers: 5\n",
    )
    found = problems(
        tmp_path,
        "celery_start_timeout: soon\ncelery_bet: true\ncelery_logs: '{{ y }}'\nx: '{{ y }}'\n",
        base,
    )
    reported = sorted((int(line.split(":")[0]), line.split(":")[1].strip()) for line in found)
    assert reported == [
        (3, "celery_beat"),
        (3, "celery_user"),
        (5, "celery_workers"),
        (FIRST + 2, "celery_start_timeout"),
        (
            FIRST + 3,
            (
                "unknown variable 'celery_bet'; did you mean 'celery_beat'? If it belongs to a"
                " role, name it in runbooks_ignore"
            ),
        ),
        (FIRST + 4, "celery_logs"),
    ]


def test_two_hosts_that_disagree_about_the_application_are_refused_without_its_secrets(
    tmp_path: Path,
) -> None:
    base = BASE.replace(
        "    web1:\n", "    web1:\n    web2: {celery_broker_url: redis://:hunter2@other/1}\n"
    )
    (problem,) = problems(tmp_path, base=base)
    assert "web1 and web2 differ in celery_broker_url" in problem
    assert "redis://" not in problem


def test_the_shipped_inventory_says_that_the_sandbox_has_to_be_put_up_first(tmp_path: Path) -> None:
    shipped = (Path(__file__).parents[3] / "inventory.yaml").read_text()
    found = problems(tmp_path, base=shipped)
    assert [problem.split(": ")[1] for problem in found] == [
        "celery_broker_url",
        "celery_result_backend",
    ]
    assert all("start it with `inv sandbox`" in problem for problem in found)


# --- secrets


def test_the_brokers_password_is_in_no_repr_and_no_str(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path)
    assert fleet.app.broker_url.get_secret_value() == "redis://:hunter2@broker:6379/0"
    shown: list[Any] = [fleet, fleet.app, fleet.hosts, fleet.hosts[0].settings]
    assert not [thing for thing in shown if "hunter2" in f"{thing} {thing!r}"]


def test_the_brokers_password_is_not_in_the_error_of_a_wrong_value(tmp_path: Path) -> None:
    base = BASE.replace("redis://:hunter2@broker:6379/0", "{url: redis://:hunter2@broker}")
    (problem,) = problems(tmp_path, base=base)
    assert problem.startswith("6: celery_broker_url: ")


def test_the_secrets_of_an_inventory_are_known_once_it_is_read(tmp_path: Path) -> None:
    text = """\
        celery_result_backend: redis://:of-the-backend@results/1
        celery_notify: ["json://ops:of-the-notice@alerts/"]
        shop_cache: redis://me:of-the-cache@cache/1
        shop: {accounts: [{user: me, password: of-an-account}]}
        """
    fleet_of(tmp_path, text)
    secrets = ("hunter2", "of-the-backend", "of-the-notice", "of-the-cache", "of-an-account")
    assert redact(" ".join(secrets)) == " ".join([HIDDEN] * len(secrets))


# --- Jinja in values


def test_jinja_sees_the_hosts_variables_and_ansibles_own_names(tmp_path: Path) -> None:
    text = """\
        root: "/srv/{{ inventory_hostname }}"
        shop: {name: blue}
        celery_unit_directory: "{{ root }}/{{ shop.name }}/{{ group_names | join('-') }}"
        """
    base = BASE.replace("all:\n", "web:\n  hosts: {web1: }\nall:\n")
    assert fleet_of(tmp_path, text, base).hosts[0].settings.unit_directory == "/srv/web1/blue/web"


def test_jinja_without_quotes_is_reported_with_its_line(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, base=BASE.replace("user: deploy", "user: {{ celery_app }}"))
    assert problem == "9: not valid YAML: a map or a list cannot be a key; Jinja needs quotes"


def test_the_operators_own_variables_may_need_what_only_ansible_has(tmp_path: Path) -> None:
    (host,) = fleet_of(
        tmp_path, "shop_facts: '{{ ansible_facts.hostname }}'\nansible_port: '{{ 2000 + 22 }}'"
    ).hosts
    assert host.variables["ansible_port"] == 2022
    with pytest.raises(InventoryError, match=f":{FIRST}: shop_facts: 'ansible_facts' is undefined"):
        host.variables["shop_facts"]


def test_a_list_from_a_variable_is_a_list(tmp_path: Path) -> None:
    text = (
        "shop_queues: [a, b]\ncelery_workers: [{name: w, queues: '{{ shop_queues }}', concurrency:"
        " '{{ 1 + 1 }}'}]"
    )
    (worker,) = fleet_of(tmp_path, text).hosts[0].settings.workers
    assert (worker.queues, worker.concurrency) == (("a", "b"), 2)


def test_a_wrong_value_in_a_hosts_own_file_is_reported_with_that_file(tmp_path: Path) -> None:
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/web1.yml").write_text("shop: 1\ncelery_beat:\n  - maybe\n")
    assert problems(tmp_path) == [
        f"{tmp_path}/host_vars/web1.yml:2: celery_beat: expected true or false"
    ]


def test_inventory_dir_is_where_the_inventory_lies(tmp_path: Path) -> None:
    base = BASE.replace(
        "celery_directory: /srv/shop", 'celery_directory: "{{ inventory_dir }}/app"'
    )
    assert fleet_of(tmp_path, base=base).hosts[0].settings.directory == f"{tmp_path.resolve()}/app"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{{ nothing_like_it }}", "'nothing_like_it' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ celery_app + 1 }}", "can only concatenate"),
        ("{{ celery_user }}", "is defined by itself: celery_user → celery_user"),
        ("{{ broken", "celery_user"),
        ("{{ lookup('url', 'id') }}", "lookup('url') is not supported"),
        ("{{ lookup('file', '/nonexistent') }}", "No such file or directory: /nonexistent"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_value_that_cannot_be_rendered_is_reported_with_its_line(
    tmp_path: Path, value: str, text: str
) -> None:
    (problem,) = problems(tmp_path, base=BASE.replace("user: deploy", f'user: "{value}"'))
    assert problem.startswith("9: celery_user: ")
    assert text in problem


# --- shortcuts and probes


def test_a_shortcut_says_of_a_task_what_the_application_leaves_open(tmp_path: Path) -> None:
    text = (
        "celery_shortcuts: {bill: {task: shop.bill, args: [1], kwargs: {late: true}, mode: async,"
        " timeout: 2m, result: {errors: 0}}}"
    )
    call = fleet_of(tmp_path, text).app.shortcuts["bill"]
    assert (call.task, call.args, call.kwargs, call.mode) == (
        "shop.bill",
        (1,),
        {"late": True},
        "async",
    )
    assert (call.queue, call.priority, call.timeout) == (None, None, 120.0)
    assert (call.expects_result, call.result) == (True, {"errors": 0})


def test_a_wrong_shortcut_is_reported_with_its_line(tmp_path: Path) -> None:
    text = "celery_shortcuts:\n  bill:\n    task: shop.bill\n    priorty: 5\n    mode: later\n"
    assert problems(tmp_path, text) == [
        f"{FIRST + 3}: celery_shortcuts.bill.priorty: unknown key; did you mean 'priority'?",
        f"{FIRST + 4}: celery_shortcuts.bill.mode: it should be 'sync' or 'async'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("celery_workers: [{name: a, queues: high}]", "celery_workers.0.queues: expected a list"),
        (
            "celery_workers: [{name: a, queues: [high], concurrency: two}]",
            "concurrency: expected a whole number",
        ),
        ("celery_workers: [{queues: [high]}]", "celery_workers.0.name: is missing"),
        (
            "celery_env: {TIMEOUT: 30}",
            "celery_env.TIMEOUT: expected a string; quote it if it looks like a number",
        ),
        ("celery_thresholds: 5", "celery_thresholds: expected keys with values"),
        (
            "celery_beat_schedule: '{{ inventroy_dir }}/x'",
            "is undefined; did you mean 'inventory_dir'?",
        ),
        (
            "celery_canary: {task: t, queue: hihg}\ncelery_workers: [{name: a, queues: [high]}]",
            "celery_canary.queue: no worker consumes 'hihg'; did you mean 'high'?",
        ),
    ],
)
def test_what_is_wrong_is_reported_in_plain_words(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(problems(tmp_path, text))


TWO_HOSTS = BASE.replace("    web1:\n", "    web1:\n    web2:\n")


def test_a_probe_belongs_to_the_hosts_its_pattern_names(tmp_path: Path) -> None:
    text = (
        "celery_probes: [{name: a, command: x}, {name: b, command: y, hosts: 'all:!web1', output:"
        " '^ok'}]"
    )
    hosts = {host.name: host.settings.probes for host in fleet_of(tmp_path, text, TWO_HOSTS).hosts}
    assert {name: [probe.name for probe in probes] for name, probes in hosts.items()} == {
        "web1": ["a"],
        "web2": ["a", "b"],
    }
    (a,) = hosts["web1"]
    assert (a.user, a.timeout, a.exit_code, a.output) == (None, 30.0, 0, None)


def test_a_wrong_probe_is_reported_with_its_line(tmp_path: Path) -> None:
    text = "celery_probes:\n  - name: a\n    command: x\n    hosts: wbe1\n"
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(
        f"{FIRST + 3}: celery_probes.0.hosts: 'wbe1' matches no host or group"
    )
    assert "did you mean 'web1'?" in problem
    wrong = (
        "celery_probes:\n  - name: a\n    command: x\n    output: '('\n    exit_code: 300\n   "
        " timeout: 0\n"
    )
    assert len(problems(tmp_path, wrong)) == 3


def test_records_that_would_be_read_as_an_inventory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod/hosts.yml").write_text(
        BASE + f"    runbooks_state_directory: {tmp_path}/prod/state\n"
    )
    inventory = load_inventory(tmp_path / "prod")
    with pytest.raises(InventoryError, match="runbooks_state_directory: it is in"):
        build_fleet(inventory, tuple(inventory.hosts))
    (tmp_path / "prod/hosts.yml").write_text(
        BASE + f"    runbooks_state_directory: {tmp_path}/prod/.state\n"
    )
    inventory = load_inventory(tmp_path / "prod")
    assert (
        build_fleet(inventory, tuple(inventory.hosts)).state_directory == tmp_path / "prod/.state"
    )
