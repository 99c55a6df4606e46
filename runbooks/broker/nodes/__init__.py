"""Asks the workers' nodes through remote control, and watches tasks through their events.

It may import `broker.server` and `core`.
"""
