"""The workers' nodes, asked through remote control and watched through their events.

It may import `broker.server` and `core`.
"""
