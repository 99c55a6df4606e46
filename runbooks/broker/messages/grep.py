"""Searches a whole message for a text: its envelope, and its decoded and decompressed body."""

import json

from runbooks.broker.messages.body import body_bytes


class Grep:
    """Says whether an item contains a text, as it is or as JSON escapes it; case matters."""

    def __init__(self, text: str) -> None:
        plain = text.encode(errors="surrogatepass")
        escaped = json.dumps(text)[1:-1].encode()
        self._needles = tuple(dict.fromkeys((plain, escaped)))

    def __call__(self, raw: bytes) -> bool:
        return self._holds(raw) or self._holds(body_bytes(raw) or b"")

    def _holds(self, data: bytes) -> bool:
        return any(needle in data for needle in self._needles)
