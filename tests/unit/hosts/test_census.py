"""The Celery processes of a host, and who else runs the application's workers beside ours, from
what hosts answered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from runbooks.core.census import (
    BrokerPlace,
    CeleryProcess,
    Census,
    Connection,
    Kind,
    Manager,
    Unit,
    started_by,
)
from runbooks.core.managers import SYSTEMD_UNITS
from runbooks.core.model import OtherRunner
from runbooks.hosts.census import others, parse_census
from runbooks.hosts.facts import Clock
from runbooks.hosts.script import Answer

PYTHON = "/srv/venv/bin/python -m celery"
OLD1 = (
    f"{PYTHON} -A printer_inventory worker -Q low_priority --pidfile=/run/celery/old1.pid -n"
    " old1@web1"
)
ID = "0123456789abcdef" * 4
UNITS = """\
Type=notify
Id=ssh.service
FragmentPath=/lib/systemd/system/ssh.service

Type=simple
RunsCelery=yes
Id=printers.service
FragmentPath=/etc/systemd/system/printers.service
Environment=PATH= DJANGO_SETTINGS_MODULE=

Type=forking
RunsCelery=yes
Id=celery.service
FragmentPath=/etc/systemd/system/celery.service
UnitFileState=enabled
KillMode=process
ActiveState=activating
SubState=auto-restart
NRestarts=41
User=www-data
Environment=?
"""
UNSUITED = """\
/etc/systemd/system/celery.service:7:Type=forking
/etc/systemd/system/celery.service.d/kill.conf:2: KillMode = process
/etc/systemd/system/other.service:9:Type=forking
"""
CLOCK = Clock(1000.0, 100.0, 100)


def masks(ignored: Sequence[int], caught: Sequence[int]) -> tuple[str, ...]:
    """The lines of a status that say which signals are ignored and caught."""
    bits = {"SigIgn": ignored, "SigCgt": caught}
    return tuple(
        f"{name}:\t{sum(1 << one - 1 for one in signals):016x}" for name, signals in bits.items()
    )


MAIN, CHILD, BEAT, PLAIN = (
    masks((), (2, 3, 10, 15)),
    masks((2,), (3, 10, 15)),
    masks((), (2, 15)),
    masks((13,), (2,)),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A process as a host prints it, with the signals of a main process, or those of a beat."""

    group: str
    pid: int
    command: str
    parent: int = 1
    flags: str = "here -"
    signals: Sequence[str] = ()
    forked: bool = False
    name: str = "python"
    program: str = "/usr/bin/python3.11"
    state: str = "S"
    sockets: Sequence[int] | None = field(default=None)

    def lines(self) -> Iterator[str]:
        flags = 4194304 + 64 * self.forked
        head = f"{self.pid} ({self.name}) {self.state} {self.parent} 9 9 0 -1 {flags}"
        yield f"stat:{head} 4 0 0 0 120 30 0 0 20 0 1 0 4000"
        signals = self.signals or (BEAT if " beat" in self.command else MAIN)
        yield from (
            f"status:{line}" for line in ("VmRSS:\t   2048 kB", f"NSpid:\t{self.pid}\t7", *signals)
        )
        yield f"cgroup:{self.group}"


def process(unit: str, pid: int, command: str, *, parent: int = 1, here: str = "here") -> Shown:
    return Shown(f"0::/system.slice/{unit}", pid, command, parent, f"{here or '-'} -")


def census(
    *shown: Shown, above: str = "", network: str = "", environs: str = "", hidden: str = ""
) -> Census:
    programs = {one.pid: f"{one.program}'" for one in shown if one.program}
    parts = [
        "".join(f"{one.pid} {one.flags}\n" for one in shown) + hidden,
        "".join(f"/proc/{one.pid}/{line}\n" for one in shown for line in one.lines()),
        above,
        "".join(f"/proc/{one.pid} 33 www-data '/proc/{one.pid}'\n" for one in shown)
        + "".join(
            f"/proc/{pid}/exe 0 root '/proc/{pid}/exe' -> '{program}\n"
            for pid, program in programs.items()
        ),
        "".join(
            "\n".join([f"={one.pid}", *map(str, one.sockets), ""])
            for one in shown
            if one.sockets is not None
        ),
        network,
        environs,
        UNITS,
        UNSUITED,
        "".join(
            f"/proc/{one.pid}/cmdline:" + one.command.replace(" ", "\0") + "\0\n" for one in shown
        ),
    ]
    return parse_census(Answer(0, "---\n".join(parts).encode(), ""), CLOCK, {})


def only(*shown: Shown, **sections: str) -> CeleryProcess:
    (one,) = census(*shown, **sections).processes
    return one


def found(
    *shown: Shown, app: str = "printer_inventory", ours: Sequence[int] = (), above: str = ""
) -> tuple[OtherRunner, ...]:
    own_groups = (SYSTEMD_UNITS.name("*"), SYSTEMD_UNITS.beat)
    return others(app, census(*shown, above=above), own_groups, ours)


# --- who else runs it -------------------------------------------------------------------------------------------------


def test_units_of_celery_multi_and_plain_ones_are_reported_with_their_nodes_and_without_their_children() -> (
    None
):
    assert found(
        process("printers.service", 621, f"{PYTHON} --app printer_inventory.celery:app worker -Q daemon -n a@web1"),
        process("celery.service", 625, OLD1),
        process("celery.service", 631, OLD1, parent=625),
        process("celery.service", 629, OLD1.replace("old1", "old2")),
    ) == (
        OtherRunner("celery.service", {625: "worker old1@web1", 629: "worker old2@web1"}, Manager.SYSTEMD,
                    "/etc/systemd/system/celery.service", forking=True),
        OtherRunner("printers.service", {621: "worker a@web1"}, Manager.SYSTEMD,
                    "/etc/systemd/system/printers.service"),
    )  # fmt: skip


def test_a_unit_of_a_users_own_systemd_is_not_taken_for_the_machines_of_the_same_name() -> None:
    group = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/printers.service"
    assert found(Shown(group, 621, f"{PYTHON} -A printer_inventory worker -n a@web1")) == (
        OtherRunner("printers.service of user 1000", {621: "worker a@web1"}, Manager.USERS_SYSTEMD),
    )


@pytest.mark.parametrize("unit", ["ssh.service", "session-3.scope"])
def test_a_unit_that_does_more_than_run_celery_is_not_named_as_one_to_be_stopped(unit: str) -> None:
    shown = process(unit, 487, f"{PYTHON} -A printer_inventory beat -s /tmp/schedule")
    assert found(shown) == (OtherRunner(unit, {487: "beat"}),)


SUPERVISORD = "5 (supervisord) S 1 5 5 0 -1 0 0 0 0 0 1 1 0 0 20 0 1 0 9\n"


@pytest.mark.parametrize(
    ("group", "flags", "parent", "name", "manager"),
    [
        ("0::/", "here -", 1, "process 9", None),
        ("0::/system.slice/cron.service", "here -", 5, "supervisord", Manager.SUPERVISORD),
        (f"0::/docker/{ID}", "- inside", 1, "container 0123456789ab", Manager.DOCKER),
        (
            f"0::/system.slice/docker-{ID}.scope",
            "- inside",
            1,
            "container 0123456789ab",
            Manager.DOCKER,
        ),
        (f"0::/libpod_parent/libpod-{ID}", "- inside", 1, "container 0123456789ab", Manager.PODMAN),
        (
            f"0::/kubepods/cri-containerd-{ID}.scope",
            "- inside",
            1,
            "container 0123456789ab",
            Manager.CONTAINER,
        ),
        (f"0::/docker/{ID}", "here -", 1, "process 9", None),  # this host is the container
    ],
)
def test_who_runs_it_is_reported(
    group: str, flags: str, parent: int, name: str, manager: Manager | None
) -> None:
    shown = Shown(group, 9, f"{PYTHON} -A printer_inventory worker -n a@web1", parent, flags)
    assert found(shown, above=SUPERVISORD) == (OtherRunner(name, {9: "worker a@web1"}, manager),)


def test_what_runs_on_a_host_inside_this_one_is_not_here() -> None:
    group = "1:name=systemd:/fleet/web1/payload/system.slice/celery.service"
    assert found(Shown(group, 9, OLD1, flags="- inside")) == ()


def test_what_belongs_to_a_service_of_ours_is_no_one_elses() -> None:
    main, child = Shown("0::/", 9, OLD1), Shown("0::/", 10, OLD1, parent=9)
    assert found(main, child, ours=[9]) == ()
    assert found(process("celery-worker@high.service", 9, OLD1)) == ()


@pytest.mark.parametrize(
    ("command", "here", "expected"),
    [
        (
            "[celeryd: a@web1:MainProcess] -active- (-A printer_inventory worker -n a@web1)",
            "",
            "worker a@web1",
        ),
        ("[celeryd: a@web1:ForkPoolWorker-1]", "here", ""),
        ("[celery beat]", "here", "beat"),
        ("/srv/venv/bin/celery worker --hostname=a@%h", "here", "worker a@%h"),
        (
            "/srv/venv/bin/celery -A printer_inventory -b redis://:s3cret@broker/0 worker",
            "",
            "worker",
        ),
        (
            (
                "/srv/venv/bin/python3.11 -u -W ignore /srv/venv/bin/celery -A printer_inventory"
                " worker"
            ),
            "",
            "worker",
        ),
        ("python manage.py celery worker", "here", "worker"),
        ("/srv/venv/bin/celery worker", "", ""),
        (f"{PYTHON} -A another worker", "here", ""),
        (f"{PYTHON} -A printer_inventory flower", "here", ""),
        ("sh -c celery -A printer_inventory worker", "here", ""),
        ("watch celery -A printer_inventory worker", "here", ""),
        ("tail -F /var/log/celery/worker.log", "here", ""),
        ("", "here", ""),
    ],
)
def test_what_counts_is_a_worker_or_beat_of_this_application(
    command: str, here: str, expected: str
) -> None:
    runs = [
        list(one.runs.values())
        for one in found(process("celery.service", 1234, command, here=here))
    ]
    assert runs == ([[expected]] if expected else [])


@pytest.mark.parametrize(
    ("command", "expected"), [("beat", "beat"), ("worker", "worker"), ("flower", "")]
)
def test_an_application_that_is_called_worker_is_not_a_worker(command: str, expected: str) -> None:
    runs = [
        list(one.runs.values())
        for one in found(process("a.service", 9, f"{PYTHON} -A worker {command}"), app="worker")
    ]
    assert runs == ([[expected]] if expected else [])


@pytest.mark.parametrize(
    ("own_groups", "inside", "reported"),
    [((), True, True), ((), False, False), (("celery-worker@*",), False, True)],
)
def test_without_systemd_another_directory_is_another_installation(
    own_groups: Sequence[str], inside: bool, reported: bool
) -> None:
    seen = census(
        process(
            "", 9, "python /v/celery -A shop worker -n by_hand@web1", here="here" if inside else ""
        )
    )
    runs = [what for one in others("shop", seen, own_groups, ()) for what in one.runs.values()]
    assert runs == (["worker by_hand@web1"] if reported else [])
    assert [one.pid for one in seen.processes] == [9]  # the census has it all the same


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        (f"{PYTHON} -A shop worker -B -n w1@web1 -Q high", "worker w1@web1 -B"),
        ("/srv/venv/bin/celery -A shop worker --beat -n w1@web1", "worker w1@web1 -B"),
        (
            "[celeryd: w1@web1:MainProcess] -active- (-A shop worker -n w1@web1 -B)",
            "worker w1@web1 -B",
        ),
        ("/srv/venv/bin/celery -A shop worker -B", "worker -B"),
        ("/srv/venv/bin/celery -A shop worker -n w1@web1", "worker w1@web1"),
        ("/srv/venv/bin/celery -A shop beat", "beat"),
    ],
)
def test_a_worker_that_is_a_beat_too_is_reported_as_such(command: str, runs: str) -> None:
    assert [one.runs for one in found(process("a.service", 9, command), app="shop")] == [{9: runs}]


# --- what a process is ------------------------------------------------------------------------------------------------

WORKER = f"{PYTHON} -A shop worker -n a@web1"


@pytest.mark.parametrize(
    ("signals", "forked", "kind"),
    [
        (MAIN, False, Kind.MAIN),
        (CHILD, True, Kind.CHILD),
        (MAIN, True, Kind.MAIN),  # a program has forked it: its command is not a beat's
        (PLAIN, False, Kind.UNCLEAR),  # still importing the application
        (CHILD, False, Kind.UNCLEAR),
    ],
)
def test_processes_of_one_command_are_told_apart_by_their_signals(
    signals: Sequence[str], forked: bool, kind: Kind
) -> None:
    assert only(Shown("0::/", 9, WORKER, signals=signals, forked=forked)).kind is kind


def test_the_pool_and_the_beat_of_a_worker_that_is_gone_are_left_of_it() -> None:
    alive = [
        Shown("0::/", 9, f"{WORKER} -B"),
        Shown("0::/", 10, f"{WORKER} -B", 9, signals=CHILD, forked=True),
        Shown("0::/", 11, f"{WORKER} -B", 9, signals=MAIN, forked=True),
        Shown("0::/", 12, f"{WORKER} -B", 10, signals=CHILD, forked=True),  # forked by a task
    ]
    seen = census(*alive)
    kinds = [Kind.MAIN, Kind.CHILD, Kind.EMBEDDED_BEAT, Kind.CHILD]
    assert [(one.kind, one.leftover) for one in seen.processes] == [(kind, False) for kind in kinds]
    assert [one.pid for one in seen.children_of(9)] == [10, 11]
    assert [(one.kind, one.leftover) for one in census(*alive[1:]).processes] == [
        (kind, True) for kind in kinds[1:]
    ]


def test_a_worker_with_beat_that_a_program_has_forked_is_known_by_its_pool() -> None:
    main = Shown("0::/", 9, f"{WORKER} -B", signals=MAIN, forked=True)
    pool = Shown("0::/", 10, f"{WORKER} -B", 9, signals=CHILD, forked=True)
    assert [one.kind for one in census(main, pool).processes] == [Kind.MAIN, Kind.CHILD]


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("[celeryd: a@web1:MainProcess] -active- (-A shop worker -n a@%h)", Kind.MAIN),
        ("[celeryd: a@web1:ForkPoolWorker-1]", Kind.CHILD),
        ("[celery beat]", Kind.EMBEDDED_BEAT),
        ("[celery beat] -A shop beat", Kind.BEAT),
    ],
)
def test_a_title_decides_by_itself_and_has_the_whole_name_of_the_node(
    title: str, kind: Kind
) -> None:
    one = only(Shown("0::/", 9, title, signals=PLAIN, name="[celeryd: a@web"))
    assert one.kind is kind
    assert (one.options.node, one.options.titled) == (
        ("", False) if "beat]" in title else ("a@web1", True)
    )


@pytest.mark.parametrize(
    ("program", "name", "counts"),
    [
        ("/usr/bin/python3.11", "celery", True),
        ("/usr/bin/python3.11 (deleted)", "celery", True),
        ("/usr/bin/tini", "tini", False),
        ("", "celery", True),  # another user's program may not be seen, but its short name
        ("", "python3", True),
        ("", "watch", False),
        ("", "tail", False),
    ],
)
def test_a_program_that_is_not_python_is_not_celery(program: str, name: str, counts: bool) -> None:
    seen = census(Shown("0::/", 9, "celery -A shop worker", program=program, name=name))
    assert len(seen.processes) == counts


MAPPED, IPV6 = "0000000000000000FFFF00000100007F", "B80D0120000000000000000001000000"
NETWORK = f"""\
   0: 0100007F:C001 0200000A:18EB 01 00000000:00000000 00:00000000 00000000    33        0 71 1 0000000000000000 20 4
   1: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 72 1 0000000000000000 20 4
   0: {MAPPED}:C002 {IPV6}:18EC 06 00000000:00000000 00:00000000 00000000    33        0 99 1 0000000000000000 20 4
   1: {MAPPED}:C003 {IPV6}:18EC 01 00000000:00000000 00:00000000 00000000    33        0 73 1 0000000000000000 20 4
"""


def test_a_process_is_reported_with_all_that_is_known_of_it() -> None:
    command = f"{PYTHON} -A shop:app worker -n a@%h -Q high,low -P gevent -c 20 -B"
    above = "".join(
        f"{pid} ({name}) S {up} 1 1 0 -1 0\n" for pid, name, up in [(7, "sh", 6), (6, "tini", 5)]
    )
    one = only(
        Shown("0::/system.slice/a.service", 9, command, 7, state="T", sockets=[71, 72, 73]),
        above=above + SUPERVISORD,
        network=NETWORK,
        environs="9 group shop\n9 process high\n9 redis 3 6380 broker.example\n",
    )
    assert (one.stopped, one.user, one.memory_bytes, one.cpu_s, one.inner_pid) == (
        True,
        "www-data",
        2 << 20,
        1.5,
        7,
    )
    assert (one.started_at, one.start_ticks, one.here, one.terminal) == (940.0, 4000, True, False)
    assert (one.unit, one.program, one.wrappers) == ("a.service", "shop:high", ("sh", "tini"))
    assert one.connections == (
        Connection("127.0.0.1:49153", "10.0.0.2:6379"),
        Connection("127.0.0.1:49155", "[2001:db8::1]:6380"),
    )
    assert one.named_broker == BrokerPlace("broker.example", 6380, 3)
    options = one.options
    assert (options.app, options.node, options.queues, options.pool, options.concurrency, options.with_beat) == (
        "shop:app", "a@%h", ("high", "low"), "gevent", 20, True,
    )  # fmt: skip


def test_supervisords_program_is_known_from_what_stands_between_where_a_title_hides_it() -> None:
    above = f"7 (sh) S 5 1 1 0 -1 0\n{SUPERVISORD}"
    title = "[celeryd: a@web1:MainProcess] -active- (-A shop worker)"
    below = only(Shown("0::/", 9, title, 7), above=above, environs="7 group a\n7 process a_00\n")
    assert below.program == "a:a_00"
    apart = only(
        Shown("0::/", 9, WORKER), environs="9 group a\n9 process a_00\n"
    )  # that supervisord is gone
    assert [started_by(one, {}).manager for one in (below, apart)] == [Manager.SUPERVISORD, None]


def test_what_may_not_be_seen_of_another_users_process_is_unknown() -> None:
    one = only(Shown("0::/", 9, WORKER, flags="- -", program="", name="celery"))
    assert (one.here, one.connections, one.named_broker) == (None, None, None)
    assert census(Shown("0::/", 9, WORKER), hidden="hidden\n").hidden


def test_the_broker_of_the_command_line_is_reported_without_its_login() -> None:
    one = only(Shown("0::/", 9, f"{PYTHON} -A shop -b redis://me:s3cret@broker:1/2 worker"))
    assert one.named_broker == BrokerPlace("broker", 1, 2)
    assert "s3cret" not in repr(one)


def test_a_unit_is_reported_with_what_it_does_to_its_processes() -> None:
    units = census().units
    assert units["celery.service"] == Unit(
        "celery.service", "/etc/systemd/system/celery.service", "enabled", "forking", "process", "activating",
        "auto-restart", 41, names_celery=True, user="www-data", variables=None,
        lines=(
            "/etc/systemd/system/celery.service:7: Type=forking",
            "/etc/systemd/system/celery.service.d/kill.conf:2: KillMode=process",
        ),
    )  # fmt: skip
    assert units["printers.service"].variables == ("PATH", "DJANGO_SETTINGS_MODULE")
    assert not units["ssh.service"].names_celery
