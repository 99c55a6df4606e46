"""The views of the broker, read-only: its queues, the messages of one, and the server itself.

They may import the other rooms of `broker/`, and `core`. They need to know no fleet: only a
`Store`, and names.
"""
