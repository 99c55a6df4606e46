"""What each effect means: how it is made, and how it is looked for, judged and named when it takes
another back.

A file for each kind; `dispatch.py` finds the handler of an effect, whose record is in
`core/effects.py`. It may import `hosts`, `broker` and what these import.
"""
