"""What the pages show of the sandbox is what its commands print, but for numbers and times."""

import pytest

from tests.sandbox.conftest import World
from tests.transcripts import require_shown

pytestmark = pytest.mark.thorough


def test_what_the_pages_show_of_the_incident_is_what_is_printed(world: World) -> None:
    def shown(page: str, command: str, code: int) -> None:
        done = world.inv(*command.removeprefix("./inv ").split())
        assert done.code == code, done.out + done.err
        require_shown(page, command, done.out + done.err, numbers=False)

    assert world.inv("sandbox").code == 0
    shown("views.md", "./inv queues", 0)
    shown("views.md", "./inv broker", 0)
    shown("../README.md", "./inv diagnose", 1)
    shown("../README.md", "./inv remediate --yes", 0)
    shown("pages.md", "./inv report last --html incident.html --markdown incident.md --logs", 0)
    shown("schedule.md", "./inv schedule", 0)
    shown("tasks.md", "./inv run-task check-gpli", 5)
    shown("tasks.md", "./inv run-task inventory.tasks.poll_printer --queue daemons", 5)
