"""Reads an inventory as Ansible does: YAML, groups, patterns, Jinja, lookups and vault; and the
templates.

`build` makes the fleet of it, with every problem at once. It may import `core` alone.
"""
