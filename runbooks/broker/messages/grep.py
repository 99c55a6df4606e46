"""Looks for a text anywhere in a message: in its envelope, and in its body out of base64 and
compression.
"""

import json

from runbooks.broker.messages.body import body_bytes


class Grep:
    """Whether an item holds a text, as it is or as JSON escapes it; case matters. An empty text
    stands everywhere.
    """

    def __init__(self, text: str) -> None:
        plain = text.encode(errors="surrogatepass")
        escaped = json.dumps(text)[1:-1].encode()
        self._needles = tuple(dict.fromkeys((plain, escaped)))

    def __call__(self, raw: bytes) -> bool:
        return self._holds(raw) or self._holds(body_bytes(raw) or b"")

    def _holds(self, data: bytes) -> bool:
        return any(needle in data for needle in self._needles)
