"""A fleet as it is: units of Celery's own documentation that the inventory names are kept, watched and restarted."""

import re

import pytest

from tests.fleet.conftest import FleetWorld, wait_until
from tests.fleet.test_as_they_are import root, two, words
from tests.sandbox.conftest import Done

__all__ = ("two",)

UNITS = "/etc/systemd/system"
DEFAULTS = """
CELERYD_NODES="w1"
CELERY_BIN="/srv/venv/bin/python -m celery"
CELERY_APP="printer_inventory"
CELERYD_OPTS="-Q low_priority --concurrency=1"
CELERYD_PID_FILE="/var/run/celery/%n.pid"
CELERYD_LOG_FILE="/var/log/celery/%n%I.log"
CELERYD_LOG_LEVEL="INFO"
CELERYBEAT_PID_FILE="/var/run/celery/beat.pid"
CELERYBEAT_LOG_FILE="/var/log/celery/beat.log"
"""
# Celery's guide "Daemonization", celery 5.7.0, with the application's user, folder and environment.
CELERY = """
[Unit]
Description=Celery Service
After=network.target

[Service]
Type=forking
User=deploy
EnvironmentFile=/etc/default/celery
EnvironmentFile=/etc/printer_inventory.env
WorkingDirectory=/srv/printer_inventory
RuntimeDirectory=celery
LogsDirectory=celery
ExecStart=/bin/sh -c '${CELERY_BIN} -A $CELERY_APP multi start $CELERYD_NODES \\
    --pidfile=${CELERYD_PID_FILE} --logfile=${CELERYD_LOG_FILE} \\
    --loglevel="${CELERYD_LOG_LEVEL}" $CELERYD_OPTS'
ExecStop=/bin/sh -c '${CELERY_BIN} multi stopwait $CELERYD_NODES \\
    --pidfile=${CELERYD_PID_FILE} --logfile=${CELERYD_LOG_FILE} \\
    --loglevel="${CELERYD_LOG_LEVEL}"'
Restart=always

[Install]
WantedBy=multi-user.target
"""
BEAT = """
[Unit]
Description=Celery Beat Service
After=network.target

[Service]
Type=simple
User=deploy
EnvironmentFile=/etc/default/celery
EnvironmentFile=/etc/printer_inventory.env
WorkingDirectory=/srv/printer_inventory
RuntimeDirectory=celery
LogsDirectory=celery
ExecStart=/bin/sh -c '${CELERY_BIN} -A ${CELERY_APP} beat -s /var/run/celery/schedule \\
    --pidfile=${CELERYBEAT_PID_FILE} --logfile=${CELERYBEAT_LOG_FILE} --loglevel=${CELERYD_LOG_LEVEL}'
Restart=always

[Install]
WantedBy=multi-user.target
"""


def take_the_place_of(world: FleetWorld, host: str, ours: str, unit: str, text: str) -> None:
    """A host that never had our unit: it has this one instead, which runs."""
    root(world, f"systemctl disable --now {ours}; rm {UNITS}/{ours}.service; systemctl daemon-reload", host)
    for path, content in (("/etc/default/celery", DEFAULTS), (f"{UNITS}/{unit}", text)):
        assert world.ssh(host, f"sudo tee {path}", stdin=content).code == 0
    root(world, f"systemctl daemon-reload; systemctl enable --now {unit}", host)


@pytest.fixture(scope="module")
def named(two: FleetWorld) -> FleetWorld:
    """`.fleet/named.yaml` describes web1's worker_low and the broker's beat as they are; tests leave them running."""
    take_the_place_of(two, "web1", "celery-worker@worker_low", "celery.service", CELERY)
    take_the_place_of(two, "broker", "celery-beat", "celerybeat.service", BEAT)
    text = (two.fleet / "inventory.yaml").read_text()
    for old, new in (
        (
            "name: worker_low\n",
            'name: worker_low\n                unit: celery.service\n                node: "w1@%h"\n',
        ),
        ("celery_beat: true\n", "celery_beat: true\n            celery_beat_unit: celerybeat.service\n"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (two.fleet / "named.yaml").write_text(text)
    wait_until(lambda: inv(two, "verify").code == 0, "the worker of celery.service to answer")
    return two


def inv(world: FleetWorld, verb: str, *arguments: str) -> Done:
    return world.inv(verb, *arguments, "--inventory", ".fleet/named.yaml")


def seen(world: FleetWorld) -> str:
    """What systemd has of the two hosts' units, and since when they run."""
    show = f"cd {UNITS}; sha256sum celery*.service celery.target; ls -d celery*; systemctl show -P InvocationID"
    return root(world, f"{show} celery.service") + root(world, f"{show} celerybeat.service", "broker")


def test_units_that_the_inventory_names_are_well_as_they_are(named: FleetWorld) -> None:
    before = seen(named)
    looked = inv(named, "diagnose")
    assert (looked.code, "Nothing is wrong." in looked.out) == (0, True), looked.out + looked.err
    checked = inv(named, "verify")
    assert checked.code == 0, checked.out
    assert re.search(r"nodes answer ping: 3 of 3", checked.out), checked.out
    done = inv(named, "remediate", "--yes")
    assert done.code == 0, done.out + done.err
    assert "changed: [web1]" not in done.out
    assert "changed: [broker]" not in done.out
    assert seen(named) == before


def test_one_that_is_stopped_is_found_started_proved_and_stopped_again_by_undo(named: FleetWorld) -> None:
    root(named, "systemctl stop celery.service")
    looked = words(inv(named, "diagnose"))
    assert "worker.not_running celery.service on web1" in looked, looked
    done = inv(named, "remediate", "--yes")
    assert done.code == 0, done.out + done.err
    assert "changed: [web1] start celery.service" in done.out
    assert root(named, "systemctl is-active celery.service") == "active\n"
    undone = inv(named, "undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert root(named, "systemctl is-active celery.service || :") == "inactive\n"
    assert inv(named, "remediate", "--yes").code == 0


def test_a_changed_environment_reaches_those_that_read_it(named: FleetWorld) -> None:
    before = seen(named)
    root(named, "sed -i s/GLPI_TIMEOUT_S=30/GLPI_TIMEOUT_S=31/ /etc/printer_inventory.env")
    root(named, "systemctl restart celery.service")
    wait_until(lambda: "worker.not_answering" not in inv(named, "diagnose").out, "celery.service to answer")
    done = inv(named, "remediate", "--yes")
    assert done.code == 0, done.out + done.err
    assert "changed: [web1] restart celery.service" in done.out
    pid = root(named, "systemctl show -P MainPID celery.service").strip()
    assert "GLPI_TIMEOUT_S=30\n" in root(named, f"tr '\\0' '\\n' </proc/{pid}/environ")
    assert seen(named).splitlines()[:5] == before.splitlines()[:5]


def test_its_journal_is_read_and_a_worker_of_ours_beside_it_is_none_of_its(named: FleetWorld) -> None:
    shown = inv(named, "tail-logs", "--grep", "Celery Service", "--limit", "web1")
    assert shown.code == 0, shown.err
    assert "Started celery.service" in shown.out, shown.out


def test_a_unit_that_is_not_there_is_named_and_nothing_is_done_about_it(named: FleetWorld) -> None:
    text = (named.fleet / "named.yaml").read_text()
    (named.fleet / "misspelt.yaml").write_text(text.replace("unit: celery.service", "unit: celeri.service"))
    looked = named.inv("diagnose", "--inventory", ".fleet/misspelt.yaml", "--limit", "web1")
    assert "systemd on web1 has no unit celeri.service" in words(looked), looked.out
    assert "it is at work in celery.service" in words(looked), looked.out
    assert ": worker w1@" in words(looked), looked.out
    done = named.inv("remediate", "--yes", "--inventory", ".fleet/misspelt.yaml", "--limit", "web1")
    assert done.code == 2, done.out + done.err
    assert "celeri.service on web1 is left as it is" in words(done)
