"""Read the environment of a service in a Compose file, without values, which may be secrets.

**Source:** the Compose Specification, "services": `env_file` is a path, or a list of paths and of
maps with a `path`, each from the project's folder on; `environment` is a map, or a list of
`NAME=value` and `NAME`.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml


def environment_of(
    text: bytes, folder: str, service: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the environment files of a service, and the names of variables that are set directly.

    Both are empty if the file is invalid or does not have the service. Skips paths with variables.
    """
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError:
        return (), ()
    own = _in(_in(parsed, "services"), service)
    files = []
    for path in _paths(_in(own, "env_file")):
        if "$" not in path:
            files.append(str(PurePosixPath(folder, path)))
    names = []
    environment = _in(own, "environment")
    if isinstance(environment, list | Mapping):
        for pair in environment:
            name, _, _ = str(pair).partition("=")
            names.append(name)
    return tuple(files), tuple(names)


def _in(value: Any, name: str) -> Any:
    """Return an entry of a map, None if it has none, or is not a map."""
    if not isinstance(value, Mapping):
        return None
    return value.get(name)


def _paths(value: Any) -> Iterator[str]:
    if not isinstance(value, list):
        value = [value]
    for one in value:
        path = one
        if isinstance(one, Mapping):
            path = one.get("path")
        if isinstance(path, str):
            yield path
