"""Django and Celery settings; everything that differs between sites comes from the environment."""

import os
from pathlib import Path

from celery.schedules import crontab
from django.core.exceptions import ImproperlyConfigured
from kombu import Exchange, Queue


def _required(name: str) -> str:
    """The value of an environment variable that the site cannot run without."""
    try:
        return os.environ[name]
    except KeyError:
        raise ImproperlyConfigured(f"{name} is not set; load printer_inventory.env first") from None


SECRET_KEY = _required("DJANGO_SECRET_KEY")
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "integrations",
    "inventory",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

DATABASE_PATH = Path(_required("DATABASE_PATH"))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE_PATH,
        "OPTIONS": {
            "timeout": 20,
            # A transaction that reads first and writes later cannot wait for the lock: take it at
            # the start.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}
EXPORT_DIR = DATABASE_PATH.parent / "exports"

GLPI_URL = os.environ.get("GLPI_URL", "")
GLPI_APP_TOKEN = os.environ.get("GLPI_APP_TOKEN", "")
GLPI_USER_TOKEN = os.environ.get("GLPI_USER_TOKEN", "")
GLPI_SYNC_USER = os.environ.get("GLPI_SYNC_USER", "glpi_sync")

CELERY_BROKER_URL = _required("CELERY_BROKER_URL")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_RESULT_BACKEND = _required("CELERY_RESULT_BACKEND")
CELERY_RESULT_EXPIRES = 24 * 60 * 60
CELERY_TIMEZONE = TIME_ZONE
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"
CELERY_TASK_TRACK_STARTED = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1

# Each queue has a routing key of its own: without one all would be bound to the default key and
# share its messages.
CELERY_TASK_QUEUES = [
    Queue(name, Exchange(name), routing_key=name)
    for name in ("high_priority", "low_priority", "daemon")
]
CELERY_TASK_DEFAULT_QUEUE = "low_priority"
CELERY_TASK_ROUTES = {
    "integrations.tasks.check_all_devices_in_glpi": {"queue": "high_priority"},
    "integrations.tasks.check_single_device_in_glpi": {"queue": "high_priority"},
    "integrations.tasks.export_monthly_report_to_glpi": {"queue": "low_priority"},
    "inventory.tasks.poll_printer": {"queue": "low_priority"},
    "inventory.tasks.collect_daemon_status": {"queue": "daemon"},
}
CELERY_BEAT_SCHEDULE = {
    "glpi-check-all-devices-daily": {
        "task": "integrations.tasks.check_all_devices_in_glpi",
        "schedule": crontab(hour=2, minute=0),
        "options": {"queue": "high_priority", "priority": 5},
    },
    "collect-daemon-status": {
        "task": "inventory.tasks.collect_daemon_status",
        "schedule": 60.0,
        "options": {"queue": "daemon", "expires": 60},
    },
}
