"""`python -m celery -A APP worker --hostname=NODE --queues=QUEUES …`: consumes nothing, answers
remote control.

On the wire it does what Celery 5.7's node does: bound to `celery.pidbox` while it lives, one
connection in BRPOP. Only the standard library, and little of it: thirty of these start at once on
the machine that is measured.
"""

import base64
import json
import os
import signal
import socket
import sys
import time

from celery.app.utils import TASKS

options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:] if "=" in word)
node, queues = options["hostname"], options["queues"].split(",")
address, password, db = (
    os.environ[name] for name in ("BROKER_ADDRESS", "BROKER_PASSWORD", "BROKER_DB")
)
BINDING = ("_kombu.binding.celery.pidbox", f"\x06\x16\x06\x16{node}.celery.pidbox")


def send(connection, *words):
    items = [word if isinstance(word, bytes) else word.encode() for word in words]
    connection.sendall(
        b"*%d\r\n" % len(items) + b"".join(b"$%d\r\n%s\r\n" % (len(i), i) for i in items)
    )


def connect():
    connection = socket.create_connection((address, 6379))
    reader = connection.makefile("rb")
    for words in (("AUTH", password), ("SELECT", db)):
        send(connection, *words)
        reader.readline()
    return connection, reader


def receive(reader):
    head = reader.readline()
    if head[:1] == b"*":
        return [receive(reader) for _ in range(int(head[1:]))]
    return reader.read(int(head[1:]) + 2)[:-2] if head[:1] == b"$" else head[1:-2]


def answer(method, arguments):
    if method == "cancel_consumer":
        queues[:] = [queue for queue in queues if queue != arguments["queue"]]
    if method == "active_queues":
        return [{"name": queue} for queue in queues]
    if method == "active" and "BUSY" in os.environ:
        return [{"id": node, "name": TASKS[0], "time_start": time.time(), "acknowledged": True}]
    return {
        "ping": {"ok": "pong"},
        "registered": TASKS,
        "stats": {"pid": os.getpid()},
        "conf": {},
    }.get(method, [])


def reply(question):
    to = question["reply_to"]
    body = base64.b64encode(
        json.dumps({node: answer(question["method"], question["arguments"] or {})}).encode()
    )
    message = {
        "body": body.decode(), "content-encoding": "utf-8", "content-type": "application/json",
        "headers": {"ticket": question["ticket"], "clock": 1},
        "properties": {"delivery_info": to, "delivery_mode": 2, "delivery_tag": node, "body_encoding": "base64"},
    }  # fmt: skip
    send(commands[0], "LPUSH", f"{to['routing_key']}.{to['exchange']}", json.dumps(message))
    receive(commands[1])


def leave(*_):
    send(commands[0], "SREM", *BINDING)
    receive(commands[1])
    os._exit(0)


commands, control, consumer = connect(), connect(), connect()
signal.signal(signal.SIGTERM, leave)
send(consumer[0], "BRPOP", *queues, "0")
send(control[0], "SUBSCRIBE", f"/{db}.celery.pidbox")
receive(control[1])
send(commands[0], "SADD", *BINDING)
receive(commands[1])
for n in range(5):
    print(f"{node} line {n}", flush=True)
while True:
    envelope = json.loads(receive(control[1])[2])
    question = json.loads(base64.b64decode(envelope["body"]))
    if question.get("destination") is None or node in question["destination"]:
        reply(question)
