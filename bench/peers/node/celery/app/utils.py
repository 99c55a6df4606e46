"""What the import probe asks of an application."""

from types import SimpleNamespace

from celery import Celery

TASKS = ["bench.task"]


def find_app(name):
    loader = SimpleNamespace(import_default_modules=lambda: None)
    conf = SimpleNamespace(worker_enable_remote_control=True, broker_transport_options={})
    return Celery(
        name=name, loader=loader, finalize=lambda: None, tasks=dict.fromkeys(TASKS), conf=conf
    )
