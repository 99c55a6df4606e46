"""The application's own source: the file that assigns it, and the variables that it reads.

A module of `import_probe.py`, with its rules.
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

READS = re.compile(r"(^|\.)(environ\.\w+|getenv)$")
LIBRARIES = ("site-packages", "dist-packages", "/lib/python")


def home_of(app: Any) -> Dict[str, Any]:
    """Return the file that assigns the application, in the shape of `application.py: Home`.

    Its `text` is in base64.
    """
    found = sorted(assignments(app))
    why = fault_of([path for path, _, _ in found])
    if why:
        return {"why": why}
    path, name, at = found[0]
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


def fault_of(paths: List[str]) -> str:
    """Return why none of these files that assign the application can be edited, "" if one can."""
    if not paths:
        return "no module of the application assigns it at its top level"
    if len(paths) > 1:
        return "several modules assign the application: " + ", ".join(paths)
    path = paths[0]
    if any(folder in path for folder in LIBRARIES):
        return (
            path + " is part of an installed package: fix its source, build the package and install"
            " it again"
        )
    if os.path.islink(path):
        target = os.path.realpath(path)
        return path + " is a link to " + target + ": fix the file that it leads to"
    return ""


def assignments(app: Any) -> Iterator[Tuple[str, str, int]]:
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "celery":  # which also keeps the current application
            continue
        path = getattr(module, "__file__", None) or ""
        own = list(getattr(module, "__dict__", {}).items())
        names = [name for name, value in own if value is app]
        if not names or not path.endswith(".py"):
            continue
        with contextlib.suppress(Exception), open(path, "rb") as file:
            body = ast.parse(file.read()).body
            assigned = []
            for line in body:
                for target in targets_of(line):
                    if isinstance(target, ast.Name):
                        assigned.append(target.id)
            for name in names:
                if name in assigned:
                    yield path, name, main_guard(body)
                    break


def targets_of(line: Any) -> List[Any]:
    if isinstance(line, ast.Assign):
        return list(line.targets)
    if isinstance(line, ast.AnnAssign) and line.value:
        return [line.target]
    return []


def main_guard(body: List[Any]) -> int:
    """Return the line of an `if __name__ == "__main__"` at the end of the module, 0 for none."""
    test = getattr(body[-1], "test", None)
    left = getattr(test, "left", None)
    if isinstance(body[-1], ast.If) and getattr(left, "id", "") == "__name__":
        return int(body[-1].lineno)
    return 0


def checkout_of(path: str) -> str:
    folder = os.path.dirname(os.path.realpath(path))
    while folder != os.path.dirname(folder):
        if os.path.exists(os.path.join(folder, ".git")):
            return folder
        folder = os.path.dirname(folder)
    return ""


def overlay(path: str, text: str) -> None:
    """Make imports of this file load the `text` (base64) instead; nothing is written."""
    source = base64.b64decode(text)
    loader = importlib.machinery.SourceFileLoader  # type: Any
    original = loader.get_code

    def get_code(self: Any, fullname: str) -> Any:
        if os.path.realpath(self.get_filename(fullname)) == os.path.realpath(path):
            return compile(source, path, "exec", dont_inherit=True)
        return original(self, fullname)

    loader.get_code = get_code


def variables_read() -> Dict[str, Optional[str]]:
    """Return the environment variables that the lines of the traceback read; None: not set.

    Skips lines of libraries.
    """
    found = {}  # type: Dict[str, Optional[str]]
    step = sys.exc_info()[2]
    while step:
        path = step.tb_frame.f_code.co_filename
        if not any(folder in path for folder in LIBRARIES):
            with contextlib.suppress(Exception), open(path, "rb") as file:
                for line in ast.walk(ast.parse(file.read())):
                    if isinstance(line, ast.stmt) and is_at(line, step.tb_lineno):
                        for name in names_in(line, step.tb_frame):
                            found[name] = os.environ.get(name)
        step = step.tb_next
    return found


def is_at(line: Any, number: int) -> bool:
    """Whether a simple statement is at this line; before Python 3.8 only its first line counts."""
    last = getattr(line, "end_lineno", None) or line.lineno
    return not hasattr(line, "body") and line.lineno <= number <= last


def names_in(line: Any, frame: Any) -> Iterator[str]:
    for node in ast.walk(line):
        key = key_in(node)
        if isinstance(key, ast.Name):
            name = frame.f_locals.get(key.id, frame.f_globals.get(key.id))
        else:
            name = getattr(key, "value", getattr(key, "s", None))
        if isinstance(name, str):
            yield name


def key_in(node: Any) -> Any:
    """Return the key with which an expression reads the environment, None if it does not."""
    if isinstance(node, ast.Subscript) and dotted(node.value).endswith("environ"):
        if type(node.slice).__name__ == "Index":  # before Python 3.9
            return getattr(node.slice, "value", node.slice)
        return node.slice
    if isinstance(node, ast.Call) and node.args and READS.search(dotted(node.func)):
        return node.args[0]
    return None


def twins_of(app: Any) -> List[List[str]]:
    """Return tasks of files that are imported as two modules: shorter name, longer name, file."""
    names = {}  # type: Dict[Tuple[str, int], List[str]]
    for name, task in app.tasks.items():
        with contextlib.suppress(Exception):
            made = inspect.unwrap(task.run).__code__
            place = (os.path.realpath(made.co_filename), made.co_firstlineno)
            names.setdefault(place, []).append(name)
    twins = []
    for (path, _), ones in sorted(names.items()):
        for short in sorted(ones):
            for long in sorted(ones):
                if long.endswith("." + short):
                    twins.append([short, long, path])
    return twins


def dotted(node: Any) -> str:
    if isinstance(node, ast.Attribute):
        return dotted(node.value) + "." + node.attr
    return getattr(node, "id", "")
