"""Faults: for every code of the catalogue a way to make it, with real means, on a healthy fleet,
and to undo it.

A module per family of codes. `./inv matrix` injects each of them and writes what is found into
docs/findings.md.
"""
