"""What `run-task` consists of: the call, the way to a worker, sending, watching, and progress.

It may import `engine` and what that imports.
"""
