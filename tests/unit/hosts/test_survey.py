"""What systemd says of the units that start Celery, and which supervisords count."""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from runbooks.core.census import Options
from runbooks.hosts.celery_argv import options_of
from runbooks.hosts.celery_multi import workers_in
from runbooks.hosts.script import Answer
from runbooks.hosts.survey import ask_processes, env_files_of, parse_processes, parse_units

SHOWN = """\
Id=celerybeat.service
FragmentPath=/etc/systemd/system/celerybeat.service
EnvironmentFiles=/etc/default/celery (ignore_errors=no)
EnvironmentFiles=/etc/shop.env (ignore_errors=yes)
ExecStart={ path=/bin/sh ; argv[]=/bin/sh -c ${CELERY_BIN} -A ${CELERY_APP} beat -s /run/c/schedule --pidfile=${PID} ; ignore_errors=no ; start_time=[n/a] }
WorkingDirectory=/srv/shop
User=deploy
UnitFileState=enabled
ActiveState=inactive

Id=celery.service
FragmentPath=/etc/systemd/system/celery.service
ExecStart={ path=/bin/sh ; argv[]=/bin/sh -c ${CELERY_BIN} -A $CELERY_APP multi start $CELERYD_NODES $OPTS ; ignore_errors=no ; pid=0 }
WorkingDirectory=/srv/shop
User=deploy
UnitFileState=disabled
ActiveState=inactive

Id=mail.service
ExecStart={ path=/v/bin/python ; argv[]=/v/bin/python -m celery -A shop worker -n mail@%h -Q mail -E ; ignore_errors=no ; pid=0 }
UnitFileState=static
ActiveState=active
"""


def test_a_unit_shows_its_role_its_files_and_whether_it_is_to_run() -> None:
    found = {one.name: one for one in parse_units(Answer(0, SHOWN.encode(), ""), {})}
    beat, multi, mail = found["celerybeat.service"], found["celery.service"], found["mail.service"]
    assert beat.options == Options("beat", schedule="/run/c/schedule")
    assert (beat.env_files, beat.directory, beat.user) == (
        ("/etc/default/celery", "/etc/shop.env"),
        "/srv/shop",
        "deploy",
    )
    assert (multi.options, multi.wanted, beat.wanted) == (None, False, True)
    assert (mail.options, mail.extra, mail.python) == (
        Options("worker", app="shop", node="mail@%h", queues=("mail",)), ("-E",), "/v/bin/python",
    )  # fmt: skip


def test_the_documented_units_show_their_nodes_by_the_files_that_they_read() -> None:
    files = "EnvironmentFiles=/etc/default/celery (ignore_errors=no)"
    shown = Answer(
        0, SHOWN.replace("Id=celery.service", f"Id=celery.service\n{files}").encode(), ""
    )
    assert env_files_of(shown) == ["/etc/default/celery", "/etc/shop.env"]
    beat, one, two, _ = parse_units(shown, {"/etc/default/celery": DEFAULTS, "/etc/shop.env": b""})
    assert beat.options == Options("beat", app="shop", schedule="/run/c/schedule")
    assert (one.options, one.extra) == (
        Options("worker", app="shop", node="w1@%h", queues=("mail",), concurrency=2), ("--time-limit=300",),
    )  # fmt: skip
    assert two.options == Options(
        "worker", app="shop", node="w2@%h", queues=("post", "low"), concurrency=2
    )
    assert (one.python, two.wanted) == ("/srv/venv/bin/python", False)


DEFAULTS = b"""
CELERYD_NODES="w1 w2"
CELERY_BIN="/srv/venv/bin/python -m celery"
CELERY_APP=shop
OPTS="--time-limit=300 --concurrency=2 -Q:w1 mail -Q:2 post,low"
"""
NUMBERED = "celery multi start 3 -A shop -c 2 -Q:1-2 mail -Q:3 post --pidfile=/run/%n.pid"


def test_a_number_of_nodes_means_celery1_and_so_on() -> None:
    found = [options_of(one) for one in workers_in(NUMBERED.split())]
    assert [(one.node, one.queues, one.concurrency) for one in found if one] == [
        ("celery1@%h", ("mail",), 2), ("celery2@%h", ("mail",), 2), ("celery3@%h", ("post",), 2),
    ]  # fmt: skip
    for other in ("celery multi", "celery multi stop w1", "celery -A multi worker"):
        assert workers_in(other.split()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize(("user", "counts"), [("root", True), ("nobody", False)])
def test_a_supervisorctl_counts_only_beside_a_supervisord_of_root_or_of_ones_own(
    user: str, counts: bool
) -> None:
    """It would be run with the rights of whoever looks."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for program in ("supervisord", "supervisorctl"):
            shutil.copy("/bin/sleep", folder / program)
        process = subprocess.Popen([folder / "supervisord", "600"], user=user)
        try:
            done = subprocess.run(["sh", "-c", ask_processes([])], capture_output=True, check=True)
        finally:
            process.kill()
            process.wait()
        found = parse_processes(Answer(0, done.stdout, "")).supervisords
        assert [one.ctl for pid, one in found.items() if pid == process.pid] == (
            [str(folder / "supervisorctl")] if counts else []
        )
