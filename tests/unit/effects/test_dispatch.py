"""Effects of one step on one host become one script."""

import pytest

from runbooks.core.effects import ControlService, Effect, EnableService, ReloadUnits, TakeMessages
from runbooks.effects.dispatch import fragments
from tests.unit.effects.made import fragment
from tests.unit.fleets import make_host


def test_an_effect_in_the_broker_is_not_a_shell_fragment() -> None:
    with pytest.raises(TypeError, match="TakeMessages is not an effect on a host"):
        fragment(TakeMessages("q", "a", ()))


def test_systemd_reads_its_units_once_after_the_last_of_neighbours_that_ask_for_it() -> None:
    start = ControlService("high", "start")
    effects: list[Effect] = [
        ReloadUnits(),
        EnableService("high", True),
        EnableService("low", True),
        start,
        ReloadUnits(),
    ]
    made = list(
        fragments(
            make_host(service_manager="systemd", commands=None),
            {str(n): e for n, e in enumerate(effects)},
            {},
        ).values()
    )
    assert made[0] == ":"
    assert "--no-reload" in made[1]
    assert "--no-reload" not in made[2]
    assert made[4] == "systemctl daemon-reload"
