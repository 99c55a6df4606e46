"""The application's own source: where it is made, another text in a file's place, what a failing
line reads of the environment. A module of `import_probe.py`, with its rules.
"""

import ast
import base64
import contextlib
import importlib.machinery
import inspect
import os
import re
import sys
from typing import Any, Dict, Iterator, List, Optional, Tuple

LIBRARIES = ("site-packages", "dist-packages", "/lib/python")


def home_of(app: Any) -> Dict[str, Any]:
    """The file that assigns the application, to which `name`, and its text in base64; or `why`
    there is none to edit.

    A line of its own belongs before the line `at`, 0: at the end. `checkout` is the git checkout
    that it is in, or "".
    """
    found = sorted(assignments(app))
    if not found:
        return {"why": "no module of its own assigns the application at its top level"}
    if len(found) > 1:
        return {
            "why": (
                "several modules assign the application: " + ", ".join(path for path, _, _ in found)
            )
        }
    path, name, at = found[0]
    if any(folder in path for folder in LIBRARIES):
        return {
            "why": (
                path
                + " is part of an installed package: mend it where that is built, and install it"
                " again"
            )
        }
    if os.path.islink(path):
        return {
            "why": (
                path
                + " is a link to "
                + os.path.realpath(path)
                + ": mend the file that it leads to"
            )
        }
    with open(path, "rb") as file:
        text = base64.b64encode(file.read()).decode()
    return {
        "why": "",
        "path": path,
        "name": name,
        "at": at,
        "text": text,
        "checkout": checkout_of(path),
    }


def assignments(app: Any) -> Iterator[Tuple[str, str, int]]:
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "celery":  # which keeps the current application, too
            continue
        path = getattr(module, "__file__", None) or ""
        names = [
            name for name, value in list(getattr(module, "__dict__", {}).items()) if value is app
        ]
        if not names or not path.endswith(".py"):
            continue
        with contextlib.suppress(Exception), open(path, "rb") as file:
            body = ast.parse(file.read()).body
            assigned = [
                target.id
                for line in body
                for target in targets_of(line)
                if isinstance(target, ast.Name)
            ]
            for name in names:
                if name in assigned:
                    yield path, name, main_guard(body)
                    break


def targets_of(line: Any) -> List[Any]:
    if isinstance(line, ast.Assign):
        return list(line.targets)
    return [line.target] if isinstance(line, ast.AnnAssign) and line.value else []


def main_guard(body: List[Any]) -> int:
    """The line of an `if __name__ == "__main__"` that ends the module, 0 where none does."""
    test = getattr(body[-1], "test", None)
    left = getattr(test, "left", None)
    return (
        int(body[-1].lineno)
        if isinstance(body[-1], ast.If) and getattr(left, "id", "") == "__name__"
        else 0
    )


def checkout_of(path: str) -> str:
    folder = os.path.dirname(os.path.realpath(path))
    while folder != os.path.dirname(folder):
        if os.path.exists(os.path.join(folder, ".git")):
            return folder
        folder = os.path.dirname(folder)
    return ""


def overlay(path: str, text: str) -> None:
    """Import the module of this file as if it held the `text` (base64); nothing is written."""
    source, loader = base64.b64decode(text), importlib.machinery.SourceFileLoader  # type: Any, Any
    original = loader.get_code

    def get_code(self: Any, fullname: str) -> Any:
        if os.path.realpath(self.get_filename(fullname)) == os.path.realpath(path):
            return compile(source, path, "exec", dont_inherit=True)
        return original(self, fullname)

    loader.get_code = get_code


def variables_read() -> Dict[str, Optional[str]]:
    """The environment variables that the lines of the traceback read, None: not set; libraries'
    lines are left out.
    """
    found = {}  # type: Dict[str, Optional[str]]
    step = sys.exc_info()[2]
    while step:
        path = step.tb_frame.f_code.co_filename
        if not any(folder in path for folder in LIBRARIES):
            with contextlib.suppress(Exception), open(path, "rb") as file:
                for line in ast.walk(ast.parse(file.read())):
                    if isinstance(line, ast.stmt) and is_at(line, step.tb_lineno):
                        found.update(
                            (name, os.environ.get(name)) for name in names_in(line, step.tb_frame)
                        )
        step = step.tb_next
    return found


def is_at(line: Any, number: int) -> bool:
    """Whether a statement without others inside it is at this line; before Python 3.8 only its
    first one is known.
    """
    return not hasattr(line, "body") and line.lineno <= number <= (
        getattr(line, "end_lineno", None) or line.lineno
    )


def names_in(line: Any, frame: Any) -> Iterator[str]:
    for node in ast.walk(line):
        key = None
        if isinstance(node, ast.Subscript) and dotted(node.value).endswith("environ"):
            key = (
                getattr(node.slice, "value", node.slice)
                if type(node.slice).__name__ == "Index"
                else node.slice
            )
        elif (
            isinstance(node, ast.Call)
            and node.args
            and re.search(r"(^|\.)(environ\.\w+|getenv)$", dotted(node.func))
        ):
            key = node.args[0]
        if isinstance(key, ast.Name):
            name = frame.f_locals.get(key.id, frame.f_globals.get(key.id))
        else:
            name = getattr(key, "value", getattr(key, "s", None))
        if isinstance(name, str):
            yield name


def twins_of(app: Any) -> List[List[str]]:
    """Tasks of one line of a file that is imported as two modules: the shorter name of each, the
    longer, the file.
    """
    names = {}  # type: Dict[Tuple[str, int], List[str]]
    for name, task in app.tasks.items():
        with contextlib.suppress(Exception):
            made = inspect.unwrap(task.run).__code__
            names.setdefault((os.path.realpath(made.co_filename), made.co_firstlineno), []).append(
                name
            )
    return [
        [short, long, path]
        for (path, _), ones in sorted(names.items())
        for short in sorted(ones)
        for long in sorted(ones)
        if long.endswith("." + short)
    ]


def dotted(node: Any) -> str:
    if isinstance(node, ast.Attribute):
        return dotted(node.value) + "." + node.attr
    return getattr(node, "id", "")
