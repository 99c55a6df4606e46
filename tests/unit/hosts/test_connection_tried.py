"""The connection that a worker would make, tried by the application on its host, against real
servers.
"""

import getpass
from pathlib import Path
from typing import Any

import pytest
import redis

from lab.redis_server import RedisServer
from runbooks.core.model import ImportProbe
from runbooks.hosts.application import ask_imports, parse_imports
from runbooks.hosts.script import run_fragments
from runbooks.hosts.transport import LocalTransport
from tests.brokers import servers, with_tls
from tests.unit.fleets import make_host

APP = """\
import os
from celery import Celery
app = Celery("shop", broker=os.environ["BROKER"])
app.conf.broker_transport_options = {"global_keyprefix": "shop:"}
"""


def tried(directory: Path, url: str) -> ImportProbe:
    (directory / "shop.py").write_text(APP)
    host = make_host(directory=str(directory), user=getpass.getuser())
    question = {"q": ask_imports(host, "shop", (), {"BROKER": url})}
    return parse_imports(host, run_fragments(LocalTransport(), question, timeout_s=60)["q"])


def test_a_worker_is_accepted_or_not_and_nothing_of_the_try_stays(
    redis_server: RedisServer, client: "redis.Redis", url: str, tmp_path: Path
) -> None:
    here = f"127.0.0.1:{redis_server.port}/5"
    acl: Any = client.execute_command
    rights = ("~shop:*", "+@all", "resetchannels", "&shop:/5.celery.pidbox")
    acl("ACL", "SETUSER", "shop", "reset", "on", ">s3cret", *rights)
    before = client.info("persistence")["rdb_changes_since_last_save"]
    try:
        probe = tried(tmp_path, f"redis://shop:s3cret@{here}")
        assert (probe.failed, probe.broker_at, probe.broker_error) == ("", f"redis://{here}", "")
        refused = tried(tmp_path, f"redis://shop:0ld@{here}").broker_error
        assert "invalid username-password pair" in refused
        acl("ACL", "SETUSER", "shop", "resetchannels", "-hset", "resetkeys", "~shop:[^h]*")
        denied = tried(tmp_path, f"redis://shop:s3cret@{here}").broker_error.split("; ")
        assert [line.partition(":")[0] for line in denied] == [
            "BRPOP shop",
            "HSET shop",
            "PSUBSCRIBE /5.celery.pidbox",
        ]
    finally:
        acl("ACL", "DELUSER", "shop")
    assert client.info("persistence")["rdb_changes_since_last_save"] == before
    assert client.pubsub_numpat() == 0


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://:pw@127.0.0.1:1/0", "Connection refused"),
        ("redis://:pw@no-such-host.invalid:6379/0", "Name or service not known"),
        ("redis://:s3?cret@127.0.0.1:6379/0", "the URL cannot be read"),
    ],
)
def test_a_broker_that_is_not_reached_is_reported_without_the_password(
    tmp_path: Path, url: str, why: str
) -> None:
    probe = tried(tmp_path, url)
    assert why in probe.broker_error
    assert "pw" not in repr(probe)
    assert "s3" not in repr(probe)


def test_a_certificate_that_is_not_trusted_is_reported(tmp_path: Path) -> None:
    with servers(tmp_path) as start:
        _, port, ca = with_tls(start, tmp_path)
        url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required"
        assert "CERTIFICATE_VERIFY_FAILED" in tried(tmp_path, url).broker_error
        assert tried(tmp_path, f"{url}&ssl_ca_certs={ca}").broker_error == ""
