"""The archive of a run: the exact bytes of what was taken out, and what became of each message.

Written before anything is taken, read for putting back and for searching. It may import
`broker.messages`.
"""
