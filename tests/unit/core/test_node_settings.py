"""A worker's settings under their own names, wherever and however they are set."""

import pytest

from runbooks.core.node_settings import settings_of


@pytest.mark.parametrize(
    "name", ["task_routes", "CELERY_TASK_ROUTES", "CELERY_ROUTES", "SHOP_TASK_ROUTES"]
)
def test_a_setting_is_found_under_any_of_its_names(name: str) -> None:
    assert settings_of({name: {"a": "b"}, "TASK_ROUTER": 1, "SECRET_KEY": "x"}) == {
        "task_routes": {"a": "b"}
    }


def test_of_functions_and_objects_the_address_does_not_count() -> None:
    settings = [
        settings_of({"task_routes": [f"<function by_name at 0x7f{n}>", {"a": n}]}) for n in (1, 1)
    ]
    assert settings[0] == {"task_routes": ["<function by_name>", {"a": 1}]}
    options = {
        "CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS": 1,
        "CELERY_BROKER_TRANSPORT_OPTIONS": {"sep": ":"},
    }
    assert settings_of(options) == {"broker_transport_options": {"sep": ":"}}
