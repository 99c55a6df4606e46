"""The command line: the program, and its verbs.

Flags become a session and an exit code here. It may import every room; no room imports it.
"""
