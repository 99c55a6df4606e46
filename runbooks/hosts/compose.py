"""What a Compose file says of the environment of a service; values are not read, for they may be
secrets.

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
    """The environment files of a service, and the names of the variables that are set beside them.

    Both are empty where the file does not say it; a path with a variable in it is left out.
    """
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError:
        return (), ()
    services = told.get("services") if isinstance(told, Mapping) else None
    own = services.get(service) if isinstance(services, Mapping) else None
    if not isinstance(own, Mapping):
        return (), ()
    files = tuple(
        str(PurePosixPath(folder, path)) for path in _paths(own.get("env_file")) if "$" not in path
    )
    environment = own.get("environment")
    names = environment if isinstance(environment, list | Mapping) else ()
    return files, tuple(str(name).partition("=")[0] for name in names)


def _paths(told: Any) -> Iterator[str]:
    for one in told if isinstance(told, list) else [told]:
        path = one.get("path") if isinstance(one, Mapping) else one
        if isinstance(path, str):
            yield path
