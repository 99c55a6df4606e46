"""Hosts without cron: timers of systemd run the entries."""

from collections.abc import Iterator

import pytest

from tests.fleet.conftest import FleetWorld, two_hosts, wait_until
from tests.fleet.test_as_they_are import changed, root, words

CRON = "/etc/cron.d/celery-printer_inventory"
TIMER = "celery-cron-printer_inventory-1.timer"
UNITS = "/etc/systemd/system"
ENTRY = 'celery_cron: [{schedule: "5 4 1 * mon", user: deploy, command: "%s"}]'
COMMAND = (
    "echo ran; date +%F >/tmp/ran; id -un >>/tmp/ran; pwd >>/tmp/ran; echo $HOME >>/tmp/ran; (sleep 3; mv"
    " /tmp/ran /tmp/done) &"
)
FAILS = "echo once >>/tmp/times; sleep 2; false"
NO_CRON = "systemctl stop cron; mv /usr/sbin/cron /usr/sbin/cron.away"
CRON_AGAIN = "mv /usr/sbin/cron.away /usr/sbin/cron; systemctl start cron"


@pytest.fixture(scope="module")
def two(real_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetWorld]:
    """Two healthy hosts, whose broker has no cron."""
    with two_hosts(tmp_path_factory.mktemp("timers")) as world:
        yield world


def inventory(world: FleetWorld, entry: str) -> str:
    """One whose broker has this entry, quoted for YAML."""
    text = (world.fleet / "inventory.yaml").read_text()
    begin = text.index("            celery_cron:")
    end = text.index("        workers:\n", begin)
    (world.fleet / "timers.yaml").write_text(f"{text[:begin]}            {entry}\n{text[end:]}")
    return ".fleet/timers.yaml"


def timers(world: FleetWorld) -> str:
    return root(world, f"systemctl list-timers --all --no-pager {TIMER}", "broker")


def test_a_host_without_cron_has_timers_and_gets_its_cron_file_back_with_cron(
    two: FleetWorld,
) -> None:
    mine = inventory(two, ENTRY % COMMAND)
    files = (
        f"ls {CRON} {UNITS}/celery-cron-* {UNITS}/timers.target.wants/celery-cron-* 2>/dev/null"
        " || :"
    )
    cron = two.inv("install-cron", "--yes", "--inventory", mine)
    assert cron.code == 0, cron.out + cron.err
    before = root(two, f"{files}; cat {CRON}", "broker")
    with changed(two, NO_CRON, CRON_AGAIN, "broker"):
        looked = two.inv("diagnose", "--inventory", mine)
        assert "timer.missing" in looked.out, looked.out
        assert "cron.not_running" not in looked.out
        assert "printer_inventory is ours, and timers run its entries here" in words(looked)
        healed = two.inv("remediate", "--yes", "--json", "--inventory", mine)
        assert healed.code == 0, healed.out + healed.err
        assert root(two, files, "broker").split() == [
            f"{UNITS}/{TIMER.replace('timer', 'service')}", f"{UNITS}/{TIMER}", f"{UNITS}/timers.target.wants/{TIMER}",
        ]  # fmt: skip
        assert TIMER in timers(two)
        again = two.inv("remediate", "--yes", "--inventory", mine)
        assert again.code == 0, again.out + again.err
        assert "changed:" not in again.out, again.out

        root(
            two,
            f"rm -f /tmp/ran /tmp/done; systemctl start {TIMER.replace('timer', 'service')}",
            "broker",
        )
        wait_until(
            lambda: two.ssh("broker", "test -e /tmp/done").code == 0,
            "what the entry left in the background",
        )
        day, *ran = root(two, "cat /tmp/done", "broker").split()
        assert ran == ["deploy", "/home/deploy", "/home/deploy"]
        assert day.startswith("20")
        journal = root(two, f"journalctl -o cat -u {TIMER.replace('timer', 'service')}", "broker")
        assert "ran" in journal.splitlines()

        undone = two.inv("undo", healed.json["run"], "--yes", "--inventory", mine)
        assert undone.code == 0, undone.out + undone.err
        assert root(two, f"{files}; cat {CRON}", "broker") == before
        assert TIMER not in timers(two)
        healed = two.inv("remediate", "--yes", "--inventory", mine)
        assert healed.code == 0, healed.out + healed.err
    back = two.inv("remediate", "--yes", "--inventory", mine)
    assert back.code == 0, back.out + back.err
    assert root(two, f"{files}; cat {CRON}", "broker") == before
    assert TIMER not in timers(two)


def test_another_schedule_counts_at_once_and_an_entry_that_goes_takes_its_timer_along(
    two: FleetWorld,
) -> None:
    chosen = "celery_cron_scheduler: systemd\n            "
    mine = inventory(two, chosen + ENTRY % FAILS)
    files = f"ls {CRON} {UNITS}/celery-cron-* 2>/dev/null || :"
    assert two.inv("remediate", "--yes", "--inventory", mine).code == 0
    assert CRON not in root(two, files, "broker")
    service = TIMER.replace("timer", "service")
    twice = f"for n in 1 2; do systemctl start --no-block {service}; sleep 0.5; done"
    root(two, f"rm -f /tmp/times; {twice}", "broker")
    failed = f"systemctl list-units --failed --no-legend --no-pager {service}"
    wait_until(lambda: service in root(two, failed, "broker"), "the entry to fail")
    assert root(two, "cat /tmp/times", "broker") == "once\n"
    root(two, f"systemctl reset-failed {service}", "broker")
    shown = f"systemctl show --property=TimersCalendar {TIMER}; systemctl is-active {TIMER}"
    assert "4:05:00 ; next_elapse=" in (before := root(two, shown, "broker"))
    inventory(two, chosen + (ENTRY % FAILS).replace("5 4 1 * mon", "6 7 * * *"))
    assert two.inv("install-cron", "--yes", "--inventory", mine).code == 0
    after = root(two, shown, "broker")
    assert "07:06:00 ; next_elapse=" in after, after
    assert after != before

    root(two, f"systemctl stop {TIMER}", "broker")
    looked = two.inv("diagnose", "--inventory", mine)
    assert f"not enabled: {TIMER}" in words(looked)
    assert two.inv("remediate", "--yes", "--inventory", mine).code == 0
    assert root(two, shown, "broker") == after

    inventory(two, chosen + "celery_cron: []")
    gone = two.inv("install-cron", "--yes", "--json", "--inventory", mine)
    assert gone.code == 0, gone.out + gone.err
    assert root(two, files, "broker") == ""
    assert TIMER not in timers(two)
    undone = two.inv("undo", gone.json["run"], "--yes", "--inventory", mine)
    assert undone.code == 0, undone.out + undone.err
    assert root(two, shown, "broker") == after
