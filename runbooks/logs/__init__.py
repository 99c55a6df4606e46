"""The logs of many hosts as one, in the order of time; each is read in steps of a bounded size.

It may import `engine` and what that imports.
"""
