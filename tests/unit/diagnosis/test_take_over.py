"""Which of what others have started does the work of the inventory's services, and what taking it
over takes.
"""

from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import Ancestor, CeleryProcess, Census, Manager, Options, Unit
from runbooks.core.census import Kind as ProcessKind
from runbooks.core.effects import ControlOther, LinkUnit, StartByHand, WriteFile
from runbooks.core.fleet import FleetHost, mark_of
from runbooks.core.foreign import ConfFile, Foreign, Program, UnitText
from runbooks.core.model import Finding, NodeState, OtherRunner, RunningTask, ServiceState
from runbooks.core.settings import Worker
from runbooks.diagnosis import files, services, take_over
from runbooks.diagnosis.step import changes
from runbooks.diagnosis.wanted_files import Kind
from tests.unit.fleets import (
    NOW,
    in_place,
    make_broker,
    make_fleet,
    make_host,
    make_snapshot,
    make_state,
)

OLD = Unit(
    "old.service", "/etc/systemd/system/old.service", "enabled", active="active", names_celery=True
)
LINK = (
    "/etc/systemd/system/multi-user.target.wants/old.service",
    "/etc/systemd/system/old.service",
)
OURS = b"[Service]\nUser=shop\nWorkingDirectory=/srv/shop\n"


def a_process(node: str = "high@web1", unit: str = "old.service", **more: Any) -> CeleryProcess:
    values: dict[str, Any] = {
        "inner_pid": 900,
        "parent": 1,
        "here": True,
        "unit": unit,
        "user": "deploy",
    } | more
    options = values.pop("options", None) or Options("worker", "shop", node)
    return CeleryProcess(900, 4000, NOW - 500, "S", ProcessKind.MAIN, options, **values)


def a_host(**more: Any) -> FleetHost:
    return make_host(service_manager="systemd", commands=None, **more)


def a_text(*settings: tuple[str, str], pulled_by: tuple[str, ...] = ()) -> UnitText:
    return UnitText((LINK,), pulled_by, (("User", "shop"), *settings))


def findings(
    *processes: CeleryProcess,
    text: UnitText | None = None,
    unit: Unit = OLD,
    host: FleetHost | None = None,
    node: NodeState | None = None,
    kill: bool = False,
    ours: bytes = OURS,
    **more: Any,
) -> list[Finding]:
    """Of a host whose worker `high` does not run, and whose beat does."""
    host = host or a_host()
    fleet = make_fleet(host)
    services = {
        "high": ServiceState(None, None, "stopped"),
        "beat": ServiceState(101, NOW - 500, "active"),
    }
    foreign = Foreign({"old.service": text or a_text()}, more.pop("cron", ()))
    state = make_state(
        host,
        services=services,
        census=Census(processes, {"old.service": unit}),
        foreign=foreign,
        **more,
    )
    broker = make_broker(fleet, nodes={node.name: node} if node else {})
    wanted = {"web1": {host.unit_path("high"): ours}}
    snapshot = make_snapshot(fleet, broker=broker, hosts={"web1": state})
    return list(take_over.findings(fleet, snapshot, wanted, kill=kill))


def test_a_unit_is_kept_from_starting_then_stopped_and_both_are_undone() -> None:
    (found,) = findings(a_process())
    link, stop = found.fix
    assert found.code == "worker.to_be_taken_over"
    assert (link.do, link.undo) == (
        LinkUnit("old.service", (LINK,), False),
        LinkUnit("old.service", (LINK,), True),
    )
    assert stop.do == ControlOther("systemd", "old.service", "stop", ((900, 4000),))
    assert stop.undo == ControlOther("systemd", "old.service", "start")


def test_a_service_whose_work_is_done_is_reported_with_what_ends_that_and_with_the_preview() -> (
    None
):
    host = a_host(beat=False)
    fleet = make_fleet(host)
    runs = OtherRunner("old.service", {900: "worker high@web1"}, Manager.SYSTEMD, OLD.path)
    state = make_state(
        host,
        services={"high": ServiceState(None, None, "stopped")},
        census=Census((a_process(),), {"old.service": OLD}),
        others=(runs,),
    )
    snapshot = make_snapshot(fleet, broker=make_broker(fleet, nodes={}), hosts={"web1": state})
    (found,) = services.at_work(fleet, snapshot, {})
    assert found.code == "service.runs_elsewhere"
    assert "end it on web1: sudo systemctl disable --now old.service" in found.evidence
    assert "`inv remediate --take-over --dry-run`" in found.evidence[-1]


@pytest.mark.parametrize(
    ("process", "fits"),
    [
        (
            a_process(
                "celery@web1", options=Options("worker", "shop", "celery@%h", queues=("high_q",))
            ),
            True,
        ),
        (
            a_process(
                "celery@web1",
                options=Options("worker", "shop", "celery@%h", queues=("high_q", "else")),
            ),
            False,
        ),
        (a_process("celery@web1", options=Options("worker", "shop", "celery@%h")), False),
        (a_process("", options=Options("worker", "shop", "high@%h")), True),
        (a_process("", options=Options("beat", "shop")), True),
    ],
)
def test_a_worker_fits_by_its_name_or_by_its_queues_and_what_fits_nothing_stays(
    process: CeleryProcess, fits: bool
) -> None:
    (found,) = findings(process)
    assert (found.code == "worker.to_be_taken_over", bool(found.blocks)) == (fits, not fits)


def test_beat_fits_only_where_the_inventory_has_it() -> None:
    (found,) = findings(a_process("", options=Options("beat", "shop")), host=a_host(beat=False))
    assert found.code == "worker.not_taken_over"
    assert "matches no service of the inventory on web1" in found.summary


def test_what_takes_messages_elsewhere_or_is_another_applications_is_nobodys_business() -> None:
    assert findings(a_process(options=Options("worker", "other", "high@web1"))) == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (
            {"text": a_text(pulled_by=("old.timer",))},
            "old.timer also starts it, and would start it again: end that first, then run this"
            " command again",
        ),
        (
            {
                "unit": Unit(
                    "old.service", "/run/x", "transient", active="active", names_celery=True
                )
            },
            "is transient",
        ),
        (
            {
                "unit": Unit(
                    "old.service", "/run/x", "generated", active="active", names_celery=True
                )
            },
            "is generated",
        ),
        ({"text": UnitText((), (), ())}, "cannot be read"),
        (
            {"text": a_text(("Environment", "API_TOKEN=x"))},
            "sets API_TOKEN, which may be a secret and is not copied",
        ),
        (
            {"text": a_text(("Environment", '"URL=redis://:hunter2@h"'))},
            "sets URL, which may be a secret",
        ),
        (
            {"text": a_text(("WorkingDirectory", "/srv/%i"))},
            "WorkingDirectory= in its unit has a specifier",
        ),
        (
            {"text": a_text(("EnvironmentFile", "-/etc/%N"))},
            "EnvironmentFile= in its unit has a specifier",
        ),
    ],
)
def test_what_cannot_be_stopped_for_good_or_started_as_it_was_is_left_alone(
    more: dict[str, Any], why: str
) -> None:
    (found,) = findings(a_process(), **more)
    assert why in found.summary, found.summary
    assert (found.fix, found.blocks[0].service) == ((), "old.service")
    assert "hunter2" not in found.summary


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"container": "0123456789abcdef", "engine": Manager.DOCKER}, "container 0123456789ab"),
        ({"users_unit": "1000"}, "old.service of user 1000"),
    ],
)
def test_what_runs_in_a_container_or_under_a_users_own_systemd_is_left_alone(
    more: dict[str, Any], name: str
) -> None:
    (found,) = findings(a_process(**more))
    assert (found.code, found.fix) == ("worker.not_taken_over", ())
    assert found.summary.startswith(f"{name} is not taken over: ")
    assert found.summary.endswith(" runs it, which this tool does not control")


def test_a_runner_is_taken_over_as_a_whole_or_not_at_all() -> None:
    (found,) = findings(a_process(), replace(a_process("else@web1"), pid=901, inner_pid=901))
    assert (found.code, found.fix) == ("worker.not_taken_over", ())
    assert "else@web1 matches no service of the inventory" in found.summary


def test_nothing_makes_way_for_services_that_this_tool_does_not_start() -> None:
    (found,) = findings(a_process(here=True), host=make_host(commands=None))
    assert (found.code, found.fix) == ("worker.not_taken_over", ())
    assert "is not taken over: celery_commands has no `start`" in found.summary


def test_a_secret_that_the_environment_file_has_already_keeps_nothing_back() -> None:
    files = {"/srv/shop/env": in_place(b"API_TOKEN=x\n")}
    host = a_host(env_file="/srv/shop/env")
    (found,) = findings(
        a_process(), text=a_text(("Environment", "API_TOKEN=x")), host=host, files=files
    )
    assert found.code == "worker.to_be_taken_over"
    assert all("API_TOKEN" not in change.detail for change in found.fix)


@pytest.mark.parametrize("kill", [False, True])
def test_a_task_that_a_stop_would_kill_keeps_it_running_unless_that_is_asked_for(
    kill: bool,
) -> None:
    task = RunningTask("id", "shop.long", NOW - 9000, acknowledged=True)
    node = NodeState(
        "high@web1", frozenset(), frozenset({"high_q"}), pids=frozenset({900}), running=(task,)
    )
    (found,) = findings(a_process(), node=node, kill=kill)
    assert (found.code == "worker.to_be_taken_over") == kill
    if kill:
        stop = found.fix[-1]
        assert isinstance(stop.do, ControlOther)
        assert (stop.do.nodes, stop.do.kill) == ({"high@web1": ("high_q",)}, True)
        assert "runs shop.long (id)" in stop.detail


def test_what_its_unit_says_is_carried_over_as_far_as_ours_says_something_else() -> None:
    text = a_text(
        ("Nice", "1"), ("Nice", "5"), ("LimitNOFILE", "4096"), ("ExecStart", "x"), ("KillMode", "process"),
        ("Environment", "A=1 'B=two words'"), ("Environment", ""), ("Environment", 'PATH="/opt/bin:/bin" C=3'),
        ("WorkingDirectory", "/srv/shop"),
    )  # fmt: skip
    (found,) = findings(a_process(), text=text)
    write = found.fix[0].do
    assert isinstance(write, WriteFile)
    assert write.content
    assert write.path.endswith("/celery-worker@high.service.d/taken-over.conf")
    assert write.content.decode().splitlines()[1:] == [
        "[Service]", "Nice=5", "LimitNOFILE=4096", 'Environment=PATH="/opt/bin:/bin"', "Environment=C=3",
    ]  # fmt: skip


def test_its_environment_files_are_carried_over_and_ours_is_read_last() -> None:
    ours = OURS + b"EnvironmentFile=/srv/shop/env\n"
    text = a_text(
        ("EnvironmentFile", "/etc/old"), ("EnvironmentFile", ""), ("EnvironmentFile", "-/srv/shop/env"),
        ("EnvironmentFile", "-/etc/conf.d/celery"), ("EnvironmentFile", "/etc/more"), ("WorkingDirectory", "/srv/shop"),
    )  # fmt: skip
    (found,) = findings(a_process(), text=text, ours=ours)
    write = found.fix[0].do
    assert isinstance(write, WriteFile)
    assert write.content
    assert write.content.decode().splitlines()[2:] == [
        "EnvironmentFile=", "EnvironmentFile=-/etc/conf.d/celery", "EnvironmentFile=/etc/more",
        "EnvironmentFile=/srv/shop/env",
    ]  # fmt: skip
    assert "+EnvironmentFile=-/etc/conf.d/celery" in found.fix[0].detail


def test_where_it_reads_our_file_alone_nothing_is_carried_over() -> None:
    text = a_text(("EnvironmentFile", "-/srv/shop/env"), ("WorkingDirectory", "/srv/shop"))
    (found,) = findings(a_process(), text=text, ours=OURS + b"EnvironmentFile=/srv/shop/env\n")
    assert [change for change in found.fix if change.path] == []


def test_a_process_that_no_one_runs_cannot_be_started_again_and_cron_that_starts_it_is_named() -> (
    None
):
    options = Options("worker", "shop", "high@web1", queues=("high_q",), concurrency=2)
    (found,) = findings(
        a_process(unit="", options=options), cron=("/etc/cron.d/x, line 3 (@reboot)",)
    )
    (stop,) = found.fix
    command = "as deploy, celery -A shop worker -n high@web1 -Q high_q -c 2"
    assert (stop.do, stop.undo) == (
        ControlOther("", "process 900", "stop", ((900, 4000),)), StartByHand("process 900", command),
    )  # fmt: skip
    assert "/etc/cron.d/x, line 3 (@reboot) may start it again" in stop.detail


def test_what_something_keeps_running_is_left_alone() -> None:
    (found,) = findings(
        a_process(unit="", above=(Ancestor(7, "watchmedo"), Ancestor(1, "systemd")))
    )
    assert "watchmedo is above it and may start it again" in found.summary
    (found,) = findings(a_process(unit="", above=(Ancestor(7, "bash"), Ancestor(1, "systemd"))))
    assert found.code == "worker.to_be_taken_over"


def test_a_process_that_is_stopped_is_left_alone_for_it_would_not_end() -> None:
    (found,) = findings(replace(a_process(unit=""), state="T"))
    assert found.code == "worker.not_taken_over"
    assert "on web1: sudo kill -CONT 900" in found.summary


def test_what_runs_in_a_unit_that_does_not_name_celery_is_left_alone_and_what_a_login_left_is_not() -> (
    None
):
    for unit, code in (
        ("printers.service", "worker.not_taken_over"),
        ("ssh.service", "worker.to_be_taken_over"),
    ):
        (found,) = findings(a_process(unit=unit))
        assert found.code == code
    (found,) = findings(
        a_process(unit="printers.service", above=(Ancestor(7, "start.sh"), Ancestor(1, "systemd")))
    )
    assert "on web1: sudo systemctl disable --now printers.service" in found.summary


@pytest.mark.parametrize(
    "command", ["{python} -m celery -A shop worker -n high@%%h -Q high_q", "sh -c 'celery x'"]
)
def test_a_unit_that_does_not_run_and_starts_with_the_host_is_kept_from_it_where_its_command_shows_it(
    command: str,
) -> None:
    unit = Unit(
        "old.service",
        "/etc/systemd/system/old.service",
        "enabled",
        active="inactive",
        names_celery=True,
    )
    found = findings(
        text=a_text(("ExecStart", command.format(python="/usr/bin/python3"))), unit=unit
    )
    assert [change.do for one in found for change in one.fix] == (
        [LinkUnit("old.service", (LINK,), False)] if "worker" in command else []
    )


@pytest.mark.parametrize("taking", [False, True])
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("unit", a_host().unit_path("high")),
        ("cron", "/etc/cron.d/celery-shop"),
        ("timer", "/etc/systemd/system/celery-cron-shop-1.timer"),
        ("logrotate", "/etc/logrotate.d/celery-shop"),
    ],
)
def test_a_file_that_someone_else_wrote_is_replaced_only_where_that_is_asked_for(
    taking: bool, kind: Kind, path: str
) -> None:
    host = a_host(cron_scheduler="systemd" if kind == "timer" else "cron")
    fleet, wanted = make_fleet(host), {"web1": {path: f"{mark_of('shop')}\nours\n".encode()}}
    state = make_state(host, files={path: in_place(b"theirs\n")}, foreign=Foreign({}))
    found = list(
        files.of_kind(
            fleet, make_snapshot(fleet, hosts={"web1": state}), kind, wanted, taking=taking
        )
    )
    codes = [f"{kind}.differs" if taking else f"{kind}.not_ours"]
    assert [one.code for one in found] == codes + (
        ["timer.not_enabled"] if taking and kind == "timer" else []
    )
    assert [change.path for change in found[0].fix if change.path] == ([path] if taking else [])
    assert bool(found[0].blocks) is (kind == "unit" and not taking)
    assert "--take-over" in " ".join(found[0].evidence) or taking


def a_program(*settings: tuple[str, str], **more: Any) -> tuple[Foreign, CeleryProcess]:
    """A program of supervisord's, whose shell has the pid 7, and its worker."""
    wait_s, as_group = more.pop("wait_s", 60.0), more.pop("as_group", False)
    program = Program(
        "program:old",
        "/etc/supervisor/conf.d/old.conf",
        {"shop:old": 7},
        wait_s,
        as_group,
        ("shop:old",),
    )
    texts = {"program old": UnitText((), (), settings)}
    conf = {program.path: ConfFile(b"[program:old]\nautostart=true\n", 0o640, NOW - 9)}
    above = (Ancestor(7, "sh"), Ancestor(5, "supervisord"))
    return Foreign(texts, (), {"program old": program}, conf), a_process(
        unit="", above=above, **more
    )


def taking_programs(
    *settings: tuple[str, str], host: FleetHost | None = None, **more: Any
) -> list[Finding]:
    host = host or a_host()
    foreign, process = a_program(*settings, **more)
    services = {
        "high": ServiceState(None, None, "stopped"),
        "beat": ServiceState(101, NOW - 500, "active"),
    }
    state = make_state(host, services=services, census=Census((process,), {}), foreign=foreign)
    fleet = make_fleet(host)
    snapshot = make_snapshot(fleet, broker=make_broker(fleet, nodes={}), hosts={"web1": state})
    return list(
        take_over.findings(fleet, snapshot, {"web1": {host.unit_path("high"): OURS}}, kill=False)
    )


def test_a_program_of_supervisords_makes_way_for_a_unit_which_gets_what_its_conf_file_says() -> (
    None
):
    (found,) = taking_programs(
        ("User", "deploy"), ("UMask", "0027"), ("WorkingDirectory", "/srv/shop"),
        ("Environment", '"REGION=eu west"'),
    )  # fmt: skip
    carried, kept_away, stop = found.fix
    assert isinstance(carried.do, WriteFile)
    assert carried.do.content
    assert carried.do.content.decode().splitlines()[1:] == [
        "[Service]",
        "User=deploy",
        "UMask=0027",
        'Environment="REGION=eu west"',
    ]
    assert isinstance(kept_away.do, WriteFile)
    assert kept_away.do.content == b"[program:old]\nautostart=false\n"
    assert (kept_away.do.path, kept_away.do.mode) == ("/etc/supervisor/conf.d/old.conf", 0o640)
    assert stop.do == ControlOther(
        "supervisord", "program old", "stop", ((900, 4000),), programs=("shop:old",)
    )
    assert stop.undo == ControlOther("supervisord", "program old", "start", programs=("shop:old",))


def test_a_program_that_does_not_run_is_kept_from_starting_with_supervisord_unless_it_is_the_inventory_s() -> (
    None
):
    path = "/etc/supervisor/conf.d/old.conf"
    texts = {
        "program old": UnitText(
            (),
            (),
            (
                ("WorkingDirectory", "/srv/shop"),
                ("ExecStart", '"celery" "-A" "shop" "worker" "-Q" "high_q"'),
            ),
        )
    }

    def judged(
        conf: bytes = b"[program:old]\n", service: str | None = None, pid: int = 0
    ) -> list[Finding]:
        pids = {"old:old": pid} if pid else {}
        program = Program("program:old", path, pids, 60, as_group=False, names=("old:old",))
        foreign = Foreign(
            texts, (), {"program old": program}, {path: ConfFile(conf, 0o640, NOW - 9)}
        )
        worker = Worker(name="high", service=service, queues=("high_q",))
        host = make_host(service_manager="supervisor", commands=None, workers=(worker,), beat=False)
        services = {worker.known_as: ServiceState(None, None, "STOPPED")}
        state = make_state(host, services=services, census=Census((), {}), foreign=foreign)
        fleet = make_fleet(host)
        return list(
            take_over.findings(
                fleet, make_snapshot(fleet, hosts={"web1": state}), {"web1": {}}, kill=False
            )
        )

    (found,) = judged()
    (change,) = found.fix
    assert found.summary == "program old does the work of high"
    assert change.summary.startswith(f"set autostart=false of program old in {path}")
    assert judged(service="old") == []
    assert judged(b"# Managed by celery-runbooks for shop;\n[program:old]\n") == []
    assert judged(pid=9) == [], "one that runs is known by its processes"


def test_two_programs_of_one_conf_file_are_kept_from_starting_by_one_change() -> None:
    foreign, process = a_program()
    path = "/etc/supervisor/conf.d/old.conf"
    command = ("ExecStart", '"celery" "-A" "shop" "worker" "-Q" "high_q"')
    spare = Program("program:spare", path, {}, 60.0, as_group=False, names=("shop:spare",))
    both = Foreign(
        foreign.units | {"program spare": UnitText((), (), (command,))},
        programs=foreign.programs | {"program spare": spare},
        conf_files={
            path: ConfFile(b"[program:old]\nautostart=true\n[program:spare]\n", 0o640, NOW - 9)
        },
    )
    host = make_host(service_manager="supervisor", commands=None, beat=False, env={})
    state = make_state(
        host,
        services={"high": ServiceState(None, None, "")},
        census=Census((process,)),
        foreign=both,
    )
    fleet = make_fleet(host)
    snapshot = make_snapshot(fleet, broker=make_broker(fleet, nodes={}), hosts={"web1": state})
    kept_away, stop = changes(
        take_over.findings(fleet, snapshot, {"web1": {}}, kill=False), take_over.STEP
    )
    assert isinstance(kept_away.do, WriteFile)
    assert (
        kept_away.do.content
        == b"[program:old]\nautostart=false\n[program:spare]\nautostart=false\n"
    )
    assert stop.summary == "stop program old, which does the work of high"


@pytest.mark.parametrize(
    ("settings", "more", "why"),
    [
        (
            (("Environment", '"API_TOKEN=x"'),),
            {},
            "environment= in its conf file sets API_TOKEN, which may be a secret",
        ),
        ((), {"as_group": True}, "because of stopasgroup a stop ends its tasks at once"),
        ((), {"wait_s": 10.0}, "a stop kills what runs after 10 s (its stopwaitsecs;"),
        (
            (("Environment", '"REGION=eu"'),),
            {"host": make_host()},
            "sets REGION, and the environment file does not",
        ),
    ],
)
def test_a_program_whose_stop_or_variables_would_cost_something_is_left_alone(
    settings: tuple[tuple[str, str], ...], more: dict[str, Any], why: str
) -> None:
    (found,) = taking_programs(*settings, **more)
    assert found.code == "worker.not_taken_over"
    assert why in found.summary
