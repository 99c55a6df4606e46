"""The parts of `run-task`: the call, the way to a worker, sending, watching, and progress.

It may import `engine` and the rooms below it.
"""
