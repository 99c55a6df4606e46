"""A sandbox of the tests' own: a copy of the checkout in a temporary folder, driven through the
real command line.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.world import CHECKOUT, Done, World, make_world

__all__ = ["CHECKOUT", "Done", "World", "deploy", "make_world"]


def deploy(path: Path, text: str) -> None:
    """Write a file of an application, dated a minute ahead: a worker that runs now is older."""
    path.write_text(text)
    later = time.time() + 60
    os.utime(path, (later, later))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A world of one test's own; its sandbox, if it puts one up, is taken down afterwards."""
    world = make_world(tmp_path)
    yield world
    if world.root.exists():
        down = world.inv("sandbox", "--down")
        assert down.code == 0, down.err


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A healthy sandbox that the tests of a module share; they leave it as they found it."""
    world = make_world(tmp_path_factory.mktemp("healthy"))
    up = world.inv("sandbox", "--healthy")
    assert up.code == 0, up.err
    yield world
    down = world.inv("sandbox", "--down")
    assert down.code == 0, down.err
