"""The handlers of effects: how to perform each, and how to judge and name those that undo others.

A file for each kind; `dispatch.py` finds the handler of an effect, whose record is in
`core/effects.py`. It may import `hosts`, `broker` and everything that these import.
"""
