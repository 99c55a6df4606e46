"""Snapshot → findings: what is wrong, with the evidence; one file for each family of causes.

Pure: what it knows is the snapshot. It may import `steps` and what they import.
"""
