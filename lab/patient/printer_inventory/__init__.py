"""The printer inventory: polls the company's printers and keeps their GLPI cards in step."""

from .celery import app as celery_app

__all__ = ("celery_app",)
