"""What the tests of the monitor share: a handmade look, and the real promtool."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from runbooks.core.model import Crossing, Look, QueueLook

NOW = 1_750_000_000.0


def make_queue_look(name: str = "high_q", **changes: object) -> QueueLook:
    figures: dict[str, object] = {
        "depth": 0, "unseen": 0, "consumers": 1, "max_retries": 0, "eta_overdue_s": 0.0, "per_s": None,
    }  # fmt: skip
    return QueueLook(name, **(figures | changes))  # type: ignore[arg-type]


def make_look(*queues: QueueLook, **changes: object) -> Look:
    figures: dict[str, object] = {
        "reached": True, "queues": queues or (make_queue_look(),), "missing_tasks": {"high@web1": 0},
        "beat_silence_s": {"web1": 30.0},
    }  # fmt: skip
    return Look(NOW, "shop", **(figures | changes))  # type: ignore[arg-type]


def make_crossing(
    code: str = "queue.depth", subject: str = "high_q", since_at: float = NOW - 3600
) -> Crossing:
    return Crossing(
        code,
        subject,
        since_at,
        "16,000 messages wait, more than 15,000",
        ("16,000 × shop.tasks.bill",),
    )


Promtool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """The real one, from PATH or out of Debian's package; without it the test is skipped here and
    fails in CI.
    """
    cached = user_cache_path("celery-runbooks", ensure_exists=True) / "promtool"
    program = shutil.which("promtool") or str(cached)
    if not Path(program).exists():
        try:
            _extract(cached)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no promtool here, and Debian's package cannot be had: {error}")

    def run(
        *arguments: object, stdin: str = "", cwd: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        words = [program, *map(str, arguments)]
        return subprocess.run(
            words, input=stdin, capture_output=True, text=True, check=False, cwd=cwd
        )

    return run


def _extract(program: Path) -> None:
    """Take promtool out of Debian's package `prometheus`; nothing is installed."""
    with tempfile.TemporaryDirectory(dir=program.parent) as name:
        folder = Path(name)
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "update", "--quiet"], check=True, capture_output=True)
        subprocess.run(
            ["apt-get", "download", "--quiet", "prometheus"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        (package,) = folder.glob("*.deb")
        subprocess.run(
            ["dpkg-deb", "--extract", package, folder / "all"], check=True, capture_output=True
        )
        (folder / "all/usr/bin/promtool").rename(program)
