"""Which containers are the application's where no inventory says so, and where a broker in one of
them is reached.
"""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from runbooks.core.census import CeleryProcess, Census, Kind, Options
from runbooks.core.errors import UsageError
from runbooks.core.survey import HostSurvey, SeenProcess, SeenService
from runbooks.engine.survey import only_application
from runbooks.engine.survey_containers import down, from_here, meant, named, of
from runbooks.hosts.compose import environment_of
from runbooks.hosts.script import Answer
from runbooks.hosts.survey import parse_containers

FOLDER = "/srv/shop"


def inspected(name: str, command: str, address: str, **changes: Any) -> dict[str, Any]:
    """What docker inspect prints for a container, as Docker 28 and Compose 1.29 have it."""
    project = changes.pop("project", "shop")
    labels = {
        "com.docker.compose.oneoff": "False",
        "com.docker.compose.project": project,
        "com.docker.compose.project.config_files": "docker-compose.yml",
        "com.docker.compose.project.working_dir": FOLDER,
        "com.docker.compose.service": name.split("_")[1] if project else "",
    }
    program, *arguments = command.split()
    return {
        "Id": f"{name}-id",
        "Name": f"/{name}",
        "Path": program,
        "Args": arguments,
        "State": {"Running": True, "Pid": 100, "ExitCode": 0} | changes.pop("state", {}),
        "HostConfig": {"RestartPolicy": {"Name": "", "MaximumRetryCount": 0}},
        "Config": {
            "Image": "shop:1",
            "WorkingDir": "/app",
            "User": "",
            "Labels": labels if project else None,
        },
        "NetworkSettings": {
            "Ports": changes.pop("ports", {}),
            "Networks": {
                "shop_default": {
                    "IPAddress": address,
                    "Aliases": [name.split("_")[1], f"{name}-id"],
                }
            },
        },
    }


REDIS = inspected("shop_redis_1", "redis-server", "172.18.0.2")
WORKER = inspected("shop_worker_1", "celery -A shop worker -Q mail", "172.18.0.3")
SITE = inspected("shop_site_1", "gunicorn shop.wsgi", "172.18.0.4")
BY_NAME = inspected("w_one", "celery -A shop worker", "172.18.0.5", project="")
DOWN = inspected(
    "w_two",
    "celery -A shop worker",
    "",
    project="",
    state={"Running": False, "Pid": 0, "ExitCode": 137},
)
STOPPED = inspected(
    "w_old", "celery -A shop worker", "", project="", state={"Running": False, "Pid": 0}
)


def services(*inspected: dict[str, Any]) -> list[SeenService]:
    found, why_unknown = parse_containers(Answer(0, json.dumps(inspected).encode(), ""))
    assert why_unknown == ""
    return found


def seen(*inspected: dict[str, Any], **changes: Any) -> HostSurvey:
    survey = HostSurvey(
        "web1",
        {"ansible_connection": "local"},
        "web1",
        Census(),
        services=tuple(services(*inspected)),
    )
    return replace(survey, **changes)


def test_a_container_is_called_by_its_compose_service_or_by_its_name_and_is_to_run_or_not() -> None:
    worker, site, by_name, down, stopped = services(WORKER, SITE, BY_NAME, DOWN, STOPPED)
    assert (worker.name, worker.options, worker.directory) == (
        "worker", Options("worker", app="shop", queues=("mail",)), "/app",
    )  # fmt: skip
    assert of(worker).files == ("/srv/shop/docker-compose.yml",)
    assert (site.name, site.options) == ("site", None)
    assert [(one.name, of(one).project, one.wanted) for one in (by_name, down, stopped)] == [
        ("w_one", "", True), ("w_two", "", True), ("w_old", "", False),
    ]  # fmt: skip
    assert parse_containers(Answer(1, b"", "no permission")) == ([], "no permission")


@pytest.mark.parametrize("given", ["shop_site_1", "site", "shop_site_1-i"])
def test_a_container_is_named_by_its_name_its_service_or_its_id(given: str) -> None:
    assert of(named(seen(), services(REDIS, WORKER, SITE), given)).name == "shop_site_1"


def test_one_that_is_not_there_is_reported_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="no container nope on web1") as error:
        named(seen(), services(WORKER, REDIS), "nope")
    assert error.value.advice == "containers there: shop_redis_1, shop_worker_1"


def test_a_service_of_two_projects_is_not_guessed() -> None:
    other = inspected("mail_worker_1", "celery -A mail worker", "172.19.0.2", project="mail")
    with pytest.raises(UsageError, match="worker may be several containers on web1") as error:
        named(seen(), services(WORKER, other), "worker")
    assert error.value.advice == "name one of mail_worker_1, shop_worker_1"


def test_with_one_container_those_of_its_project_are_meant_or_those_of_its_image() -> None:
    all_ = (REDIS, WORKER, SITE, BY_NAME, DOWN)
    (site,), (by_name,) = services(SITE), services(BY_NAME)
    assert [one.name for one in meant(seen(*all_, inside=site), "")] == ["redis", "worker", "site"]
    assert [one.name for one in meant(seen(*all_, inside=by_name), "")] == ["w_one", "w_two"]


def test_the_application_of_a_container_is_that_of_the_workers_beside_it() -> None:
    (site,) = services(SITE)
    other = inspected("mail_worker_1", "celery -A mail worker", "172.19.0.2", project="mail")
    assert only_application(seen(REDIS, WORKER, SITE, other, inside=site), "") == "shop"
    with pytest.raises(UsageError, match="runs workers of mail, shop"):
        only_application(seen(WORKER, other), "")


def test_the_folder_of_a_compose_project_means_its_containers_unless_workers_run_there_manually() -> (
    None
):
    assert [one.name for one in meant(seen(REDIS, WORKER), FOLDER)] == ["redis", "worker"]
    assert meant(seen(REDIS), FOLDER) == ()
    assert meant(seen(REDIS, WORKER), "/srv/other") == ()
    by_hand = CeleryProcess(7, 1, 0.0, "S", Kind.MAIN, Options("worker", "shop"), 1)
    survey = seen(REDIS, WORKER, mains=(by_hand,), details={7: SeenProcess(FOLDER)})
    assert meant(survey, FOLDER) == ()


def test_a_broker_in_a_container_is_reached_at_its_published_port_or_its_address() -> None:
    survey = seen(WORKER, manager="docker")
    there = from_here("redis://redis:6379/2?x=1", services(REDIS, WORKER), survey)
    assert there
    assert there.url == "redis://172.18.0.2:6379/2?x=1"
    assert there.looked_up.startswith('redis://{{ lookup("pipe", "docker inspect -f ')
    assert there.looked_up.endswith(' shop_redis_1") }}:6379/2?x=1')
    ports = {
        "6379/tcp": [
            {"HostIp": "0.0.0.0", "HostPort": "16379"},
            {"HostIp": "::", "HostPort": "16380"},
        ]
    }
    published = services(inspected("shop_redis_1", "redis-server", "172.18.0.2", ports=ports))
    there = from_here("redis://:hunter2@redis/0", published, survey)
    assert there
    assert (there.url, there.looked_up) == ("redis://:hunter2@127.0.0.1:16379/0", "")
    assert "hunter2" not in repr(there)


@pytest.mark.parametrize(
    ("url", "changes"),
    [
        ("redis://redis.example.com:6379/0", {}),
        ("rediss://redis:6379/0", {}),
        ("redis://redis:6379/0", {"manager": "systemd"}),
        ("redis://redis:6379/0", {"variables": {}}),
        ("", {}),
    ],
)
def test_any_other_url_is_left_as_it_is(url: str, changes: dict[str, Any]) -> None:
    assert (
        from_here(url, services(REDIS), replace(seen(WORKER, manager="docker"), **changes)) is None
    )


def test_a_broker_whose_container_is_down_is_named() -> None:
    survey = seen(WORKER, manager="docker", project="shop")
    stopped = inspected("shop_redis_1", "redis-server", "", state={"Running": False, "Pid": 0})
    assert down("redis://redis:6379/0", services(stopped, WORKER), survey) == "shop_redis_1"
    assert down("redis://redis:6379/0", services(REDIS, WORKER), survey) == ""
    assert down("redis://elsewhere:6379/0", services(stopped, WORKER), survey) == ""


COMPOSE = """
x-usual: &usual
  env_file: [common.env, {path: ./shop.env, required: false}, "${STAGE}.env"]
  environment: {SHOP_MODE: production, SHOP_KEY: s3cret}
services:
  worker: {<<: *usual, command: celery -A shop worker}
  beat: {env_file: /etc/shop.env, environment: [SHOP_MODE=production, SHOP_KEY]}
  site:
"""


def test_a_compose_file_names_the_environment_files_of_a_service_and_what_it_sets() -> None:
    names = ("SHOP_MODE", "SHOP_KEY")
    files = (f"{FOLDER}/common.env", f"{FOLDER}/shop.env")
    assert environment_of(COMPOSE.encode(), FOLDER, "worker") == (files, names)
    assert environment_of(COMPOSE.encode(), FOLDER, "beat") == (("/etc/shop.env",), names)
    for text, service in (
        (COMPOSE, "site"),
        (COMPOSE, "nope"),
        ("services: [", "beat"),
        ("- 1", "beat"),
        ("", "beat"),
    ):
        assert environment_of(text.encode(), FOLDER, service) == ((), ())
