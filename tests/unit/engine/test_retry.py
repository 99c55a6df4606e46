"""`inv retry` needs results that it can read."""

import pytest

from runbooks.core.errors import UsageError
from runbooks.retry import Asked, retry
from tests.unit.engine.conftest import World


def test_without_results_in_a_redis_nothing_is_sent_again(world: World) -> None:
    with pytest.raises(UsageError, match="names no Redis as celery_result_backend"):
        retry(world.session(), Asked("*", "*", None, 20.0))
