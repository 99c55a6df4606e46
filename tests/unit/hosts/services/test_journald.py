"""Reading the journal in steps, as journalctl of systemd 252 answers.

`journalctl --output=json --all --output-fields=MESSAGE,UNIT,_SYSTEMD_UNIT`
"""

import pytest

from runbooks.hosts.script import Answer
from runbooks.hosts.services.journald import Journal, parse_said
from runbooks.logs.tail import logs_of
from tests.unit.fleets import make_host
from tests.unit.logs.test_files import texts


def entry(
    n: int, message: str, unit: str = '"_SYSTEMD_UNIT":"celery-worker@high.service"'
) -> bytes:
    return (
        f'{{"__CURSOR":"s=302e7c;i={n:x}","__REALTIME_TIMESTAMP":"17952640557{n:05}","_BOOT_ID":"a0bd",'
        f'{unit},"__MONOTONIC_TIMESTAMP":"2957742305","MESSAGE":{message}}}\n'
    ).encode()


def journal() -> Journal:
    (found,) = logs_of(make_host(service_manager="systemd", commands=None))
    assert isinstance(found, Journal)
    return found


def answer(*entries: bytes) -> Answer:
    return Answer(0, b"".join(entries), "")


def test_an_entry_is_a_line_of_its_service_or_several() -> None:
    about = '"_SYSTEMD_UNIT":"init.scope","UNIT":"celery-beat.service"'
    entries = (
        entry(1, '"a\\nb"'),
        entry(2, "[104,255,105]"),
        entry(3, '["c",[100]]'),
        entry(4, '"Started"', about),
    )
    found = journal().newer(answer(*entries), bool) or ()
    assert [(line.log, line.text) for line in found] == [
        ("high", "a"), ("high", "b"), ("high", "hÿi"), ("high", "c"), ("high", "d"), ("beat", "Started"),
    ]  # fmt: skip
    assert found[0].at == pytest.approx(1795264055.700001)


def test_what_is_notable_is_a_line_with_its_time_for_each_service() -> None:
    about = '"_SYSTEMD_UNIT":"celery-worker@low.service"'
    found = parse_said(answer(entry(1, '"a"'), entry(2, '"b"', about), entry(3, '"c"')))
    assert {name: [line.text for line in lines] for name, lines in found.items()} == {
        "high": ["a", "c"],
        "low": ["b"],
    }
    assert found["high"][0].at == pytest.approx(1795264055.700001)


def test_the_journal_is_read_on_from_the_last_entry_in_either_direction() -> None:
    log = journal()
    log.start(answer(b"1795264055\n"))
    assert "--since=@1795264055" in log.ask_newer()
    assert "--cursor" not in log.ask_older()
    assert texts(log.older(answer(entry(9, '"i"'), entry(8, '"h1\\nh2"')), bool)) == [
        "i",
        "h2",
        "h1",
    ]
    assert "--reverse --after-cursor='s=302e7c;i=8'" in log.ask_older()
    assert "--after-cursor='s=302e7c;i=9'" in log.ask_newer()
    assert texts(log.newer(answer(entry(10, '"j"')), lambda text: False)) == []
    assert "--after-cursor='s=302e7c;i=a'" in log.ask_newer()
    assert log.newer(answer(), bool) is None
    assert "--after-cursor='s=302e7c;i=a'" in log.ask_newer()


def test_an_entry_that_was_cut_off_is_left_for_the_next_step() -> None:
    log = journal()
    assert texts(log.newer(answer(entry(1, '"a"'), entry(2, '"b"')[:-20]), bool)) == ["a"]
    assert "i=1'" in log.ask_newer()


def test_a_journal_this_user_may_not_read_is_reported() -> None:
    hint = "Hint: You are currently not seeing messages from other users and the system.\n"
    assert texts(journal().start(Answer(0, b"1795264055\n", hint))) == [hint.strip()]
