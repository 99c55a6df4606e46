"""The sentences of the pages in docs/, and how each is checked: tests/sentences/PAGE.toml.

A key there is some words of one sentence, as a reader sees them: without marks. Its value names a
check, or is a list of several:

- `tests/….py::test_…`, a test that fails if the sentence is not true;
- `CONTRIBUTING.md: WORDS`, an item of "Check the docs manually" that begins with these words;
- `bench/NAME.py`, which measures the figure;
- `pyproject.toml`, if import-linter's layers enforce it.

Some sentences promise nothing that this tool does. Their values are:

- `context`: the reader's situation, or how another program behaves;
- `design`: why something is as it is, or a rule for contributors;
- `guide`: what the page is about, where to read on, what to type in an example that a test runs.

A sentence that names its test itself needs no key. Each key of `findings.toml` is a finding, and its
values are tests that require it or its absence.
`python -m tests.sentences docs/queues.md` lists the sentences of a page that have no check.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import markdown

CHECKOUT = Path(__file__).parents[1]
PAGES = sorted(
    {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "docs").glob("*.md")}
    - {"docs/findings.md"}
    | {"README.md", "README.ru.md", "CONTRIBUTING.md"}
)
NO_PROMISE = ("context", "design", "guide")
NAMES_ITS_TEST = re.compile(r"\btests/[\w/]+\.py::\w+")
BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][)»”\"])\s+")


def checks_of(page: str) -> dict[str, list[str]]:
    """The checks of a page: some words of a sentence, and what checks it."""
    file = CHECKOUT / "tests/sentences" / f"{Path(page).stem}.toml"
    values = tomllib.loads(file.read_text()) if file.exists() else {}
    return {words: [value] if isinstance(value, str) else value for words, value in values.items()}


def sentences(page: str) -> list[str]:
    """The sentences of a page that need a check, each as a reader sees it; a row of a table is one."""
    text = (CHECKOUT / page).read_text()
    if page == "docs/reference.md":
        # The tables from there on are the schema of the output, with which each document is
        # compared: of every verb by tests/unit/cli/test_json.py::
        # test_the_json_of_every_verb_is_one_document_as_the_schema_has_it, of fleets with workers
        # by all tests in tests/sandbox and tests/fleet that read one (`Done.json` in lab/world.py).
        text = text.partition("| key | type | meaning |")[0]
    html = markdown.markdown(text, extensions=["tables", "fenced_code"], output_format="xhtml")
    tree = ElementTree.fromstring(f"<page>{html}</page>")
    return [
        sentence
        for block in blocks(tree)
        for sentence in BETWEEN_SENTENCES.split(block)
        if re.search(r"\w", sentence) and not NAMES_ITS_TEST.search(sentence)
    ]


def blocks(tree: ElementTree.Element) -> Iterator[str]:
    """The text of each paragraph, list item and row of a table."""
    for row in tree.iter("tr"):
        cells = [as_read(cell) for cell in row.findall("td")]
        if cells:
            yield " | ".join(cells).replace(". ", "; ")
    for block in tree.iter():
        if block.tag in ("p", "li"):
            yield as_read(block)


def as_read(block: ElementTree.Element) -> str:
    """The text of a block without the blocks in it."""
    parts = [block.text or ""]
    for child in block:
        if child.tag not in ("p", "ul", "ol", "pre"):
            parts += child.itertext()
        parts.append(child.tail or "")
    return " ".join("".join(parts).split())


def unchecked(page: str) -> list[str]:
    """The sentences of a page that have no check."""
    known = checks_of(page)
    return [one for one in sentences(page) if not any(words in one for words in known)]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for sentence in unchecked(name):
            print(sentence)
