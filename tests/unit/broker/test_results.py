"""Results are read as Celery stores them in Redis."""

import time

import pytest
import redis
from celery import Celery
from celery.app.task import Context

from runbooks.broker.results import Results


def test_reading_ends_in_time_and_says_whether_that_was_all(client: "redis.Redis") -> None:
    result = b'{"status": "SUCCESS", "result": 1}'
    client.mset({f"celery-task-meta-{n}": result for n in range(5000)})
    whole, part = Results(), Results()
    assert len(list(whole.each(client, "", time.monotonic() + 60))) == whole.looked_at == 5000
    assert whole.complete
    assert 0 < len(list(part.each(client, "", time.monotonic()))) < 5000
    assert not part.complete


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's own
def test_a_result_names_its_task_only_with_result_extended(client: "redis.Redis", url: str) -> None:
    for extended in (False, True):
        with Celery("shop", broker=url, backend=url, set_as_current=False) as app:
            app.conf.result_extended = extended
            request = Context(task="shop.bill", args=[], kwargs={})
            app.backend.store_result(f"extended-{extended}", 1, "SUCCESS", request=request)
    read = {one.id: one.task for one in Results().each(client, "", time.monotonic() + 60)}
    assert read == {"extended-False": None, "extended-True": "shop.bill"}
    assert "runtime" not in str(client.mget(client.keys("celery-task-meta-*")))
