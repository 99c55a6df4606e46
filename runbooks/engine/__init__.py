"""The way through a run: observe, plan, ask, write down, apply, prove, undo.

It may import `diagnosis` and what that imports; the pages say in which order it does what.
"""
