"""The archive of a run: the exact bytes of its messages, and what became of each.

It is written before a message leaves its queue, and read to restore and to search. It may import
`broker.messages`.
"""
