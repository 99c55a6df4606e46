"""What an operator can type or write is documented."""

from pathlib import Path

import pytest
from invoke.collection import Collection

from runbooks import verbs
from runbooks.core.errors import ExitCode
from runbooks.core.settings import AppSettings, HostSettings

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize("verb", sorted(Collection.from_module(verbs).task_names))
def test_every_verb_stands_in_the_readme(verb: str) -> None:
    assert f"`{verb}" in (CHECKOUT / "README.md").read_text()


@pytest.mark.parametrize("variable", sorted({*AppSettings.model_fields, *HostSettings.model_fields}))
def test_every_variable_stands_in_the_inventory_page(variable: str) -> None:
    assert f"`celery_{variable}`" in (CHECKOUT / "docs/inventory.md").read_text()


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_stands_in_the_readme(code: ExitCode) -> None:
    assert f" {int(code)} " in (CHECKOUT / "README.md").read_text().partition("Exit codes:")[2]
