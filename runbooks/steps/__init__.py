"""Desired states: files, units, environment, queues, workers. Each can say only which changes are missing.

Pure: what it knows is the snapshot. It may import `broker`, `hosts` and what they import.
"""
