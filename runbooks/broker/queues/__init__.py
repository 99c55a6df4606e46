"""Queue surgery: scan queues, archive messages, restore and move them, also unacknowledged ones.

No message is lost or doubled, even if a run is killed at any point. It may import the other rooms
of the broker, except `nodes`.
"""
