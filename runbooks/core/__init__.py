"""What every room knows: the frozen records, settings, selection rules, errors, and the reporter's
events.

It asks no host, no broker and no file of the operator's. It imports no other room.
"""
