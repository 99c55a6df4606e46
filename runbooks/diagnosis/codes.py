"""The catalogue: every code that a finding may have, and what an operator should know about it.

The texts are in `catalogue/`, one TOML file per subject and one table per code: `[no_consumer]` of
`queue.toml` is `queue.no_consumer`. `inv explain` prints them, and docs/findings.md is written from
them.
"""

from pathlib import Path

from msgspec import convert

from runbooks.core.views import Explanation

_FOLDER = Path(__file__).parent / "catalogue"


def catalogue() -> dict[str, Explanation]:
    """Read the explanation of every code, in alphabetical order."""
    import tomllib  # 2 ms, and most looks do not need it

    found = {}
    for path in sorted(_FOLDER.glob("*.toml")):
        for name, texts in tomllib.loads(path.read_text()).items():
            code = f"{path.stem}.{name}"
            fields = {key: " ".join(text.split()) for key, text in texts.items()}
            found[code] = convert({"code": code, **fields}, Explanation)
    return found
