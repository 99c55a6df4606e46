"""Stands in for Celery on the hosts of `bench/fanout.py`: a node that starts in milliseconds and answers as one."""
