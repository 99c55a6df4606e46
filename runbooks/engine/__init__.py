"""The way through a run: observe, plan, ask, write down, apply, prove, undo.

It may import `diagnosis`, `steps` and what they import; the pages say in which order it does what.
"""
