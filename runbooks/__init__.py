"""One tool that puts broken Celery fleets right."""

__version__ = "0.1.0"
