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

A table has the name of a heading, and its keys are words of the sentences below that heading.
A sentence that names its test itself needs no key.
`python -m tests.sentences docs/queues.md` lists the sentences of a page that have no check, and
`python -m tests.sentences docs/findings.md beat.none` those below one heading.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import markdown

CHECKOUT = Path(__file__).parents[1]
PAGES = sorted(
    {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "docs").glob("*.md")}
    | {"README.md", "README.ru.md", "CONTRIBUTING.md"}
)
NO_PROMISE = ("context", "design", "guide")
NAMES_ITS_TEST = re.compile(r"\btests/[\w/]+\.py::\w+")
BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][)»”\"])\s+")


class Sentence(NamedTuple):
    """A sentence, or a row of a table, as a reader sees it, and the nearest heading above it."""

    heading: str
    text: str


class Check(NamedTuple):
    """What checks the sentence that has some words; heading "" is any."""

    heading: str
    words: str
    by: list[str]

    def is_of(self, sentence: Sentence) -> bool:
        """Whether it checks this sentence."""
        return self.heading in ("", sentence.heading) and self.words in sentence.text


def checks_of(page: str) -> Iterator[Check]:
    """The checks of a page."""
    file = CHECKOUT / "tests/sentences" / f"{Path(page).stem}.toml"
    values = tomllib.loads(file.read_text()) if file.exists() else {}
    for name, value in values.items():
        if isinstance(value, dict):
            for words, by in value.items():
                yield Check(name, words, as_list(by))
        else:
            yield Check("", name, as_list(value))


def as_list(value: str | list[str]) -> list[str]:
    """The checks that a value names."""
    return [value] if isinstance(value, str) else value


def sentences(page: str) -> Iterator[Sentence]:
    """The sentences of a page that need a check."""
    text = (CHECKOUT / page).read_text()
    if page == "docs/findings.md":
        # `./inv matrix` measures the rows of the tables below it and checks each.
        text = re.sub(r"^\|.*\n", "", text, flags=re.MULTILINE)
    html = markdown.markdown(text, extensions=["tables", "fenced_code"], output_format="xhtml")
    heading = ""
    for block in ElementTree.fromstring(f"<page>{html}</page>").iter():
        if block.tag in ("h1", "h2", "h3", "h4"):
            heading = as_read(block)
        for sentence in BETWEEN_SENTENCES.split(text_of(block)):
            if re.search(r"\w", sentence) and not NAMES_ITS_TEST.search(sentence):
                yield Sentence(heading, sentence)


def text_of(block: ElementTree.Element) -> str:
    """The text of a paragraph, list item or row of a table; of any other block nothing."""
    if block.tag == "tr":
        return " | ".join(as_read(cell) for cell in block.findall("td")).replace(". ", "; ")
    if block.tag in ("p", "li"):
        return as_read(block)
    return ""


def as_read(block: ElementTree.Element) -> str:
    """The text of a block without the blocks in it."""
    parts = [block.text or ""]
    for child in block:
        if child.tag not in ("p", "ul", "ol", "pre"):
            parts += child.itertext()
        parts.append(child.tail or "")
    return " ".join("".join(parts).split())


def unchecked(page: str) -> list[Sentence]:
    """The sentences of a page that have no check."""
    known = list(checks_of(page))
    return [one for one in sentences(page) if not any(check.is_of(one) for check in known)]


if __name__ == "__main__":
    page, *headings = sys.argv[1:]
    for sentence in unchecked(page):
        if not headings or sentence.heading in headings:
            print(sentence.text)
