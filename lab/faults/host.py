"""Faults of hosts: what keeps them from being reached, asked or changed."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults import cron
from lab.faults.fault import fault
from lab.faults.grounds import Hosts, text_of
from lab.faults.on_hosts import APPLICATION, away, changed, kept, write

_KEY = "/etc/ssh/ssh_host_ed25519_key"
_WRAPPER = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'


@fault("host.cannot_write", "/etc/cron.d is read-only, and the cron file is missing", ground="fleet",
       touches="broker cron-file")  # fmt: skip
@contextmanager
def cannot_write(ground: Hosts) -> Iterator[None]:
    read_only = "mount --bind /etc/cron.d /etc/cron.d; mount -o remount,ro,bind /etc/cron.d"
    with cron.missing(ground), changed(ground, "broker", read_only, "umount /etc/cron.d"):
        yield


@fault(
    "host.clock",
    "a wrapper of date that is ten minutes ahead",
    ground="fleet",
    touches="web1",
    alone=True,
)
@contextmanager
def clock(ground: Hosts) -> Iterator[None]:
    wrapper = "/usr/local/bin/date"
    ahead = '#!/bin/sh\nexec /usr/bin/date -d "+600 seconds" "$@"\n'
    with changed(ground, "web1", f"{write(wrapper, ahead)}; chmod 755 {wrapper}", f"rm {wrapper}"):
        yield


@fault(
    "host.folder_in_place",
    "a folder in the place of the cron file",
    ground="fleet",
    touches="broker cron-file",
)
@contextmanager
def folder_in_place(ground: Hosts) -> Iterator[None]:
    with (
        cron.missing(ground),
        changed(ground, "broker", f"mkdir {cron.FILE}", f"rmdir {cron.FILE}"),
    ):
        yield


@fault("host.key_changed", "the host has a new ssh key", ground="fleet", touches="web1", alone=True)
@contextmanager
def key_changed(ground: Hosts) -> Iterator[None]:
    again = "systemctl restart ssh"
    new = f"rm {_KEY}; ssh-keygen -q -t ed25519 -N '' -f {_KEY}"
    with (
        changed(ground, "web1", ":", again),
        kept(ground, "web1", f"{_KEY}.pub", ":"),
        kept(ground, "web1", _KEY, f"{new}; {again}"),
    ):
        yield


@fault(
    "host.key_unknown", "known_hosts without the host", ground="fleet", touches="web1", alone=True
)
@contextmanager
def key_unknown(ground: Hosts) -> Iterator[None]:
    known_hosts = ground.world.fleet / "known_hosts"
    line = next(
        line for line in known_hosts.read_text().splitlines(keepends=True) if ",web1 " in line
    )
    with text_of(known_hosts, (line, "")):
        yield


@fault("host.lacks_tools", "mktemp is moved away", ground="fleet", touches="web1", alone=True)
@contextmanager
def lacks_tools(ground: Hosts) -> Iterator[None]:
    with away(ground, "web1", "/usr/bin/mktemp"):
        yield


@fault(
    "host.login_refused",
    "authorized_keys is moved away",
    ground="fleet",
    touches="web1",
    alone=True,
)
@contextmanager
def login_refused(ground: Hosts) -> Iterator[None]:
    with away(ground, "web1", "/home/deploy/.ssh/authorized_keys"):
        yield


@fault(
    "host.no_directory",
    "the application's directory is moved away",
    ground="fleet",
    touches="web1",
    alone=True,
)
@contextmanager
def no_directory(ground: Hosts) -> Iterator[None]:
    with away(ground, "web1", APPLICATION):
        yield


@fault("host.no_room", "/tmp is full", ground="fleet", touches="tmp")
@contextmanager
def no_room(ground: Hosts) -> Iterator[None]:
    full = "mount -t tmpfs -o size=4k,mode=1777 tmpfs /tmp; head -c 4096 /dev/zero >/tmp/filler"
    with changed(ground, "web1", full, "umount /tmp"):
        yield


@fault("host.other_shell", "a wrapper in the place of sudo, which runs all as the user himself", ground="fleet",
       touches="web1", alone=True)  # fmt: skip
@contextmanager
def other_shell(ground: Hosts) -> Iterator[None]:
    wrapper = "/usr/local/bin/sudo"
    with changed(
        ground, "web1", f"{write(wrapper, _WRAPPER)}; chmod 755 {wrapper}", f"rm {wrapper}"
    ):
        yield


@fault("host.probe_failed", "the application's virtual environment is moved away", ground="fleet", touches="web1",
       alone=True)  # fmt: skip
@contextmanager
def probe_failed(ground: Hosts) -> Iterator[None]:
    with away(ground, "web1", "/srv/venv"):
        yield


@fault("host.slow_shell", "sudo waits for a name server, since /etc/hosts lacks the host's own name", ground="fleet",
       touches="web1-names")  # fmt: skip
@contextmanager
def slow_shell(ground: Hosts) -> Iterator[None]:
    silent = write("/etc/resolv.conf", "nameserver 192.0.2.1\n")
    without_its_name = r"sed -i '/\<web1$/d' /etc/hosts"
    with (
        kept(ground, "web1", "/etc/resolv.conf", silent),
        kept(ground, "web1", "/etc/hosts", without_its_name),
    ):
        yield


@fault(
    "host.sudo_refused",
    "sudoers allows /bin/true alone",
    ground="fleet",
    touches="web1",
    alone=True,
)
@contextmanager
def sudo_refused(ground: Hosts) -> Iterator[None]:
    rule = "deploy ALL=(ALL) NOPASSWD: /bin/true, !/bin/sh\n"
    with changed(
        ground, "web1", write("/etc/sudoers.d/zz-refused", rule), "rm /etc/sudoers.d/zz-refused"
    ):
        yield


@fault("host.unreachable", "sshd is stopped", ground="fleet", touches="web1", alone=True)
@contextmanager
def unreachable(ground: Hosts) -> Iterator[None]:
    with changed(ground, "web1", "systemctl stop ssh", "systemctl start ssh"):
        yield
