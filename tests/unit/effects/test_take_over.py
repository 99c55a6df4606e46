"""What another owner has started, stopped on this machine; and the folder of a drop-in."""

import signal
import subprocess
from pathlib import Path

import pytest

from runbooks.core.effects import ControlOther, StartByHand, WriteFile, sha256
from runbooks.core.errors import StalePlan
from tests.unit.effects.made import fragment, make, names
from tests.unit.fleets import make_host


def ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.parametrize("kill", [False, True])
def test_a_process_ends_by_itself_and_one_that_goes_on_is_killed_only_where_it_may_be(
    kill: bool,
) -> None:
    host = make_host(stop_timeout=2)
    for shell, ends in (("exec sleep 60", True), ("trap '' TERM; echo; exec sleep 60", kill)):
        with subprocess.Popen(["sh", "-c", f"echo; {shell}"], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout
                process.stdout.read(2 if "trap" in shell else 1)
                one = (process.pid, ticks(process.pid))
                answer = make(
                    ControlOther("", f"process {process.pid}", "stop", (one,), kill), host
                )
                assert (answer.code == 0) == ends, answer.err
                if ends:
                    assert process.wait(10) == (
                        -signal.SIGKILL if "trap" in shell else -signal.SIGTERM
                    )
                else:
                    assert process.poll() is None
            finally:
                process.kill()


def test_another_process_that_has_the_number_now_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            one = (process.pid, ticks(process.pid) + 1)
            assert make(ControlOther("", f"process {process.pid}", "stop", (one,), True)).code == 0
            assert process.poll() is None
        finally:
            process.kill()


def test_what_no_manager_runs_is_not_started() -> None:
    with pytest.raises(
        StalePlan, match="process 7 has no service manager that could start it again"
    ):
        fragment(StartByHand("process 7", "as deploy, celery worker"))


def test_the_folder_of_a_drop_in_comes_with_the_first_and_goes_with_the_last(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "celery worker@high.service.d"
    path = folder / "taken-over.conf"
    write = WriteFile(str(path), b"[Service]\n", 0o644, "absent")
    remove = WriteFile(str(path), None, 0, sha256(b"[Service]\n"))
    for _ in range(2):
        assert make(write).code == 0
    assert path.read_bytes() == b"[Service]\n"
    (folder / "other.conf").touch()
    assert make(remove).code == 0
    assert names(folder) == ["other.conf"]
    (folder / "other.conf").unlink()
    assert make(write).code == 0
    for _ in range(2):
        assert make(remove).code == 0, make(remove).err
    assert names(tmp_path) == []
