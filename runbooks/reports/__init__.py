"""What an operator or a script reads: the console, and JSON. Nothing else prints.

It hears of a run by the reporter's events. It may import `core` alone.
"""
