"""What others have started on real hosts makes way for the inventory's services, and comes back at
an undo.
"""

import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from celery import Celery

from tests.fleet.conftest import FleetWorld, broker_of, two_hosts, wait_until
from tests.fleet.test_as_they_are import ENV_FILE, UNITS, inv, root, words

HIGH, LOW = "celery-worker@worker_high.service", "celery-worker@worker_low.service"
PYTHON = "/srv/venv/bin/python"
TAKE_OVER = ("remediate", "--take-over")
DATABASE = "/var/lib/printer_inventory/db.sqlite3"

# **Source:** Celery's guide "Daemonization", "Usage systemd", with the paths of the lab.
CONF = f"""\
CELERYD_NODES="worker_high@web1 worker_low@web1"
CELERY_BIN="{PYTHON} -m celery"
CELERY_APP="printer_inventory"
CELERYD_OPTS="-c 1 -Q:worker_high@web1 high_priority -Q:worker_low@web1 low_priority"
CELERYD_PID_FILE="/run/celery/%n.pid"
CELERYD_LOG_FILE="/var/log/celery/%n%I.log"
CELERYD_LOG_LEVEL="INFO"
CELERYBEAT_PID_FILE="/run/celery/beat.pid"
CELERYBEAT_LOG_FILE="/var/log/celery/beat.log"
"""
CELERYD = f"""\
[Unit]
Description=Celery Service
After=network.target

[Service]
Type=forking
User=deploy
Group=deploy
EnvironmentFile=/etc/conf.d/celery
EnvironmentFile={ENV_FILE}
RuntimeDirectory=celery
LogsDirectory=celery
WorkingDirectory=/srv/printer_inventory
LimitNOFILE=4096
Nice=5
Environment="PATH=/srv/venv/bin:/usr/bin:/bin" LANG=C.UTF-8
ExecStart=/bin/sh -c '${{CELERY_BIN}} -A $CELERY_APP multi start $CELERYD_NODES \\
    --pidfile=${{CELERYD_PID_FILE}} --logfile=${{CELERYD_LOG_FILE}} \\
    --loglevel="${{CELERYD_LOG_LEVEL}}" $CELERYD_OPTS'
ExecStop=/bin/sh -c '${{CELERY_BIN}} multi stopwait $CELERYD_NODES \\
    --pidfile=${{CELERYD_PID_FILE}} --logfile=${{CELERYD_LOG_FILE}} \\
    --loglevel="${{CELERYD_LOG_LEVEL}}"'
Restart=always

[Install]
WantedBy=multi-user.target
"""
CELERYBEAT = f"""\
[Unit]
Description=Celery Beat Service
After=network.target

[Service]
Type=simple
User=deploy
Group=deploy
EnvironmentFile=/etc/conf.d/celery
EnvironmentFile={ENV_FILE}
RuntimeDirectory=celery-beat-of-old
StateDirectory=celery-beat-of-old
WorkingDirectory=/srv/printer_inventory
ExecStart=/bin/sh -c '${{CELERY_BIN}} -A ${{CELERY_APP}} beat  \\
    --pidfile= -s /var/lib/celery-beat-of-old/schedule --loglevel=INFO'
Restart=always

[Install]
WantedBy=multi-user.target
"""
BY_HAND = f"""\
[Unit]
Description=The printers' worker

[Service]
User=deploy
WorkingDirectory=/srv/printer_inventory
EnvironmentFile={ENV_FILE}
MemoryMax=900M
Environment=PATH=/srv/venv/bin:/usr/bin:/bin
ExecStart={PYTHON} -m celery -A printer_inventory worker -n printers@%%h -Q high_priority,low_priority -c 2
Restart=always

[Install]
WantedBy=multi-user.target
"""
STATE = r"""
cd /etc/systemd/system && find . \( -type f -o -type l \) | sort | while read -r path; do
echo "$path $(readlink "$path" || { stat -c '%a %U:%G %Y' "$path"; sha256sum <"$path"; })"; done; find . -type d | sort
for unit in $(ls -d *.service); do
echo "$unit $(systemctl is-enabled "$unit" 2>&1) $(systemctl is-active "$unit")"; done
"""
NOTHING = """
cd /etc/systemd/system
for unit in $(ls | grep -e '^celery.*[.]service$' -e '^printers.*[.]'); do
systemctl disable --now "$unit" 2>/dev/null
done
rm -rf celery* printers*
systemctl daemon-reload
systemctl reset-failed
for one in $(grep -lsa -e '-m.cele[r]y' /proc/[0-9]*/cmdline); do one=${one%/cmdline}; kill -9 "${one#/proc/}"; done
:
"""
RUNNING = r"""
for one in $(grep -lsa -e '-m.cele[r]y' /proc/[0-9]*/cmdline); do
one=${one%/cmdline}
name=$(tr '\0' ' ' <"$one/cmdline" | grep -o -e '-n [^ ]*' -e '--hostname=[^ ]*' -e ' beat ')
echo "$(grep -o '[^/]*$' "$one/cgroup" | tail -1) $name"
done
"""


@pytest.fixture(scope="module")
def two(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Two healthy hosts; on web1 each test begins without any of our units."""
    mended = f"sed -i s/GLPI_TIMEOUT_S=.*/GLPI_TIMEOUT_S=30/ {ENV_FILE}"
    with two_hosts(
        tmp_path_factory.mktemp("taken"), first=lambda world: root(world, mended)
    ) as world:
        yield world


@pytest.fixture
def bare(two: FleetWorld) -> Iterator[FleetWorld]:
    """Without a unit, or a process, of the application on web1; afterwards, too."""
    nothing(two)
    yield two
    nothing(two)


def nothing(world: FleetWorld) -> None:
    script(world, NOTHING)


def script(world: FleetWorld, text: str) -> str:
    """What a script of root's prints; its text stands in no command, so it does not look like
    Celery itself.
    """
    done = world.ssh("web1", "sudo sh -s", stdin=text)
    assert done.code == 0, done.err
    return done.out


def install(
    world: FleetWorld, name: str, text: str, then: str = "enable --now", host: str = "web1"
) -> None:
    put(world, f"{UNITS}/{name}", text, host)
    root(world, f"systemctl daemon-reload; systemctl {then} {name}", host)


def put(world: FleetWorld, path: str, text: str, host: str = "web1") -> None:
    root(world, f"mkdir -p {path.rpartition('/')[0]}; printf %s {shlex.quote(text)} >{path}", host)


def state(world: FleetWorld) -> list[str]:
    return script(world, STATE).splitlines()


def running(world: FleetWorld) -> list[str]:
    """The workers and beats of web1, each by its unit and its name."""
    return sorted(set(script(world, RUNNING).splitlines()))


def await_workers(world: FleetWorld, count: int) -> None:
    """Until so many workers of web1 take messages."""
    wait_until(lambda: len(blocked(world)) == count, f"{count} workers to consume")


def blocked(world: FleetWorld) -> list[str]:
    """The addresses on web1 of connections that take messages."""
    address = root(world, "hostname -I").split()[0]
    with broker_of(world) as redis_:
        return [
            one["addr"]
            for one in redis_.client_list()
            if one["cmd"] == "brpop" and one["addr"].startswith(address)
        ]


def test_celerys_documented_unit_makes_way_and_comes_back(bare: FleetWorld) -> None:
    put(bare, "/etc/conf.d/celery", CONF)
    install(bare, "celeryd.service", CELERYD)
    await_workers(bare, 2)
    before, were = state(bare), running(bare)

    plain = inv(bare, "remediate", "--yes")
    assert plain.code == 2, plain.out + plain.err
    assert "remediate --take-over --dry-run" in words(plain), plain.out
    assert running(bare) == were
    assert inv(bare, "undo", "last", "--yes").code == 0
    assert state(bare) == before

    dry = inv(bare, *TAKE_OVER, "--dry-run")
    assert dry.code == 0, dry.out + dry.err
    for line in (
        "+Nice=5",
        "+LimitNOFILE=4096",
        '+Environment="PATH=/srv/venv/bin:/usr/bin:/bin"',
        "+Group=deploy",
        "+EnvironmentFile=/etc/conf.d/celery",
    ):
        assert line in dry.out, dry.out
    assert (state(bare), running(bare)) == (before, were)

    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 0, done.out + done.err
    assert all(unit.startswith("celery-worker@") for unit in running(bare)), running(bare)
    assert root(bare, f"systemctl is-enabled {HIGH} {LOW} celeryd || :").split() == [
        "enabled",
        "enabled",
        "disabled",
    ]
    assert root(bare, f"systemctl show -P Nice {HIGH}").strip() == "5"
    files = root(bare, f"systemctl show -P EnvironmentFiles {HIGH}").splitlines()
    assert files == ["/etc/conf.d/celery (ignore_errors=no)", f"{ENV_FILE} (ignore_errors=no)"]
    assert inv(bare, "verify").code == 0
    again = inv(bare, *TAKE_OVER, "--yes")
    assert again.code == 0, again.out + again.err
    assert "Undo it" not in again.out

    undone = inv(bare, "undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert state(bare) == before
    await_workers(bare, 2)
    assert running(bare) == were


def test_each_task_runs_once_through_a_take_over_under_traffic_and_its_undo(
    bare: FleetWorld,
) -> None:
    install(bare, "printers.service", BY_HAND)
    await_workers(bare, 1)
    ids, ended = list[str](), Event()

    def send() -> None:
        with Celery(broker=(bare.fleet / "broker.url").read_text().strip()) as app:
            while not ended.wait(0.05):
                ids.append(
                    app.send_task("inventory.tasks.poll_printer", [1], queue="low_priority").id
                )

    with ThreadPoolExecutor(1) as beside:
        sending = beside.submit(send)
        try:
            done = inv(bare, *TAKE_OVER, "--yes")
            taken = len(ids)
            undone = inv(bare, "undo", "last", "--yes")
            await_workers(bare, 1)
        finally:
            ended.set()
        sending.result()
    assert done.code == 0, done.out + done.err
    assert undone.code == 0, undone.out + undone.err
    assert len(ids) > taken > 0
    with broker_of(bare) as client:
        wait_until(lambda: not client.exists("low_priority", "unacked"), "all of them to have run")
    assert ran(bare) == Counter(ids)


def ran(world: FleetWorld) -> Counter[str]:
    """How often each task has run on web1, as it has written down."""
    query = "SELECT task_id FROM inventory_pollrecord"
    script = (
        "import sqlite3; print(*(one for (one,) in"
        f" sqlite3.connect('{DATABASE}').execute('{query}')))"
    )
    return Counter(root(world, f"{PYTHON} -c {shlex.quote(script)}").split())


def test_beat_makes_way_and_a_hand_written_unit_keeps_its_settings(bare: FleetWorld) -> None:
    """On web1 there is no beat by the inventory, so that one fits nothing, and is named; the worker
    goes alone.
    """
    put(bare, "/etc/conf.d/celery", CONF)
    install(bare, "printers-beat.service", CELERYBEAT)
    install(bare, "printers.service", BY_HAND)
    await_workers(bare, 1)
    before, were = state(bare), running(bare)
    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 2, done.out + done.err
    assert "printers-beat.service is not taken over" in words(done)
    assert [one.split()[0] for one in running(bare)] == [HIGH, LOW, "printers-beat.service"]
    for unit in (HIGH, LOW):
        shown = root(bare, f"systemctl show -P MemoryMax -P Environment {unit}")
        assert str(900 * 1024**2) in shown, shown
        assert "PATH=/srv/venv/bin" in shown, shown
    undone = inv(bare, "undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert state(bare) == before
    await_workers(bare, 1)
    assert running(bare) == were


def test_a_secret_in_a_unit_is_not_copied_and_keeps_it_from_being_taken_over(
    bare: FleetWorld,
) -> None:
    secret = "hunter2hunter3"
    install(
        bare,
        "printers.service",
        BY_HAND.replace("ExecStart", f'Environment="GLPI_NEW_TOKEN={secret}"\nExecStart'),
    )
    await_workers(bare, 1)
    before, were = state(bare), running(bare)
    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 2, done.out + done.err
    assert (
        f"sets GLPI_NEW_TOKEN, which may be a secret and is not copied: write it into {ENV_FILE}"
        in words(done)
    )
    assert secret not in done.out + done.err
    assert running(bare) == were
    assert inv(bare, "undo", "last", "--yes").code == 0
    assert state(bare) == before

    root(bare, f"cp -p {ENV_FILE} /root/env; echo GLPI_NEW_TOKEN={secret} >>{ENV_FILE}")
    taken = inv(bare, *TAKE_OVER, "--yes")
    assert taken.code == 0, taken.out + taken.err
    assert [one.split()[0] for one in running(bare)] == [HIGH, LOW]
    assert secret not in root(bare, f"cat {UNITS}/celery-worker*.d/*")
    assert inv(bare, "undo", "last", "--yes").code == 0
    assert state(bare) == before
    root(bare, f"cp -p /root/env {ENV_FILE}")


def test_a_unit_that_starts_with_the_host_and_does_not_run_is_kept_from_it(
    bare: FleetWorld,
) -> None:
    install(bare, "printers.service", BY_HAND, "enable")
    before = state(bare)
    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 0, done.out + done.err
    assert root(bare, "systemctl is-enabled printers || :") == "disabled\n"
    assert inv(bare, "undo", "last", "--yes").code == 0
    assert state(bare) == before


def test_a_unit_that_a_timer_starts_again_is_left_alone(bare: FleetWorld) -> None:
    install(bare, "printers.service", BY_HAND)
    install(
        bare, "printers.timer", "[Timer]\nOnCalendar=daily\n[Install]\nWantedBy=timers.target\n"
    )
    await_workers(bare, 1)
    were = running(bare)
    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 2, done.out + done.err
    assert "printers.timer also starts it, and would start it again" in words(done)
    assert running(bare) == were


@pytest.mark.parametrize(
    "start",
    [
        (
            f"{PYTHON} -m celery multi start worker_high@web1 -A printer_inventory -Q high_priority"
            " -c 1 --pidfile=/tmp/%n.pid --logfile=/tmp/%n.log"
        ),
        pytest.param(
            f"nohup {PYTHON} -m celery -A printer_inventory worker -n worker_high@web1 -Q"
            " high_priority -c 1 >/dev/null 2>&1 &",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_what_someone_started_manually_makes_way_and_undo_says_what_there_is_to_type(
    bare: FleetWorld, start: str
) -> None:
    put(bare, "/tmp/start", f"set -a; . {ENV_FILE}; cd /srv/printer_inventory; {start}")
    by_cron = "@reboot deploy cd /srv/printer_inventory && sh /tmp/start\n"
    put(bare, "/etc/cron.d/printers", by_cron)
    put(bare, "/etc/rc.local", "#!/bin/sh\ncd /srv/printer_inventory && sh /tmp/start\n")
    root(bare, "setsid runuser -u deploy sh /tmp/start")
    await_workers(bare, 1)
    dry = inv(bare, *TAKE_OVER, "--dry-run")
    for place in ("/etc/cron.d/printers, line 1 (@reboot)", "/etc/rc.local, line 2"):
        assert f"{place} may start it again" in words(dry), dry.out
    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 0, done.out + done.err
    assert [one.split()[0] for one in running(bare)] == [HIGH, LOW]
    assert root(bare, "cat /etc/cron.d/printers") == by_cron
    undone = inv(bare, "undo", "last", "--yes")
    assert undone.code == 2, undone.out + undone.err
    expected = (
        "as deploy, celery -A printer_inventory worker -n worker_high@web1 -Q high_priority -c 1"
    )
    assert words(undone).count(expected) >= 2, undone.out + undone.err
    assert running(bare) == []
    root(bare, "rm /etc/cron.d/printers /etc/rc.local /tmp/start")


def test_a_unit_at_our_place_that_someone_wrote_is_replaced_only_where_that_is_asked_for(
    bare: FleetWorld,
) -> None:
    theirs = BY_HAND.replace(
        "printers@%%h -Q high_priority,low_priority", "worker_high@web1 -Q high_priority"
    )
    install(bare, HIGH, theirs)
    await_workers(bare, 1)
    pid = root(bare, f"systemctl show -P MainPID {HIGH}")
    plain = inv(bare, "remediate", "--yes")
    assert plain.code == 2, plain.out + plain.err
    assert f"{HIGH} was not written by this tool; not changed" in words(plain)
    assert root(bare, f"cat {UNITS}/{HIGH}") == theirs
    assert root(bare, f"systemctl show -P MainPID {HIGH}") == pid
    assert inv(bare, "undo", "last", "--yes").code == 0
    before, were = state(bare), running(bare)
    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 0, done.out + done.err
    assert "MemoryMax=900M" in root(bare, f"cat {UNITS}/{HIGH}.d/taken-over.conf")
    again = inv(bare, "remediate", "--yes")
    assert (again.code, "Undo it" in again.out) == (0, False), again.out + again.err
    undone = inv(bare, "undo", "last", "--yes")
    assert undone.code == 0, undone.out + undone.err
    assert state(bare) == before
    assert running(bare) == were


@pytest.mark.parametrize(
    "reached",
    [
        pytest.param("! systemctl is-enabled printers", marks=pytest.mark.thorough),
        "! systemctl is-active printers",
    ],
)
def test_a_run_that_is_killed_is_completed_by_the_next_and_both_are_undone(
    bare: FleetWorld, reached: str
) -> None:
    install(bare, "printers.service", BY_HAND)
    await_workers(bare, 1)
    before, were = state(bare), running(bare)
    command = bare.command(*TAKE_OVER, "--yes", "--inventory", ".fleet/inventory.yaml")
    with subprocess.Popen(
        command, cwd=bare.path, env=bare.environment, stdout=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: bare.ssh("web1", reached).code == 0, reached)
        process.kill()
    wait_until(
        lambda: len(blocked(bare)) == len(running(bare)),
        "what was started already to take messages",
    )
    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 0, done.out + done.err
    assert [one.split()[0] for one in running(bare)] == [HIGH, LOW]
    assert root(bare, f"systemctl is-enabled {HIGH} {LOW} printers || :").split() == [
        "enabled",
        "enabled",
        "disabled",
    ]
    completed, killed = [
        run["run"] for run in inv(bare, "runs", "--json").json["runs"] if run["verb"] == "remediate"
    ][:-3:-1]
    for run in (completed, killed):
        undone = inv(bare, "undo", run, "--yes")
        assert undone.code == 0, undone.out + undone.err
    assert state(bare) == before
    await_workers(bare, 1)
    assert running(bare) == were


def test_where_the_inventorys_services_do_not_come_up_what_was_there_is_at_work_again(
    bare: FleetWorld,
) -> None:
    install(bare, "printers.service", BY_HAND)
    put(bare, f"{UNITS}/{HIGH}.d/broken.conf", "[Service]\nExecStartPre=/bin/false\n")
    root(bare, "systemctl daemon-reload")
    await_workers(bare, 1)
    before, were = state(bare), running(bare)
    done = inv(bare, *TAKE_OVER, "--yes")
    assert done.code == 2, done.out + done.err
    assert state(bare) == before, done.out
    await_workers(bare, 1)
    assert running(bare) == were
