"""The job of every peer, for those that are written in Python: three files and two services on
every host.
"""

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

HERE = Path(__file__).parent
STATE = Path(os.environ["BENCH_STATE"])
WORKERS = ("one", "two")
UNITS = tuple(f"celery-worker@{worker}.service" for worker in WORKERS)
_TEMPLATES = Environment(loader=FileSystemLoader(HERE), keep_trailing_newline=True)


def hosts() -> dict[str, str]:
    """Name → address."""
    return dict(line.split() for line in (STATE / "hosts").read_text().splitlines())


def render(host: str) -> dict[str, str]:
    """Path → content of the files of a host."""
    units = {
        f"/etc/systemd/system/{unit}": (
            _TEMPLATES.get_template("worker.service.j2").render(
                worker=worker, node=f"{worker}@{host}"
            )
        )
        for worker, unit in zip(WORKERS, UNITS, strict=True)
    }
    return units | {
        "/etc/systemd/system/celery.target": _TEMPLATES.get_template("celery.target.j2").render()
    }
