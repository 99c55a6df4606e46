"""What systemd says of the units that start Celery."""

from runbooks.core.census import Options
from runbooks.hosts.script import Answer
from runbooks.hosts.survey import parse_units

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
"""  # noqa: E501


def test_a_unit_tells_its_role_its_files_and_whether_it_is_to_run() -> None:
    found = parse_units(Answer(0, SHOWN.encode(), ""))
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
