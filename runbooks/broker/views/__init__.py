"""The read-only views of the broker: its queues, the messages of one queue, and the server.

They may import the other rooms of `broker/`, and `core`. They know no fleet: they work on a `Store`
and names.
"""
