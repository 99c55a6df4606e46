"""Faults of the environment: its file, and what services have of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lab.faults.fault import fault
from lab.faults.grounds import Hosts, text_of, until
from lab.faults.on_hosts import (
    ENV_FILE,
    LOW,
    PYTHON,
    WORKER,
    away,
    changed,
    kept,
    named,
    until_listens,
    write,
)


@fault(
    "environment.differs",
    "a variable of celery_env has another value in the file",
    ground="fleet",
    touches="env",
)
@contextmanager
def differs(ground: Hosts) -> Iterator[None]:
    with kept(
        ground, "web1", ENV_FILE, f"sed -i s/GLPI_TIMEOUT_S=30/GLPI_TIMEOUT_S=29/ {ENV_FILE}"
    ):
        yield


@fault("environment.is_folder", "a folder in the place of the file", ground="fleet", touches="env")
@contextmanager
def is_folder(ground: Hosts) -> Iterator[None]:
    with kept(ground, "web1", ENV_FILE, f"rm {ENV_FILE}; mkdir {ENV_FILE}"):
        yield


@fault("environment.missing", "the file is moved away", ground="fleet", alone=True)
@contextmanager
def missing(ground: Hosts) -> Iterator[None]:
    with away(ground, "web1", ENV_FILE):
        yield


@fault(
    "environment.missing",
    "the file is moved away, and a worker restarted",
    ground="fleet",
    alone=True,
)
@contextmanager
def missing_at_a_start(ground: Hosts) -> Iterator[None]:
    restart = f"systemctl reset-failed {LOW}; systemctl restart --no-block {LOW}"
    with missing(ground):
        ground.as_root("web1", restart)
        until(
            lambda: "auto-restart" in ground.as_root("web1", f"systemctl show -P SubState {LOW}"),
            "the start to fail",
        )
        yield
    ground.as_root("web1", restart)


@fault("environment.not_in_effect", "a wrapper in the place of celery_python, which sets a variable itself",
       ground="fleet", touches="env worker_low")  # fmt: skip
@contextmanager
def not_in_effect(ground: Hosts) -> Iterator[None]:
    wrapper = f'#!/bin/sh\nexec env GLPI_TIMEOUT_S=9 {PYTHON}.real "$@"\n'
    wrap = f"mv {PYTHON} {PYTHON}.real; {write(PYTHON, wrapper)}; chmod 755 {PYTHON}"
    with (
        changed(ground, "web1", ":", f"systemctl restart {LOW}"),
        changed(ground, "web1", wrap, f"mv {PYTHON}.real {PYTHON}"),
    ):
        ground.as_root("web1", f"systemctl restart {LOW}")
        until_listens(ground, "worker_low@web1")
        yield


@fault("environment.not_read", "a unit of another owner, which the inventory names, without the file", ground="fleet",
       touches="env worker_low inventory theirs")  # fmt: skip
@contextmanager
def not_read(ground: Hosts) -> Iterator[None]:
    variables = ground.as_root("web1", f"cat {ENV_FILE}").replace("%", "%%").splitlines()
    lines = "".join(f'Environment="{variable}"\n' for variable in variables)
    with named(ground, WORKER.replace(f"EnvironmentFile={ENV_FILE}\n", lines), "enable --now"):
        for host in ground.world.record.hosts[1:]:
            until_listens(ground, f"worker_low@{host.name}")
        yield


@fault("environment.password", "a variable of celery_env holds a password in the file", ground="fleet",
       touches="env inventory")  # fmt: skip
@contextmanager
def password(ground: Hosts) -> Iterator[None]:
    found = re.search(r"web1: {ansible_host: [\d.]+", ground.inventory.read_text())
    assert found
    host = f"{found[0]}, celery_env: {{GLPI_PROXY: 'http://proxy.example:3128'}}"
    theirs = f"echo GLPI_PROXY=http://proxy:a-password@proxy.example:3128 >>{ENV_FILE}"
    with kept(ground, "web1", ENV_FILE, theirs), text_of(ground.inventory, (found[0], host)):
        yield


@fault(
    "environment.unknown",
    "a comment that ends with a backslash before a variable",
    ground="fleet",
    touches="env",
)
@contextmanager
def unknown(ground: Hosts) -> Iterator[None]:
    with kept(
        ground, "web1", ENV_FILE, rf"sed -i 's/^GLPI_TIMEOUT_S=/# in seconds \\\n&/' {ENV_FILE}"
    ):
        yield


@fault(
    "environment.unreadable", "a byte in the file that is not UTF-8", ground="fleet", touches="env"
)
@contextmanager
def unreadable(ground: Hosts) -> Iterator[None]:
    with kept(ground, "web1", ENV_FILE, rf"printf 'PLACE=Saarbr\374cken\n' >>{ENV_FILE}"):
        yield
