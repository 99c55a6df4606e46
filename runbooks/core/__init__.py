"""What every room shares: records, settings, selection rules, errors, and the reporter's events.

It contacts neither hosts nor the broker, reads no file of the operator, and imports no other room.
"""
