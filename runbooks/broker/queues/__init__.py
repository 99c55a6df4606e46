"""Queue surgery: scanning, taking out, putting back, moving, and what was fetched and never
acknowledged.

None lost, none doubled, wherever it is killed. It may import the other rooms of the broker, but for
`nodes`.
"""
