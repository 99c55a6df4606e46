"""What an application said when it was loaded holds until something that it was loaded from
changes.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from runbooks.core.application import Application
from runbooks.core.model import HostState, Unreachable
from runbooks.core.needs import Needs
from runbooks.engine.context import Session
from runbooks.engine.loaded import UNUSED_S
from runbooks.hosts import application
from tests.brokers import until
from tests.unit.engine.conftest import World

APP = """\
    import os
    from pathlib import Path
    from celery import Celery
    here = Path(__file__).parent.parent
    with open(here / "loads", "a") as file:
        file.write("x")
    app = Celery("shop", broker="redis://:hunter2@redis1/3", include=["shop.tasks"])
    app.conf.update(task_time_limit=int((here / "limit.ini").read_text()), task_default_queue=os.environ["TIMEOUT"])
    """
TASKS = """\
    from shop import app

    @app.task
    def bill(order, *, fast=False): ...

    @app.task
    def ship(): ...
    """


class Site:
    """The application of one host, whose workers run and answer; it counts how often it is loaded."""

    def __init__(self, world: World) -> None:
        self.world, self.here = world, world.root / "web1"
        (self.here / "shop").mkdir()
        for name, text in {
            "shop/__init__.py": APP,
            "shop/tasks.py": TASKS,
            "limit.ini": "30\n",
        }.items():
            (self.here / name).write_text(dedent(text))
        world.remediate("web1")

    def session(self, **options: object) -> Session:
        return self.world.session("web1", **options)

    def look(self, session: Session | None = None) -> Application:
        state = (session or self.session()).observe(Needs.EVERYTHING).hosts["web1"]
        assert isinstance(state, HostState)
        assert state.application, state.imports_now
        return state.application

    @property
    def loads(self) -> int:
        path = self.here / "loads"
        return len(path.read_text()) if path.exists() else 0

    def settle(self) -> None:
        """Until nothing is so young that a load cannot be sure of it, and what is said was kept."""
        until(lambda: (self.look(), before := self.loads, self.look())[1] == self.loads)

    @property
    def kept(self) -> Path:
        return self.world.state / "applications/shop/web1.json"


@pytest.fixture
def site(world: World) -> Site:
    return Site(world)


def test_it_is_loaded_once_and_what_it_says_is_kept_for_this_user_alone(site: Site) -> None:
    site.settle()
    before = site.loads
    said = site.look()
    assert site.loads == before
    bill = said.task("shop.tasks.bill")
    assert bill
    assert (bill.time_limit_s, bill.misfit((), {})) == (30, "missing a required argument: 'order'")
    assert [str(place) for place in said.broker] == ["redis1:None/3"]
    assert ("TIMEOUT", f"{site.here}/shop/__init__.py:8") in {
        (one.name, one.place) for one in said.variables
    }
    assert site.kept.stat().st_mode & 0o777 == 0o600
    assert "hunter2" not in site.kept.read_text()


def test_what_no_look_has_renewed_for_long_is_removed(site: Site) -> None:
    site.settle()
    left, other = site.kept.with_name("web9.json"), site.kept.parent.with_name("gone") / "web1.json"
    other.parent.mkdir()
    for path in (left, other):
        path.write_text("{}")
        os.utime(path, (time.time() - UNUSED_S - 60,) * 2)
    recent = site.kept.with_name("of another inventory.json")
    recent.touch()
    site.look()
    assert {path.exists() for path in (left, other)} == {False}
    assert recent.exists()
    assert site.kept.exists()


def touch(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda here: touch(here / "shop/tasks.py"),
        lambda here: (here / "shop/more.py").touch(),
        lambda here: touch(here / "limit.ini"),
        lambda here: (here / "env").write_text("TIMEOUT=other\nTOKEN=s3cret\n"),
    ],
    ids=["a module", "a new module", "a file that it reads", "its environment"],
)
def test_it_is_loaded_again_when_something_changed(
    site: Site, change: Callable[[Path], object]
) -> None:
    site.settle()
    before = site.loads
    change(site.here)
    site.look()
    assert site.loads > before


def test_a_fresh_look_loads_it_again_but_only_the_first(site: Site) -> None:
    site.settle()
    before, session = site.loads, site.session(fresh=True)
    site.look(session)
    site.look(session)
    assert site.loads == before + 1


def test_a_dry_run_loads_it_and_writes_nothing(site: Site) -> None:
    site.look(site.session(dry_run=True))
    assert not site.kept.exists()
    site.settle()
    before, kept = site.loads, site.kept.read_bytes()
    site.look(site.session(dry_run=True))
    assert (site.loads, site.kept.read_bytes()) == (before + 1, kept)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text(
            json.dumps(json.loads(path.read_text()) | {"said": {"tasks": 1}})
        ),
        lambda path: path.chmod(0o666),
    ],
    ids=["torn", "of another shape", "writable by others"],
)
def test_what_was_kept_and_cannot_be_relied_on_is_passed_over(
    site: Site, spoil: Callable[[Path], object]
) -> None:
    site.settle()
    before = site.loads
    spoil(site.kept)
    assert site.look().task("shop.tasks.ship")
    assert site.loads == before + 1


def test_where_it_cannot_be_loaded_the_imports_are_tried_although_its_workers_answer(
    site: Site,
) -> None:
    (site.here / "shop/__init__.py").write_text("import nosuch\n")
    state = site.session().observe(Needs.EVERYTHING).hosts["web1"]
    assert isinstance(state, HostState)
    assert state.application is None
    assert state.imports_now
    assert not state.imports_now.loaded
    assert not site.kept.exists()


def test_a_load_that_hangs_leaves_the_host_looked_at_and_is_not_tried_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "LOAD_S", 1)
    site.settle()
    before = site.loads
    (site.here / "shop/tasks.py").write_text("import time\ntime.sleep(600)\n")
    state = site.session().observe(Needs.EVERYTHING).hosts["web1"]
    assert isinstance(state, HostState)
    assert state.services["high"].pid is not None
    assert state.imports_now
    assert state.imports_now.errors[""].endswith(
        f"still at {site.here}/shop/tasks.py, line 2, after 1 s"
    )
    assert site.loads == before + 1


def test_a_host_that_goes_away_while_it_is_loaded_is_unreachable_and_the_look_goes_on(
    site: Site,
) -> None:
    site.world.transports["web1"].at = "DESCRIBE"
    assert isinstance(site.session().observe(Needs.EVERYTHING).hosts["web1"], Unreachable)
