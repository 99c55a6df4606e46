"""Reading a service's container logs in steps, as `docker logs` of Docker 20.10 prints them."""

import pytest

from runbooks.hosts.script import Answer
from runbooks.hosts.services.docker_log import DockerLog
from tests.unit.logs.test_files import texts


def log() -> DockerLog:
    return DockerLog("web1", "high", "/run/docker.sock", ["label=com.docker.compose.service=high"])


def answer(*lines: str) -> Answer:
    return Answer(0, "".join(f"{line}\n" for line in lines).encode(), "")


def line(second: int, text: str, part: str = ".609006010") -> str:
    return f"2026-11-28T22:51:{second:02}{part}Z {text}"


def test_the_logs_of_several_containers_are_one_in_the_order_of_time() -> None:
    found = (
        log().older(
            answer("=aaa", line(1, "one"), line(4, "four"), "=bbb", line(2, "two"), "no time"), bool
        )
        or ()
    )
    assert [(one.log, one.text) for one in found] == [
        ("high", "four"),
        ("high", "two"),
        ("high", "one"),
    ]
    assert found[0].at == pytest.approx(1795906264.609006)


def test_a_step_back_leaves_out_what_was_read_before_it() -> None:
    back = log()
    back.start(answer("1795906200"))
    assert texts(back.older(answer("=aaa", line(3, "c"), line(4, "d")), bool)) == ["d", "c"]
    assert texts(back.older(answer("=aaa", line(2, "b"), line(3, "c"), line(4, "d")), bool)) == [
        "b"
    ]
    assert back.older(answer("=aaa", line(2, "b"), line(3, "c"), line(4, "d")), bool) is None


def test_a_step_on_goes_on_where_each_container_was_read_to_and_takes_in_new_ones() -> None:
    on = log()
    on.start(answer("1795906200"))
    assert "--since 1795906200 ''" in on.ask_newer()
    assert texts(on.newer(answer("=aaa", line(3, "c")), bool)) == ["c"]
    assert "aaa=2026-11-28T22:51:03.609006010Z" in on.ask_newer()
    assert texts(
        on.newer(answer("=aaa", line(3, "c"), line(5, "e", ".7"), "=bbb", line(4, "d")), bool)
    ) == ["d", "e"]
    assert on.newer(answer("=aaa", line(5, "e", ".7"), "=bbb"), bool) is None
