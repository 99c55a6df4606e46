"""The logs of many hosts as one, in the order of time; journals and files are read in steps of a bounded size.

It may import `engine` and what that imports.
"""
