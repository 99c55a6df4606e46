"""What Ansible's `-i` accepts: the files of a source, and which of them only Ansible can read.

**Source:** `ansible/inventory/manager.py: parse_source`,
`plugins/inventory/{host_list,script,auto,yaml,ini,toml}.py`, `config/manager.py:
find_ini_config_file`, `config/base.yml: DEFAULT_HOST_LIST, INVENTORY_*` (ansible-core 2.19).
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runbooks.core.errors import UsageError
from runbooks.inventory.yaml import Map

if TYPE_CHECKING:
    from configparser import ConfigParser

YAML_EXTENSIONS = ("", ".yaml", ".yml", ".json")
LEFT_OUT = (
    "to skip a file of a folder that is not an inventory, set ignore_patterns under [inventory] in"
    " ansible.cfg"
)

_IGNORED = re.compile(
    r"^\.|^host_vars$|^group_vars$|^vars_plugins$|"
    r"(\.pyc|\.pyo|\.swp|\.bak|~|\.rpm|\.md|\.txt|\.rst|\.orig|\.cfg|\.retry)$"
)
_IN_ENVIRONMENT = (
    "ANSIBLE_INVENTORY_IGNORE",
    "ANSIBLE_INVENTORY_IGNORE_REGEX",
    "ANSIBLE_INVENTORY_ENABLED",
    "ANSIBLE_YAML_FILENAME_EXT",
    "ANSIBLE_INVENTORY_PLUGIN_EXTS",
)
_IN_CONFIGURATION = (
    ("defaults", "inventory_ignore_extensions"),
    ("defaults", "inventory_ignore_patterns"),
    ("inventory", "ignore_extensions"),
    ("inventory", "ignore_patterns"),
    ("inventory", "enable_plugins"),
    ("inventory_plugin_yaml", "yaml_valid_extensions"),
    ("defaults", "yaml_valid_extensions"),
)


def is_host_list(source: str) -> bool:
    """Return whether a source is a list of hosts, not a file: `web1,web2`, `web1,`."""
    return "," in source and not os.path.exists(source)


def files_of(source: Path) -> Iterator[Path]:
    """The files of a source: itself, or those in the folder and below it, in Ansible's order."""
    if not source.is_dir():
        yield source
        return
    for name in sorted(os.listdir(source)):
        if not _IGNORED.search(name):
            yield from files_of(source / name)


def is_read_with(folder: Path, path: Path) -> bool:
    """Return whether a path is read as a part of the inventory of this folder."""
    folder = folder.absolute()
    path = path.absolute()
    if not path.is_relative_to(folder):
        return False
    return not any(map(_IGNORED.search, path.relative_to(folder).parts))


def folder_of(source: Path) -> Path:
    """Where the `group_vars/` and `host_vars/` of a source are."""
    if source.is_dir():
        return source
    return source.parent


def playbooks_folder() -> Path | None:
    """Return the working folder, where Ansible also searches `group_vars/` and `host_vars/`.

    None if every user can write there, or the folder does not exist any more.
    """
    with suppress(OSError):
        here = Path.cwd()
        if not here.stat().st_mode & stat.S_IWOTH:
            return here
    return None


def why_ansible(path: Path) -> str | None:
    """Return why only Ansible can read a file, by name and first bytes; None: this tool can."""
    if path.suffix == ".toml":
        return "a TOML file"
    if not os.access(path, os.X_OK):
        return None
    # A file that cannot be read is reported where it is read.
    with suppress(OSError), path.open("rb") as file:
        if file.read(4).startswith((b"#!", b"\x7fELF")):
            return "a script"
    return None


def is_plugin(groups: Map) -> bool:
    """Return whether a YAML file is the configuration of an inventory plugin."""
    return bool(groups.get("plugin"))


def default_sources() -> list[str]:
    """Return what Ansible uses without `-i`, from ANSIBLE_INVENTORY or ansible.cfg; maybe none."""
    named = os.environ.get("ANSIBLE_INVENTORY")
    if named:
        return _paths(named, Path.cwd())
    path, settings = _configuration()
    return _paths(settings.get("defaults", "inventory", raw=True, fallback=""), path.parent)


def reads_in_its_own_way() -> bool:
    """Whether Ansible's settings change how it reads folders."""
    _, settings = _configuration()
    if any(name in os.environ for name in _IN_ENVIRONMENT):
        return True
    for section, option in _IN_CONFIGURATION:
        if settings.has_option(section, option):
            return True
    return False


def _paths(text: str, folder: Path) -> list[str]:
    paths = []
    for part in text.split(","):
        if part.strip():
            paths.append(str(_path(part.strip(), folder)))
    return paths


def _path(text: str, folder: Path) -> Path:
    text = text.replace("{{CWD}}", str(Path.cwd()))
    return Path(os.path.normpath(folder / os.path.expanduser(os.path.expandvars(text))))


def _configuration() -> tuple[Path, "ConfigParser"]:
    """The `ansible.cfg` that Ansible takes, and its settings; no settings where there is none."""
    from configparser import ConfigParser, Error

    settings = ConfigParser(inline_comment_prefixes=(";",))
    path = next((path for path in _candidates() if os.access(path, os.R_OK)), None)
    if path is None:
        return Path(), settings
    try:
        settings.read(path, encoding="utf-8")
    except (Error, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {path}: {error}", "correct it; Ansible cannot read it either"
        ) from None
    return path, settings


def _candidates() -> Iterator[Path]:
    named = os.environ.get("ANSIBLE_CONFIG")
    if named:
        path = _path(named, Path.cwd())
        if path.is_dir():
            path = path / "ansible.cfg"
        yield path
    folder = playbooks_folder()
    if folder:
        yield folder / "ansible.cfg"
    yield Path.home() / ".ansible.cfg"
    yield Path("/etc/ansible/ansible.cfg")
