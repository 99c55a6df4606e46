"""Makes docs/output.schema.json from the records of the output: `./inv docs` writes it, and a test
compares it.
"""

import json
from typing import Any, get_args

from lab.field_docs import describe
from runbooks.core.views import View
from runbooks.reports.document import Document, json_schema


def schema() -> dict[str, Any]:
    """The JSON Schema of the output, with what each documented field means."""
    whole = json_schema()
    describe(whole, (Document, *get_args(View)))
    return whole


def page() -> str:
    """The whole file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
