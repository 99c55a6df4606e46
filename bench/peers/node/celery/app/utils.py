"""What the import probe asks of an application."""

from types import SimpleNamespace

TASKS = ["bench.task"]


def find_app(name):
    loader = SimpleNamespace(import_default_modules=lambda: None)
    return SimpleNamespace(name=name, loader=loader, finalize=lambda: None, tasks=dict.fromkeys(TASKS))
