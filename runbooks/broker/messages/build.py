"""Writes a message as Celery's producers do, or a copy of one under another id.

**Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`; kombu 5.7.0 `transport/virtual/base.py:
Channel`.
"""

import base64
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from runbooks.broker.messages.fast_parse import Headers, read
from runbooks.broker.messages.parse import Message


def task_message(
    task_id: str,
    task: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    queue: str,
    origin: str,
) -> bytes:
    """Return a message of protocol 2 in JSON, without ETA, expiry or callbacks.

    The arguments are as kombu's JSON writes them.
    """
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": repr(tuple(args)),
        "kwargsrepr": repr(dict(kwargs)),
        "origin": origin,
        "ignore_result": False,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    properties = {
        "correlation_id": task_id,
        "reply_to": str(uuid.uuid4()),
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    body = json.dumps([list(args), dict(kwargs), embed]).encode()
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return json.dumps(message).encode()


def under_another_id(raw: bytes, task_id: str, queue: str) -> bytes | None:
    """Return a message of protocol 2 as a separate task in `queue`, otherwise unchanged.

    None if that is not certain. Under protocol 1 the id is in the body; such a message is not
    changed. **Source:** celery 5.7.0 `app/amqp.py: AMQP.as_task_v2`; kombu 5.7.0
    `transport/redis.py: Channel._do_restore_message`, for the marks of a returned message.
    """
    [before] = read([raw])
    if not isinstance(before, (Headers, Message)):
        return None
    envelope = json.loads(raw)
    headers = envelope["headers"]
    properties = envelope["properties"]
    if "id" not in headers:
        return None
    if headers.get("root_id") == headers["id"]:
        headers["root_id"] = task_id
    headers["id"] = task_id
    properties["correlation_id"] = task_id
    properties["delivery_tag"] = str(uuid.uuid4())
    properties["delivery_info"] |= {"exchange": "", "routing_key": queue}
    for marked in (headers, properties["delivery_info"]):
        marked.pop("redelivered", None)
    made = json.dumps(envelope).encode()
    [after] = read([made])
    if not isinstance(after, (Headers, Message)):
        return None
    if (after.id, after.task) != (task_id, before.task):
        return None
    return made
