"""Other names of flags, as in Ansible and Celery.

**Source:** `ansible/cli/arguments/option_helpers.py` (ansible-core 2.19).
"""

from typing import Any

from invoke.parser.argument import Argument
from invoke.tasks import Task

LETTERS = "cCDefiJkKlTuv"
"""Letters that are flags of Ansible or one of its commands."""

_ALSO = {
    "inventory": ("i",),
    "limit": ("l",),
    "forks": ("f",),
    "dry-run": ("check", "C"),
    "diff": ("D",),
    "ask-become-pass": ("K",),
    "app": ("A",),
}
CHANGING = ("--check", "-C", "--diff", "-D")
"""Flags of verbs that change something."""


class AnsibleTask(Task):  # type: ignore[type-arg]
    """A task whose flags also have Ansible's names."""

    def __deepcopy__(self, memo: object) -> "AnsibleTask":
        """Return the task itself: Invoke copies each verb twice, and none is changed later."""
        return self

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Return the arguments, and keep their help, which Invoke removes from the task."""
        kept = dict(self.help)
        arguments = super().get_arguments(ignore_unknown_help)
        self.help = kept
        return arguments

    def arg_opts(self, name: str, default: str, taken_names: set[str]) -> dict[str, Any]:
        options = super().arg_opts(name, default, taken_names)
        options["names"] = [*options["names"], *_ALSO.get(options["names"][0], ())]
        return options
