"""The one judgement: the findings of a snapshot, with the evidence and the changes that fix them.

There is a file for each family of findings. All of it is pure: it knows nothing but the snapshot.
It may import `broker`, `hosts` and what they import.
"""
