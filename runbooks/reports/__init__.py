"""What an operator or a script reads: the console, and JSON. Nothing else prints.

The reporter's events report a run to it. It may only import `core`.
"""
