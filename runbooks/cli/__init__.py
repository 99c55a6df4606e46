"""The command line: the program and its verbs.

It turns flags into a session, and results into an exit code. It may import every room; no room
imports it.
"""

import sys
from types import ModuleType

import yaml


def _import_invoke() -> None:
    """Import Invoke without two modules that take a seventh of a verb's start-up time.

    Only its MockContext uses `unittest.mock`, and its copy of PyYAML does the same as the installed
    one.

    **Source:** invoke 2.2 `context.py`, `util.py`.
    """
    sys.modules.setdefault("invoke.vendor.yaml", yaml)
    name = "unittest.mock"
    if name in sys.modules:
        return
    stand_in = ModuleType(name)
    stand_in.Mock = None  # type: ignore[attr-defined]
    sys.modules[name] = stand_in
    try:
        import invoke  # noqa: F401
    finally:
        del sys.modules[name]


_import_invoke()
