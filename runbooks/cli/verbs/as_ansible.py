"""Flags that mean the same as to Ansible, or to Celery: their other names.

**Source:** `ansible/cli/arguments/option_helpers.py` (ansible-core 2.19).
"""

from typing import Any

from invoke.parser.argument import Argument
from invoke.tasks import Task

LETTERS = "cCDefiJkKlTuv"
"""Those that mean something to Ansible, or to one of its commands."""

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
"""Those that mean something only to a verb that changes something."""


class AnsibleTask(Task):  # type: ignore[type-arg]
    """A task whose flags have Ansible's names beside their own."""

    def __deepcopy__(self, memo: object) -> "AnsibleTask":
        """Return the task itself: Invoke copies each verb twice as it loads them, and none is
        changed afterwards.
        """
        return self

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Keep the help, which Invoke takes out of the task as it makes the arguments: they may be
        asked for again.
        """
        kept = dict(self.help)
        arguments = super().get_arguments(ignore_unknown_help)
        self.help = kept
        return arguments

    def arg_opts(self, name: str, default: str, taken_names: set[str]) -> dict[str, Any]:
        options = super().arg_opts(name, default, taken_names)
        options["names"] = [*options["names"], *_ALSO.get(options["names"][0], ())]
        return options
