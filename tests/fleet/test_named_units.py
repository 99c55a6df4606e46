"""A fleet as it is: units of Celery's own documentation that the inventory names are kept, watched
and restarted.
"""

import re

import pytest

from tests.fleet.conftest import FleetWorld, wait_until
from tests.fleet.test_as_they_are import root, two, words
from tests.sandbox.conftest import Done

__all__ = ("two",)

UNITS = "/etc/systemd/system"
DEFAULTS = """
CELERYD_NODES="w1 w2"
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
    root(
        world,
        f"systemctl disable --now {ours}; rm {UNITS}/{ours}.service; systemctl daemon-reload",
        host,
    )
    for path, content in (("/etc/default/celery", DEFAULTS), (f"{UNITS}/{unit}", text)):
        assert world.ssh(host, f"sudo tee {path}", stdin=content).code == 0
    root(world, f"systemctl daemon-reload; systemctl enable --now {unit}", host)


@pytest.fixture(scope="module")
def named(two: FleetWorld) -> FleetWorld:
    """`.fleet/named.yaml` describes web1's worker_low and the broker's beat as they are; tests
    leave them running.
    """
    take_the_place_of(two, "web1", "celery-worker@worker_low", "celery.service", CELERY)
    take_the_place_of(two, "broker", "celery-beat", "celerybeat.service", BEAT)
    text = (two.fleet / "inventory.yaml").read_text()
    for old, new in (
        (
            "name: worker_low\n",
            (
                "name: worker_low\n                unit: celery.service\n                node:"
                ' "w1@%h"\n                queues: [low_priority]\n              - name:'
                " worker_more\n                unit: celery.service\n                node:"
                ' "w2@%h"\n'
            ),
        ),
        (
            "celery_beat: true\n",
            "celery_beat: true\n            celery_beat_unit: celerybeat.service\n",
        ),
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
    show = (
        f"cd {UNITS}; sha256sum celery*.service celery.target; ls -d celery*; systemctl show -P"
        " InvocationID"
    )
    return root(world, f"{show} celery.service") + root(
        world, f"{show} celerybeat.service", "broker"
    )


def test_units_that_the_inventory_names_are_well_as_they_are(named: FleetWorld) -> None:
    before = seen(named)
    looked = inv(named, "diagnose")
    assert (looked.code, "Nothing is wrong." in looked.out) == (0, True), looked.out + looked.err
    checked = inv(named, "verify")
    assert checked.code == 0, checked.out
    assert re.search(r"nodes answer ping: 4 of 4", checked.out), checked.out
    done = inv(named, "remediate", "--yes")
    assert done.code == 0, done.out + done.err
    assert "changed: [web1]" not in done.out
    assert "changed: [broker]" not in done.out
    assert seen(named) == before


def test_one_that_is_stopped_is_found_started_proved_and_stopped_again_by_undo(
    named: FleetWorld,
) -> None:
    root(named, "systemctl stop celery.service")
    looked = words(inv(named, "diagnose"))
    assert "worker.not_running celery.service on web1" in looked, looked
    done = inv(named, "remediate", "--yes")
    assert done.code == 0, done.out + done.err
    assert "changed: [web1] start celery.service, which runs worker_low and worker_more" in done.out
    assert root(named, "systemctl is-active celery.service") == "active\n"
    undone = inv(named, "undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert root(named, "systemctl is-active celery.service || :") == "inactive\n"
    assert inv(named, "remediate", "--yes").code == 0


def test_a_changed_environment_reaches_those_that_read_it(named: FleetWorld) -> None:
    before = seen(named)
    root(named, "sed -i s/GLPI_TIMEOUT_S=30/GLPI_TIMEOUT_S=31/ /etc/printer_inventory.env")
    root(named, "systemctl restart celery.service")
    wait_until(
        lambda: "worker.not_answering" not in inv(named, "diagnose").out, "celery.service to answer"
    )
    done = inv(named, "remediate", "--yes")
    assert done.code == 0, done.out + done.err
    assert "changed: [web1] restart celery.service" in done.out
    pid = root(named, "cat /run/celery/w2.pid").strip()
    assert "GLPI_TIMEOUT_S=30\n" in root(named, f"tr '\\0' '\\n' </proc/{pid}/environ")
    assert seen(named).splitlines()[:5] == before.splitlines()[:5]


def test_its_journal_is_read_and_a_worker_of_ours_beside_it_is_not_one_of_its(
    named: FleetWorld,
) -> None:
    shown = inv(named, "tail-logs", "--grep", "Celery Service", "--limit", "web1")
    assert shown.code == 0, shown.err
    assert "Started celery.service" in shown.out, shown.out


def test_a_unit_that_is_not_there_is_named_and_nothing_is_done_about_it(named: FleetWorld) -> None:
    text = (named.fleet / "named.yaml").read_text()
    (named.fleet / "misspelt.yaml").write_text(
        text.replace("unit: celery.service", "unit: celeri.service")
    )
    looked = named.inv("diagnose", "--inventory", ".fleet/misspelt.yaml", "--limit", "web1")
    assert "systemd on web1 has no unit celeri.service" in words(looked), looked.out
    assert "celery.service runs it" in words(looked), looked.out
    assert ": worker w1@" in words(looked), looked.out
    done = named.inv("remediate", "--yes", "--inventory", ".fleet/misspelt.yaml", "--limit", "web1")
    assert done.code == 2, done.out + done.err
    assert "celeri.service on web1 is not changed" in words(done)


def test_documented_units_are_known_without_an_inventory(named: FleetWorld) -> None:
    """The last of this file: hosts that have no unit of ours any more, but Celery's own, with two
    nodes in one.
    """
    for host, ours in (
        ("web1", "celery-worker@worker_high"),
        ("broker", "celery-worker@worker_daemon"),
    ):
        root(
            named,
            f"systemctl disable --now {ours}; rm {UNITS}/{ours}.service; systemctl daemon-reload",
            host,
        )
    for host in ("broker", "web1"):
        root(
            named,
            f"systemctl disable celery.target; rm {UNITS}/celery.target; systemctl daemon-reload",
            host,
        )
    root(named, "rm -f /etc/cron.d/celery-printer_inventory", "broker")
    defaults = DEFAULTS.replace('NODES="w1"', 'NODES="w1 w2"').replace("-Q low", "-Q:w1 low").replace(
        "--concurrency=1", "-Q:w2 high_priority,daemon --concurrency=1"
    )  # fmt: skip
    assert named.ssh("web1", "sudo tee /etc/default/celery", stdin=defaults).code == 0
    root(named, "systemctl restart celery.service")
    common = f"-F {named.fleet}/ssh_config"
    (named.fleet / "ways.yaml").write_text(
        "all: {hosts: {broker: , web1: }, vars: {ansible_become: true,"
        f' ansible_ssh_common_args: "{common}"}}}}\n'
    )
    ways = ("--inventory", ".fleet/ways.yaml")

    def healthy() -> bool:
        return named.inv("diagnose", "-A", "printer_inventory", *ways).code == 0

    wait_until(healthy, "both nodes to answer, and no finding without an inventory", 120)
    (named.fleet / "broker.secret").unlink(missing_ok=True)
    adopted = named.inv("adopt", *ways, "--secrets-file", ".fleet/broker.secret")
    assert adopted.code == 0, adopted.out + adopted.err
    for line in (
        "{name: w1, unit: celery.service, queues: [low_priority], concurrency: 1}",
        "{name: w2, unit: celery.service, queues: [high_priority, daemon], concurrency: 1}",
        "celery_beat_unit: celerybeat.service  # ",
        "celery_env_file: /etc/printer_inventory.env  # the last EnvironmentFile= of ",
        "celery_directory: /srv/printer_inventory  # where pid ",
        "celery_python: /srv/venv/bin/python  # ",
        "celery_user: deploy  # ",
    ):
        assert line in adopted.out, adopted.out
    (named.fleet / "adopted.yaml").write_text(adopted.out)
    both = (*ways, "--inventory", ".fleet/adopted.yaml")
    looked = named.inv("diagnose", *both, "--json")
    assert (looked.code, [one for one in looked.json["findings"] if one["severity"] != "info"]) == (
        0,
        [],
    ), looked.out
    planned = named.inv("remediate", "--dry-run", *both)
    assert (planned.code, "Nothing to change." in planned.out) == (0, True), planned.out

    root(named, "systemctl stop celery.service")
    root(named, "systemctl stop celerybeat.service", "broker")
    findings = named.inv("diagnose", "-A", "printer_inventory", *ways, "--json").json["findings"]
    down = {
        one["subject"]
        for one in findings
        if one["code"] in ("worker.not_running", "beat.not_running")
    }
    assert (
        down
        == {"celery.service on web1", "celerybeat.service on broker"}
        >= {findings[0]["subject"]}
    ), findings[0]
