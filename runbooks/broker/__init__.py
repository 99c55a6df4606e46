"""Celery on Redis: `Broker` is all that a run does there.

The rooms below it import one way: `server` ← `messages` ← `archive` | `nodes` ← `queues`. Only
here are redis, celery and kombu imported; of the project, `core` alone.
"""
