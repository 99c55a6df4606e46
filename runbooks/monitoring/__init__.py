"""What the monitor remembers, reckons, exposes and sends.

It knows no broker and no host: a look is given to it. It may import `diagnosis` and `core`.
"""
