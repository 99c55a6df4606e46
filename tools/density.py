"""Measure how much a line of code carries, so that two states of the code, or two projects, can be
compared.

    python tools/density.py [FOLDER …]     # runbooks, where none is named

A line counts where a token of code begins: no blank lines, comments or docstrings. Characters are
counted without indentation. A node is one of Python's syntax tree, without docstrings.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

_MOST_PARAMETERS = 6
_NOT_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def main(folders: list[str]) -> None:
    """Print the figures of each folder."""
    for folder in folders or ["runbooks"]:
        print(folder)
        for name, value in figures(sorted(Path(folder).rglob("*.py"))).items():
            print(f"  {value:>9,.1f}  {name}")


def figures(paths: list[Path]) -> dict[str, float]:
    """All figures of these files, by what they count."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts += counted(path.read_text(encoding="utf-8"))
    lines = counts["lines"]
    functions = counts["functions"]
    return {
        "files": len(paths),
        "lines of code": lines,
        "lines of code in a file": lines / len(paths),
        "lines of code in a function": counts["function lines"] / functions,
        "characters in a line": counts["characters"] / lines,
        "nodes in a line": counts["nodes"] / lines,
        "conditional expressions in 1,000 lines": counts["conditional expressions"] / lines * 1000,
        "comprehensions in 1,000 lines": counts["comprehensions"] / lines * 1000,
        "nested conditional expressions": counts["nested conditional expressions"],
        "comprehensions with two loops and a condition": counts["dense comprehensions"],
        "tuple assignments": counts["tuple assignments"],
        f"functions with more than {_MOST_PARAMETERS} parameters": counts["wide functions"],
        "constants below the code that uses them": counts["late constants"],
        "fmt: skip": counts["fmt: skip"],
    }


def counted(source: str) -> Counter[str]:
    """What is counted in one file."""
    counts: Counter[str] = Counter()
    tree = ast.parse(source)
    docstrings = set(_docstrings(tree))
    lines = _lines_of_code(source, docstrings)
    counts["lines"] = len(lines)
    counts["characters"] = sum(len(text) for text in lines.values())
    counts["fmt: skip"] = source.count("# fmt: skip")
    counts["late constants"] = len(_late_constants(tree))
    for node in ast.walk(tree):
        if node in docstrings:
            continue
        counts["nodes"] += 1
        counts.update(_kinds(node))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            counts["function lines"] += sum(
                node.lineno <= line <= (node.end_lineno or 0) for line in lines
            )
    return counts


def _kinds(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield "conditional expressions"
        if any(isinstance(below, ast.IfExp) for below in ast.walk(node) if below is not node):
            yield "nested conditional expressions"
    if isinstance(node, _COMPREHENSIONS):
        yield "comprehensions"
        conditions = sum(len(loop.ifs) for loop in node.generators)
        if len(node.generators) > 1 and conditions:
            yield "dense comprehensions"
    if isinstance(node, ast.Assign) and _is_tuple_assignment(node):
        yield "tuple assignments"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield "functions"
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if len([one for one in parameters if one.arg not in ("self", "cls")]) > _MOST_PARAMETERS:
            yield "wide functions"


def _is_tuple_assignment(node: ast.Assign) -> bool:
    return isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)


def _docstrings(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node
            yield node.value


def _lines_of_code(source: str, docstrings: set[ast.AST]) -> dict[int, str]:
    """Each line on which a token of code begins, by its number, without indentation."""
    left_out = {
        line
        for node in docstrings
        if isinstance(node, ast.Expr)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    text = source.splitlines()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    numbers = {token.start[0] for token in tokens if token.type not in _NOT_CODE}
    return {number: text[number - 1].strip() for number in sorted(numbers - left_out)}


def _late_constants(tree: ast.Module) -> set[str]:
    """The constants of a module that a function above them uses."""
    used_at: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used_at[node.id] = min(node.lineno, used_at.get(node.id, node.lineno))
    made = {
        target.id: statement.lineno
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return {name for name, line in made.items() if used_at.get(name, line) < line}


if __name__ == "__main__":
    main(sys.argv[1:])
