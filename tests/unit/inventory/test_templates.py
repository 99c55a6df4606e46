"""Rendering: nothing undefined slips through, nothing escapes the sandbox, and files mean what
their values say.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from supervisor.datatypes import RestartUnconditionally
from supervisor.options import ServerOptions

from runbooks.core.errors import RenderError
from runbooks.core.fleet import mark_of
from runbooks.core.operator import user_name
from runbooks.core.settings import CronEntry, MonitorSettings, Worker
from runbooks.diagnosis.wanted_files import (
    cron_files,
    logrotate_files,
    timer_files,
    unit_files,
)
from runbooks.inventory.templates import (
    Templates,
    cron_command,
    logrotate_path,
    systemd_path,
    systemd_word,
)
from tests.unit.fleets import make_fleet, make_host

ROOT = Path(__file__).parents[3]
SHIPPED = Templates(ROOT / "templates")


# --- the three filters


@pytest.mark.parametrize("escape", [systemd_word, systemd_path, cron_command])
@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b", "\n", "a\x1b[0m", "a\x7f"])
def test_a_value_with_a_line_break_is_refused_for_it_would_be_a_new_directive(
    escape: Any, text: str
) -> None:
    with pytest.raises(RenderError, match="line break or a control character"):
        escape(text)


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("high", "high"), ("a,b", "a,b"), ("high@web1", "high@web1"), ("", '""'), ("two words", '"two words"'),
        ("50%", "50%%"), ("$HOME", '"$$HOME"'), ('say "hi"', r'"say \"hi\""'), ("back\\slash", r'"back\\slash"'),
        (";", '";"'), ("it's", '"it\'s"'), ("ü", '"ü"'), ("%h %i", '"%%h %%i"'),
    ],
)  # fmt: skip
def test_a_word_is_quoted_so_that_systemd_passes_exactly_it(word: str, quoted: str) -> None:
    assert systemd_word(word) == quoted


def test_a_path_keeps_its_spaces_and_doubles_its_percent_signs() -> None:
    assert systemd_path("/srv/my shop/100%") == "/srv/my shop/100%%"


def test_a_path_that_would_swallow_the_next_line_is_refused() -> None:
    with pytest.raises(RenderError, match="backslash"):
        systemd_path("/srv/shop\\")


def test_a_percent_sign_in_a_cron_command_is_escaped() -> None:
    assert cron_command("date +%F > /tmp/x") == r"date +\%F > /tmp/x"


@pytest.mark.parametrize(
    "path", ["/var/log/*.log", "/var/log/a[1].log", '/var/log/"a".log', "/var/log/{a,b}", "/a\nb"]
)
def test_a_log_whose_name_means_more_to_logrotate_is_refused(path: str) -> None:
    with pytest.raises(RenderError):
        logrotate_path(path)


def test_an_apostrophe_in_the_name_of_a_log_is_quoted() -> None:
    assert logrotate_path("/srv/o'brien's shop/a.log") == """"/srv/o'brien's shop/a.log\""""


# --- templates

MARK = "# Ours;"


def write_template(directory: Path, text: str) -> Templates:
    (directory / "x.j2").write_text(text)
    return Templates(directory)


def test_a_template_that_uses_what_it_is_not_given_is_an_error_that_names_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(RenderError, match=rf"template {tmp_path}/x\.j2:3: 'user' is undefined"):
        write_template(tmp_path, "{{ mark }}\n\nUser={{ user }}\n").render("x.j2", mark=MARK)


def test_a_value_that_a_filter_refuses_names_the_template(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=rf"template {tmp_path}/x\.j2:1: .*line break"):
        write_template(tmp_path, "{{ user | systemd_path }}").render("x.j2", mark=MARK, user="a\nb")


@pytest.mark.parametrize(
    "text", ["{{ x.__class__ }}", "{% if %}", "{{ 1 / 0 }}", "{{ x | nofilter }}"]
)
def test_a_broken_template_is_a_message_and_no_traceback(tmp_path: Path, text: str) -> None:
    with pytest.raises(RenderError, match=rf"template {tmp_path}/x\.j2:2: "):
        write_template(tmp_path, f"{{{{ mark }}}}\n{text}").render("x.j2", mark=MARK, x="")


def test_a_missing_template_is_reported_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=r"there is no template systemd/none\.j2"):
        Templates(tmp_path).render("systemd/none.j2", mark=MARK)


def test_a_template_of_ones_own_counts_before_the_shipped_one_and_may_include_it(
    tmp_path: Path,
) -> None:
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    own.mkdir()
    shipped.mkdir()
    write_template(shipped, "{{ mark }} shipped\n")
    (shipped / "y.j2").write_text("{{ mark }} y\n")
    write_template(own, "{{ mark }} own\n{% include 'y.j2' %}")
    templates = Templates(own, shipped)
    assert templates.render("x.j2", mark=MARK) == b"# Ours; own\n# Ours; y\n"
    assert templates.render("y.j2", mark=MARK) == b"# Ours; y\n"


def test_a_template_without_the_mark_is_refused_for_its_file_would_never_be_removed(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        RenderError, match=rf"template {tmp_path}/x\.j2:1: it must begin with {{{{ mark }}}}"
    ):
        write_template(tmp_path, "# mine\n{{ mark }}\n").render("x.j2", mark=MARK)


# --- the shipped templates

AWKWARD = make_host(
    "web 1",
    service_manager="systemd",
    commands=None,
    directory="/srv/my shop 50%",
    python="/usr/bin/env",
    env_file="/etc/my shop.env",
    user="root",
    workers=(
        Worker(
            name="high",
            queues=("high_q", "two words"),
            options=("--max-tasks-per-child=9", "-O", "fair", "50%", "$X"),
        ),
        Worker(name="low", queues=("low",), concurrency=4),
    ),
    cron=(
        CronEntry(
            schedule="0 */6 * * *", user="deploy", command="date +%F >> '/var/log/50% x.log'"
        ),
        CronEntry(schedule="5 4 * * 1", user="root", command="true"),
    ),
)


def test_the_worker_unit_says_what_the_inventory_says() -> None:
    fleet = make_fleet(AWKWARD)
    units = unit_files(fleet, SHIPPED)["web 1"]
    assert list(units) == [
        "/etc/systemd/system/celery-worker@high.service",
        "/etc/systemd/system/celery-worker@low.service",
        "/etc/systemd/system/celery-beat.service",
        "/etc/systemd/system/celery.target",
    ]
    lines = units["/etc/systemd/system/celery-worker@high.service"].decode().splitlines()
    assert "WorkingDirectory=/srv/my shop 50%%" in lines
    assert "EnvironmentFile=/etc/my shop.env" in lines
    assert '    --hostname="high@web 1" \\' in lines
    assert '    --queues="high_q,two words" \\' in lines
    assert '    --concurrency=1 --loglevel=INFO --max-tasks-per-child=9 -O fair 50%% "$$X"' in lines
    assert {"Type=exec", "KillMode=mixed", "TimeoutStopSec=60"} < {*lines}
    assert {"NoNewPrivileges=yes", "PrivateTmp=yes", "ProtectSystem=full", "LimitNOFILE=65536"} < {
        *lines
    }
    assert 'ReadWritePaths="-/srv/my shop 50%%"' in lines
    open_ones = ("ProtectHome", "PrivateDevices", "ProtectProc")
    assert not [line for line in lines if line.startswith(open_ones)]
    assert (
        b"--concurrency=4 --loglevel=INFO\n"
        in units["/etc/systemd/system/celery-worker@low.service"]
    )


def test_a_unit_ends_with_a_newline_and_keeps_no_trace_of_the_templates_own_lines() -> None:
    for content in unit_files(make_fleet(AWKWARD), SHIPPED)["web 1"].values():
        text = content.decode()
        assert re.search(r"\nWantedBy=multi-user.target( celery.target)?\n\Z", text)
        assert "\n\n\n" not in text
        assert "{" not in text


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("no systemd-analyze here")
    directory = tmp_path / "units"
    directory.mkdir()
    host = make_host(
        "web1",
        **{**AWKWARD.settings.model_dump(), "directory": "/tmp", "unit_directory": str(directory)},
    )
    for path, content in unit_files(make_fleet(host), SHIPPED)["web1"].items():
        Path(path).write_bytes(content)
        done = subprocess.run(
            [analyze, "verify", "--man=no", path], capture_output=True, text=True, env=os.environ
        )
        # Said about other units of this machine, or because no systemd runs here, is not about
        # ours.
        said = [
            line
            for line in done.stderr.splitlines()
            if Path(path).name in line or str(directory) in line
        ]
        assert not [
            line
            for line in said
            if "Unknown" in line or "rror" in line or "gnoring" in line or "nvalid" in line
        ], said


def test_systemd_would_complain_about_a_wrong_unit(tmp_path: Path) -> None:
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("no systemd-analyze here")
    path = tmp_path / "wrong.service"
    path.write_text('[Service]\nExecStart=/bin/true "unbalanced\n')
    done = subprocess.run([analyze, "verify", "--man=no", path], capture_output=True, text=True)
    assert "Unbalanced quoting" in done.stderr


def test_supervisords_conf_file_starts_what_the_inventory_says(tmp_path: Path) -> None:
    """Read by supervisor's own code, and run."""
    shop, python, env_file = (
        tmp_path / name for name in ("it's my shop 50%", "say it", "shop's 9.env")
    )
    shop.mkdir()
    env_file.write_text("TIMEOUT='30 s'\n")
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$TIMEOUT" "$HOME" "$USER" "$@"\n')
    python.chmod(0o755)
    places = {
        "directory": str(shop),
        "python": str(python),
        "env_file": str(env_file),
        "user": user_name(),
    }
    given = (
        AWKWARD.settings.model_dump()
        | places
        | {"service_manager": "supervisor", "unit_directory": "/conf.d"}
    )
    host = make_host("web 1", **given | {"supervisor": {"log_directory": str(tmp_path)}})
    files = unit_files(make_fleet(host), SHIPPED)["web 1"]
    assert list(files) == [
        f"/conf.d/celery-{name}.conf" for name in ("worker-high", "worker-low", "beat")
    ]
    conf = tmp_path / "supervisord.conf"
    conf.write_bytes(b"[supervisord]\n" + b"\n".join(files.values()))
    options = ServerOptions()
    options.here = str(tmp_path)
    programs = {
        one.name: one.process_configs[0]
        for one in options.read_config(str(conf)).process_group_configs
    }
    high = programs["celery-worker-high"]
    assert (high.directory, high.stopwaitsecs, high.stopasgroup, high.killasgroup) == (
        str(shop),
        60,
        False,
        True,
    )
    assert (high.startsecs, high.autorestart) == (5, RestartUnconditionally)
    assert high.stdout_logfile == f"{tmp_path}/celery-worker-high.log"
    assert high.stdout_logfile_maxbytes > 0, "it is rotated"
    beat = shlex.split(programs["celery-beat"].command)[-1]
    assert f"beat --schedule={host.settings.beat_schedule} " in beat
    done = subprocess.run(
        shlex.split(high.command), cwd=high.directory, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "30 s", os.path.expanduser("~" + user_name()), user_name(), "-m", "celery", "-A", "shop", "worker", "--hostname=high@web 1",
        "--queues=high_q,two words", "--concurrency=1", "--loglevel=INFO", "--max-tasks-per-child=9", "-O", "fair",
        "50%", "$X",
    ]  # fmt: skip


def test_what_supervisord_would_take_for_a_comment_is_refused() -> None:
    worker = Worker(name="high", queues=("q",), options=("--logfile=a ;b",))
    host = make_host(service_manager="supervisor", commands=None, workers=(worker,))
    with pytest.raises(RenderError, match="begins a comment for supervisord"):
        unit_files(make_fleet(host), SHIPPED)


def test_the_cron_file_has_percent_signs_escaped_a_user_column_and_a_final_newline() -> None:
    ((path, content),) = cron_files(make_fleet(AWKWARD, app="shop.celery"), SHIPPED)[
        "web 1"
    ].items()
    assert path == "/etc/cron.d/celery-shop-celery"
    lines = content.decode().split("\n")
    assert lines[-1] == ""
    assert "\n\n\n" not in content.decode()
    entries = [line for line in lines if re.match(r"[\d*]", line)]
    assert entries == [
        r"0 */6 * * * deploy date +\%F >> '/var/log/50\% x.log'",
        "5 4 * * 1 root true",
    ]


def test_the_logs_of_a_host_are_rotated_as_their_owner() -> None:
    host = make_host(
        user="deploy", logs=("/var/log/my shop/a.log", "/var/log/b.log"), group="www-data"
    )
    ((path, content),) = logrotate_files(make_fleet(host), SHIPPED)["web1"].items()
    assert path == "/etc/logrotate.d/celery-shop"
    lines = content.decode().splitlines()
    assert lines[0].startswith(mark_of("shop"))
    assert lines[3:6] == ['"/var/log/my shop/a.log"', '"/var/log/b.log"', "{"]
    ways = ("su deploy www-data", "daily", "rotate 14", "compress", "copytruncate")
    assert {f"    {way}" for way in ways} <= set(lines)
    assert content.endswith(b"}\n")
    host = make_host(user="deploy", logs=("/var/log/b.log",))
    ((_, content),) = logrotate_files(make_fleet(host), SHIPPED)["web1"].items()
    assert b"    su deploy deploy\n" in content


@pytest.mark.parametrize(("user", "rotated"), [(None, True), ("deploy", True), ("ops", False)])
def test_the_monitors_log_is_rotated_where_the_applications_user_writes_it(
    user: str | None, rotated: bool
) -> None:
    monitor = MonitorSettings(host="web1", inventory="/i", log="/var/log/m.log", user=user)
    fleet = make_fleet(make_host(user="deploy", logs=("/var/log/a.log",)), monitor=monitor)
    fleet = replace(fleet, monitor_host="web1")
    (content,) = logrotate_files(fleet, SHIPPED)["web1"].values()
    assert (b"/var/log/m.log" in content) is rotated
    (cron,) = cron_files(fleet, SHIPPED)["web1"].values()
    assert f"0 */6 * * * {user or 'deploy'} ".encode() in cron


def test_a_host_without_cron_entries_or_logs_gets_no_file_for_them() -> None:
    assert cron_files(make_fleet(make_host()), SHIPPED) == {"web1": {}}
    assert logrotate_files(make_fleet(make_host()), SHIPPED) == {"web1": {}}


def test_a_worker_of_root_keeps_roots_rights() -> None:
    def unit(user: str) -> bytes:
        host = make_host(user=user, service_manager="systemd", commands=None)
        return unit_files(make_fleet(host), SHIPPED)["web1"][
            "/etc/systemd/system/celery-beat.service"
        ]

    assert b"\nCapabilityBoundingSet=\n" in unit("deploy")
    assert b"CapabilityBoundingSet" not in unit("root")


def test_a_unit_has_the_user_and_the_group_of_the_inventory_or_the_users_own_group() -> None:
    def of(**settings: Any) -> list[str]:
        host = make_host(
            service_manager="systemd",
            commands=None,
            user="deploy",
            logs=("/var/log/a",),
            **settings,
        )
        fleet = make_fleet(host)
        files = [*unit_files(fleet, SHIPPED)["web1"].values()]
        files += logrotate_files(fleet, SHIPPED)["web1"].values()
        lines = b"\n".join(files).decode().splitlines()
        return sorted({one.strip() for one in lines if re.match(r"(User|Group)=| +su ", one)})

    assert of() == ["User=deploy", "su deploy deploy"]
    assert of(group="www-data") == ["Group=www-data", "User=deploy", "su deploy www-data"]


def test_beat_is_started_with_the_options_of_the_inventory() -> None:
    def starts(**settings: Any) -> list[str]:
        host = make_host(service_manager="systemd", commands=None, **settings)
        unit = unit_files(make_fleet(host), SHIPPED)["web1"][
            "/etc/systemd/system/celery-beat.service"
        ].decode()
        return [
            line
            for line in unit.splitlines()
            if "--pidfile=" in line or line.startswith("KillSignal")
        ]

    first = "    --schedule=/var/lib/celery-beat/schedule --pidfile= --loglevel=INFO"
    assert starts() == [first, "KillSignal=SIGTERM"]
    options = ("--scheduler=redbeat.RedBeatScheduler", "--max-interval=5")
    assert starts(beat_options=options)[0] == f"{first} {' '.join(options)}"
    assert make_host(beat_options=options).settings.beat_scheduler == "redbeat.RedBeatScheduler"
    assert make_host(beat_options=("-S", "x:Y")).settings.beat_scheduler == "x:Y"


def test_a_timer_runs_an_entry_as_the_cron_file_would() -> None:
    fleet = make_fleet(AWKWARD)
    files = {
        path.rpartition(".")[2]: content.decode().splitlines()
        for path, content in timer_files(fleet, SHIPPED)["web 1"].items()
        if "-1." in path
    }
    (path,) = (line for line in files["service"] if line.startswith("Environment="))
    cron = cron_files(fleet, SHIPPED)["web 1"]["/etc/cron.d/celery-shop"].decode().splitlines()
    assert path.removeprefix("Environment=").split() == [
        line for line in cron if line.startswith(("SHELL=", "PATH="))
    ]
    assert {"User=deploy", "WorkingDirectory=~", "KillMode=process"} < {*files["service"]}
    assert "Persistent=false" in files["timer"]


def test_templates_receive_what_the_page_says(tmp_path: Path) -> None:
    seen = "{{ mark }} {{ settings.user }} {{ app }} {{ host }}"
    own = {
        "systemd/celery-worker@.service": "{{ worker.name }} {{ node }}",
        "cron/celery": "{{ entries | length }}",
        "timer/celery-cron.service": "{{ entry.user }} {{ number }} {{ calendars | length }}",
        "timer/celery-cron.timer": "{{ entry.user }} {{ number }} {{ calendars | length }}",
    }
    for name, more in own.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.j2").write_text(f"{seen} {more}\n")
    templates, fleet = Templates(tmp_path, ROOT / "templates"), make_fleet(AWKWARD)

    def shown(wanted: Any) -> list[str]:
        return [content.decode().partition(";")[2].strip() for content in wanted["web 1"].values()]

    assert shown(unit_files(fleet, templates))[0] == "root shop web 1 high high@web 1"
    assert shown(cron_files(fleet, templates)) == ["root shop web 1 2"]
    assert shown(timer_files(fleet, templates))[0] == "root shop web 1 deploy 1 1"


def test_rendering_twice_gives_the_same_bytes() -> None:
    fleet = make_fleet(AWKWARD)
    assert unit_files(fleet, SHIPPED) == unit_files(fleet, SHIPPED)


def test_a_host_whose_workers_other_commands_start_gets_units_only_where_it_names_their_directory() -> (
    None
):
    def units(**settings: Any) -> list[str]:
        return list(unit_files(make_fleet(make_host(beat=False, **settings)), SHIPPED)["web1"])

    assert units() == []
    assert units(unit_directory="/opt/units") == [
        "/opt/units/celery-worker@high.service",
        "/opt/units/celery.target",
    ]
    assert len(units(service_manager="systemd", commands=None)) == 2
