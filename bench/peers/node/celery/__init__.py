"""Stands in for Celery on the hosts of `bench/fanout.py`: a node that starts in milliseconds and
answers as one.
"""


class Celery:
    """What the import probe takes for an application."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)
