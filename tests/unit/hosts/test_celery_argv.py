"""Celery's command in what a unit, a conf file or a container starts."""

import pytest

from runbooks.hosts.celery_argv import command_in, extra_of, log_of, options_of


@pytest.mark.parametrize(
    ("text", "node", "queues", "extra"),
    [
        (
            "/v/bin/celery -A p worker -n mail@%h -Q mail,low -O fair",
            "mail@%h",
            ("mail", "low"),
            "--optimization=fair",
        ),
        (
            "sh -c '. ./env; exec /v/bin/python -m celery -A p worker -Q q -E; echo ended'",
            "",
            ("q",),
            "-E",
        ),
        (
            'bash -lc "cd /srv && celery -A p worker -Q q --max-tasks-per-child 9"',
            "",
            ("q",),
            "--max-tasks-per-child=9",
        ),
    ],
)
def test_it_is_found_behind_a_python_and_inside_a_shell(
    text: str, node: str, queues: object, extra: str
) -> None:
    words = command_in(text)
    options = options_of(words)
    assert options
    assert (options.app, options.node, options.queues, extra_of(words)) == (
        "p",
        node,
        queues,
        (extra,),
    )


@pytest.mark.parametrize(
    "text",
    [
        "/bin/sh -c '${CELERY_BIN} -A $CELERY_APP multi start $CELERYD_NODES'",
        "celery -A p worker -n $NAME",
        "tail -f celery.log",
        "celery -A p 'worker",
    ],
)
def test_what_shows_only_when_it_runs_is_not_guessed(text: str) -> None:
    assert options_of(command_in(text)) is None


def test_a_log_file_is_that_of_its_flag() -> None:
    assert (
        log_of(["python", "-m", "celery", "-A", "p", "worker", "--logfile=/var/log/w.log"])
        == "/var/log/w.log"
    )
    assert log_of(["celery", "-A", "p", "worker", "-f", "w.log"]) == "w.log"
    assert log_of(["celery", "-A", "p", "worker"]) == log_of(["python", "serve.py"]) == ""
