"""The one judgement: a snapshot's findings, with the evidence and the changes that fix them; a file
for each family.

Pure: what it knows is the snapshot. It may import `broker`, `hosts` and what they import.
"""
