"""Makes docs/reference.md from the code: `./inv docs` writes it, and a test compares it."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import cleandoc
from typing import Any

from lab.field_docs import describe
from lab.schema_page import schema
from lab.verb_help import Flag, shared_flags, verbs_by_purpose
from runbooks.core.errors import EXIT_CODES
from runbooks.core.settings import AppSettings, HostSettings
from runbooks.core.wording import span

_HEAD = """\
<!-- Made by `./inv docs` from the verbs, settings and records of runbooks/: change these. -->
# Reference

Made from the code: [verbs and flags](#verbs-and-flags), [exit codes](#exit-codes), [variables](#variables),
[JSON](#json). The findings have [a page of their own](findings.md).
"""

_Schema = Mapping[str, Any]


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_verbs(), *_exit_codes(), *_variables(), *_json()]) + "\n"


def _verbs() -> Iterator[str]:
    yield "## Verbs and flags\n"
    yield (
        "A flag that takes several values is given several times. `inv VERB --help` says the same"
        " on a terminal.\n"
    )
    yield "### Flags of many verbs\n"
    yield from _flags(shared_flags())
    for heading, verbs in verbs_by_purpose():
        yield f"### {heading}\n"
        for verb in verbs:
            yield f"#### {verb.name}\n"
            yield f"`inv {verb.usage}`: {verb.purpose}\n"
            yield from _flags(verb.flags)
            yield "Also " + ", ".join(f"`{typed}`" for typed in verb.shared) + ".\n"


def _flags(flags: tuple[Flag, ...]) -> Iterator[str]:
    if flags:
        yield from _table(
            ("flag", "meaning"), [(f"`{flag.typed}`", _cell(flag.meaning)) for flag in flags]
        )


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield from _table(
        ("code", "meaning"), [(str(int(code)), meaning) for code, meaning in EXIT_CODES.items()]
    )


def _variables() -> Iterator[str]:
    yield "## Variables\n"
    yield (
        "[inventory.md](inventory.md) explains them in full. A duration is seconds, or has a unit:"
        " `15m`.\n"
    )
    for heading, model in (("Of the application", AppSettings), ("Of a host", HostSettings)):
        variables = model.model_json_schema()
        describe(variables, [model])
        yield f"### {heading}\n"
        yield from _fields(variables, "celery_")
        for name, record in sorted(variables["$defs"].items()):
            yield f"#### {name}\n"
            yield from _fields(record)


def _fields(record: _Schema, prefix: str = "") -> Iterator[str]:
    rows = [
        (
            f"`{prefix}{name}`",
            _written(field),
            _default(field, required=name in record.get("required", ())),
            _meaning(field),
        )
        for name, field in record["properties"].items()
    ]
    yield from _table(("name", "type", "default", "meaning"), rows)


def _written(field: _Schema) -> str:
    """How an inventory writes it: a number that need not be whole is a duration there, and what is
    null is left out.
    """
    kind = _type(field).removesuffix(" or null")
    return "duration" if kind == "number" else kind


def _default(field: _Schema, *, required: bool) -> str:
    value = field.get("default")
    if required:
        return "required"
    if value in (None, "", [], {}) or isinstance(value, dict):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return span(value)
    return "`" + str(value).encode("unicode_escape").decode() + "`"


def _json() -> Iterator[str]:
    described = schema()
    yield "## JSON\n"
    yield (
        "`--json` prints one document; with `--watch`, and for several applications, one in each"
        " line."
    )
    yield "A verb writes those of these keys that apply to it;"
    yield "[`output.schema.json`](output.schema.json) is its JSON Schema.\n"
    yield from _keys(described)
    for name, record in sorted(described["$defs"].items()):
        yield f"### {name}\n"
        if purpose := record.get("description"):
            yield f"{cleandoc(purpose)}\n"
        yield from _keys(record)


def _keys(record: _Schema) -> Iterator[str]:
    rows = [
        (f"`{key}`", _type(field), _meaning(field)) for key, field in record["properties"].items()
    ]
    yield from _table(("key", "type", "meaning"), rows)


def _meaning(field: _Schema) -> str:
    """The first paragraph of a field's documentation."""
    first = field.get("description", "").partition("\n\n")[0]
    return _cell(" ".join(first.split()))


_TYPES = {
    "string": "text",
    "number": "number",
    "integer": "whole number",
    "boolean": "yes or no",
    "null": "null",
}


def _type(field: _Schema) -> str:
    """A type in words, with a link where it is a record of this page."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if several := field.get("anyOf"):
        return " or ".join(dict.fromkeys(map(_type, several)))
    if "enum" in field:
        return ", ".join(f"`{one}`" for one in field["enum"])
    match field.get("type"):
        case "array":
            return f"list ({_type(field['items'])})" if field.get("items") else "list"
        case "object":
            inner = field.get("additionalProperties")
            return f"map ({_type(inner)})" if isinstance(inner, dict) and inner else "map"
        case str(kind):
            return _TYPES[kind]
    return "anything"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
