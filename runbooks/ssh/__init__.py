"""A client like OpenSSH's: its configuration, host keys, login, jump hosts, and one shell for a
run's scripts.

It implements the protocol of `hosts.transport`. It may import `hosts` and `core`.
"""
