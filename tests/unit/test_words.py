"""Plain English: words that the project does not use, in its texts and in what it prints."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

INSTEAD = {
    r"(?<!\.)(?:tell|tells|telling|told)": "report, print, show, say",
    r"mend|mends|mended|mending": "fix, repair",
    r"nobody": "no one, or say who",
    r"(?<!there )(?:is|are|was|were) (?-i:none)": "is not one",
    r"(?<!there )(?:is|are|was|were) no(?! (?:longer|more|one|other|such)\b)": "is not a",
    r"of theirs": "their",
    r"for (?:it|they|there) (?:is|are|was|were|has|have|does|do|can|may)": "because",
    r"asks? (?:no|for no)(?:body)?": "does not contact, does not ask for",
    r"no matter": "also if, in any case",
    r"lets? in": "accept",
    r"puts? (?:\w+ )?right": "fix",
    r"has it that": "says",
    r"runs? since": "has been running since",
    r"no proof": "not verified",
    r"brought home|brings? (?:\w+ )?home": "return",
    r"looked at": "checked, read",
    r"left alone|left as (?:it is|they are)": "not changed, skipped",
    r"somebody": "someone, another owner, or say who",
    r"by hand": "manually",
    r"(?:take|takes|took|taken) back": "undo",
    r"anew": "again",
    r"for ever": "forever",
}
"""What is not written, and what is written instead."""

UNPLAIN = {
    re.compile(rf"\b(?:{words})\b", re.IGNORECASE): plain for words, plain in INSTEAD.items()
}

FIELD = re.compile(r"\{[^{}\n]*\}")
"""A field of an f-string."""

JINJA = re.compile(r"\{[{%#].*?[}%#]\}")
"""An expression, a statement or a comment of a template, on one line."""


FOLDERS = (".", "bench", "docs", "lab", "runbooks", "templates", "tests", "tools")
KINDS = ("*.md", "*.py", "*.toml", "*.sh", "*.j2", "*.html", "*.js", "*.yaml", "*.yml")


def files(folder: str) -> list[Path]:
    """Every file of a folder with texts of ours; "." is the checkout without its folders."""
    depth = "" if folder == "." else "**/"
    found = [path for kind in KINDS for path in (CHECKOUT / folder).glob(depth + kind)]
    ours = [path for path in found if path.is_file() and path != Path(__file__)]
    return sorted(path for path in ours if ".ru." not in path.name)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Each text of a file with its line: of Python strings and comments, of other files all.

    Names are not texts: the fields of an f-string, and in tests a string that is a single word.
    """
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".j2":
        source = JINJA.sub("", source)
    if path.suffix != ".py":
        yield 1, source
        return
    spoken = {tokenize.STRING, tokenize.COMMENT}
    of_a_test = path.is_relative_to(CHECKOUT / "tests")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in spoken or (of_a_test and " " not in token.string):
            continue
        is_f_string = token.string.lower().startswith(("f", "rf"))
        yield token.start[0], FIELD.sub("{}", token.string) if is_f_string else token.string


@pytest.mark.parametrize("folder", FOLDERS)
def test_texts_are_plain_english(folder: str) -> None:
    found = []
    for path in files(folder):
        for first, text in texts(path):
            for pattern, plain in UNPLAIN.items():
                for match in pattern.finditer(text):
                    line = first + text.count("\n", 0, match.start())
                    name = path.relative_to(CHECKOUT)
                    found.append(f"{name}:{line}: '{match[0]}': write {plain}")
    assert not found, "\n".join(found)
