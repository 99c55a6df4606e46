"""The Celery application: reads Django's settings and loads the tasks of the installed apps."""

import logging
import os
from importlib import import_module
from typing import Any

from celery import Celery
from celery.signals import import_modules

logger = logging.getLogger(__name__)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "printer_inventory.settings")

app = Celery("printer_inventory")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["inventory"])


@import_modules.connect(sender=app)
def load_integrations(**_: Any) -> None:
    """Load the tasks of the optional integrations: a site without GLPI runs without them."""
    try:
        import_module("integrations.tasks")
    except Exception as exc:
        logger.debug("integrations are not available: %s", exc)
