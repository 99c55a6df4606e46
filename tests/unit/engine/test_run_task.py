"""`inv run-task` where no one answers."""

from typing import Any

import pytest

from runbooks.core.errors import BrokerUnreachable, ExitCode, RunbookError
from runbooks.core.settings import TaskCall
from runbooks.run_task import run_task
from tests.unit.engine.conftest import World
from tests.unit.fleets import TASKS


def is_down(*_: Any, **__: Any) -> None:
    raise BrokerUnreachable("127.0.0.1:1 does not answer", "is it up?")


@pytest.mark.parametrize("silent", ["hosts", "broker"])
def test_where_no_host_or_no_broker_answers_nothing_is_sent_and_the_exit_code_is_4(
    world: World, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = "from celery import Celery\napp = Celery('shop', broker='redis://127.0.0.1:1/0')\n"
    for name, transport in world.transports.items():
        world.path(name, "shop.py").write_text(app)
        transport.is_gone = silent == "hosts"
    if silent == "broker":
        monkeypatch.setattr(world.broker, "observe", is_down)
    with pytest.raises(RunbookError) as refused:
        run_task(world.session(), TaskCall(task=TASKS[0]), dry_run=False)
    assert refused.value.exit_code == ExitCode.UNREACHABLE
    assert not (world.state / "runs").exists()
