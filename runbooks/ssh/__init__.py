"""An SSH client with OpenSSH's behaviour: configuration, host keys, login, jump hosts.

It implements the protocol of `hosts.transport`: one shell for all scripts of a run. It may import
`hosts` and `core`.
"""
