"""Runs in the application's Python on the host (its source is sent there, after a line that sets QUESTION).

Loads the application as a worker does, then imports by hand the modules of the expected tasks that are missing, so that
an error which the application swallows comes to light.
"""

import importlib
import json
import os
import re
import shlex
import sys
import traceback

question = json.loads(QUESTION)  # type: ignore[name-defined]  # noqa: F821


def read_env_file(path: str) -> None:
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            found = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", line, re.DOTALL)
            if found and "\0" not in line:
                os.environ[found[1]] = unquote(found[2].strip())


def unquote(value: str) -> str:
    try:
        return "".join(shlex.split(value)) if value[:1] in ("'", '"') else value
    except ValueError:
        return value


os.chdir(question["directory"])
sys.path.insert(0, question["directory"])
read_env_file(question["env_file"])
os.environ.update(question["overrides"])

from celery.app.utils import find_app  # noqa: E402

app = find_app(question["app"])
app.loader.import_default_modules()
app.finalize()
registered = set(app.tasks)
errors = {}
for module in sorted({name.rpartition(".")[0] for name in set(question["expected"]) - registered}):
    try:
        importlib.import_module(module)
        errors[module] = ""
    except BaseException:
        errors[module] = "".join(traceback.format_exception(*sys.exc_info(), limit=-4)).strip()
print("\n" + json.dumps({"registered": sorted(registered), "errors": errors}), flush=True)
os._exit(0)  # neither wait for the application's threads, nor run what it does at exit
