"""Which units run the application's workers beside ours, from what hosts answered."""

import pytest

from runbooks.core.model import OtherUnit
from runbooks.hosts.script import Answer, run_fragments
from runbooks.hosts.strangers import ask_strangers, parse_strangers, what_runs
from runbooks.hosts.transport import LocalTransport
from tests.unit.fleets import make_host

PYTHON = "/srv/venv/bin/python -m celery"
OLD1 = f"{PYTHON} -A printer_inventory worker -Q low_priority --pidfile=/run/celery/old1.pid -n old1@web1"
SHOWN = f"""\
Type=notify
ExecStart={{ path=/usr/sbin/sshd ; argv[]=/usr/sbin/sshd -D $SSHD_OPTS ; ignore_errors=no ; pid=0 ; status=0/0 }}
Id=ssh.service
FragmentPath=/lib/systemd/system/ssh.service

Type=simple
ExecStart={{ path=/srv/venv/bin/python ; argv[]={PYTHON} --app printer_inventory.celery:app worker ; status=0/0 }}
Id=printers.service
FragmentPath=/etc/systemd/system/printers.service

Type=forking
ExecStart={{ path=/bin/sh ; argv[]=/bin/sh -c ${{CELERY_BIN}} -A $CELERY_APP multi start $CELERYD_NODES ; status=0/0 }}
Id=celery.service
FragmentPath=/etc/systemd/system/celery.service
"""


def process(unit: str, pid: int, command: str, *, parent: int = 1, here: str = "here") -> str:
    return f"{here} {unit} {pid} (python) S {parent} {pid} {pid} 0 -1 4194304 25967 75 4 0 66\n{command} \n"


def units(*processes: str, shown: str = SHOWN) -> tuple[OtherUnit, ...]:
    return parse_strangers(Answer(0, ("".join(processes) + "---\n" + shown).encode(), ""), "printer_inventory")


def test_units_of_celery_multi_and_plain_ones_are_told_with_their_nodes_and_without_their_children() -> None:
    found = units(
        process("printers.service", 621, f"{PYTHON} --app printer_inventory.celery:app worker -Q daemon -n a@web1"),
        process("celery.service", 625, OLD1),
        process("celery.service", 631, OLD1, parent=625),
        process("celery.service", 629, OLD1.replace("old1", "old2")),
    )
    assert found == (
        OtherUnit("celery.service", "/etc/systemd/system/celery.service", True,
                  {625: "worker old1@web1", 629: "worker old2@web1"}),
        OtherUnit("printers.service", "/etc/systemd/system/printers.service", False, {621: "worker a@web1"}),
    )  # fmt: skip


@pytest.mark.parametrize("unit", ["ssh.service", "session-3.scope"])
def test_a_unit_that_does_more_than_run_celery_is_not_named_as_one_to_be_stopped(unit: str) -> None:
    (found,) = units(process(unit, 487, f"{PYTHON} -A printer_inventory beat -s /tmp/schedule"))
    assert found == OtherUnit(unit, "", False, {487: "beat"})


@pytest.mark.parametrize(
    ("command", "here", "told"),
    [
        ("[celeryd: a@web1:MainProcess] -active- (-A printer_inventory worker -n a@web1)", "", "worker a@web1"),
        ("/srv/venv/bin/celery worker --hostname=a@%h", "here", "worker a@%h"),
        ("/srv/venv/bin/celery -A printer_inventory -b redis://:s3cret@broker/0 worker", "", "worker"),
        ("/srv/venv/bin/celery worker", "", ""),
        (f"{PYTHON} -A another worker", "here", ""),
        (f"{PYTHON} -A printer_inventory flower", "here", ""),
        ("tail -F /var/log/celery/worker.log", "here", ""),
        ("", "here", ""),
    ],
)
def test_what_counts_is_a_worker_or_beat_of_this_application(command: str, here: str, told: str) -> None:
    found = units(process("celery.service", 1234, command, here=here))
    assert [list(unit.runs.values()) for unit in found] == ([[told]] if told else [])


def test_another_applications_workers_on_the_machine_are_not_told() -> None:
    answer = run_fragments(LocalTransport(), {"others": ask_strangers(make_host())}, timeout_s=30)["others"]
    assert b"---\n" in answer.out
    assert parse_strangers(answer, "an_application_that_nobody_has") == ()


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        ("/srv/venv/bin/python -m celery -A shop worker -B -n w1@web1 -Q high", "worker w1@web1 -B"),
        ("/srv/venv/bin/celery -A shop worker --beat -n w1@web1", "worker w1@web1 -B"),
        ("[celeryd: w1@web1:MainProcess] -active- (-A shop worker -n w1@web1 -B)", "worker w1@web1 -B"),
        ("/srv/venv/bin/celery -A shop worker -B", "worker -B"),
        ("/srv/venv/bin/celery -A shop worker -n w1@web1", "worker w1@web1"),
        ("/srv/venv/bin/celery -A shop beat", "beat"),
    ],
)
def test_a_worker_that_is_a_beat_too_is_told_as_such(command: str, runs: str) -> None:
    assert what_runs(command) == runs
