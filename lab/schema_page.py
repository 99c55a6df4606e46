"""Makes docs/output.schema.json from the records of the output: `./inv docs` writes it, and a test
compares it.
"""

import json

from runbooks.reports.document import json_schema


def page() -> str:
    """The whole schema."""
    return json.dumps(json_schema(), indent=1) + "\n"
