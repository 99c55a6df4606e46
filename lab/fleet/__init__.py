"""The fleet lab: real Debian hosts on this machine, each with systemd, sshd, cron and sudo in a
network of its own.

Everything of a fleet is under `.fleet/` of its checkout, but for a bridge and its links, a cgroup
in each hierarchy and one raised kernel limit; `record.py` names them all before the first is made.
"""
