"""Whose a `celery_` variable is: other roles have such variables, too, on hosts of the fleet and on
others.
"""

from pathlib import Path

import pytest

from runbooks.core.errors import InventoryError
from runbooks.core.fleet import Fleet
from runbooks.inventory.build import build_fleet, limited_fleet
from runbooks.inventory.membership import applications
from runbooks.inventory.read import load_inventory

HOSTS = """\
[shop]
web1
web2
[databases]
db[1:5]
[shop:vars]
celery_app=shop
celery_broker_url=redis://broker:6379/0
celery_directory=/srv/shop
celery_python=/srv/shop/bin/python
celery_user=deploy
celery_env_file=/etc/shop.env
"""


def fleet_of(tmp_path: Path, *, everywhere: str = "", shop: str = "", hosts: str = HOSTS) -> Fleet:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "hosts").write_text(hosts)
    (tmp_path / "group_vars/all.yml").write_text(everywhere)
    (tmp_path / "group_vars/shop.yml").write_text(shop)
    inventory = load_inventory(tmp_path / "hosts")
    return build_fleet(inventory, tuple(inventory.hosts))


def problems(tmp_path: Path, **texts: str) -> list[str]:
    with pytest.raises(InventoryError) as caught:
        fleet_of(tmp_path, **texts)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_variables_of_other_roles_are_not_an_error_and_make_no_host_one_of_the_fleet(
    tmp_path: Path,
) -> None:
    everywhere = "celery_hours_before_hard_kill: 4\ncelery_log_level: info\n"
    theirs = (
        "celery_config: {{ only_ansible_knows_this }}\ncelery_worker_count:"
        " 4\ncelery_service_name: x\n"
    )
    fleet = fleet_of(
        tmp_path, everywhere=everywhere, shop=theirs.replace("{{", '"{{').replace("}}", '}}"')
    )
    assert [host.name for host in fleet.hosts] == ["web1", "web2"]


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("celery_worker", "workers"), ("celery_brokr_url", "broker_url"), ("celery_beats", "beat"), ("celery_log", "logs"),
     ("celery_beet", "beat"), ("celery_corn", "cron"), ("celery_stop_time_out", "stop_timeout"),
     ("celery_evn_file", "env_file")],
)  # fmt: skip
def test_a_slip_on_a_host_of_the_fleet_is_reported(
    variable: str, meant: str, tmp_path: Path
) -> None:
    (problem,) = problems(tmp_path, shop=f"{variable}: 5\n")
    expected = f"did you mean 'celery_{meant}'? If it belongs to a role, name it in runbooks_ignore"
    assert problem == f"group_vars/shop.yml:1: unknown variable '{variable}'; {expected}"


def test_what_only_looks_like_a_slip_is_ignored_where_the_inventory_says_so(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, everywhere="celery_worker: 5\nrunbooks_ignore: [celery_worker]\n")
    assert len(fleet.hosts) == 2


def test_a_variable_of_this_tool_on_hosts_without_an_application_is_reported_once_with_the_way_out(
    tmp_path: Path,
) -> None:
    (problem,) = problems(tmp_path, everywhere="celery_user: celery\n")
    expected = "set it for them, or if celery_user belongs to a role, name it in runbooks_ignore"
    assert (
        problem
        == "group_vars/all.yml:1: db1, db2, db3 and 2 more have celery_user and no celery_app:"
        f" {expected}"
    )


def test_a_collision_is_solved_by_a_list_that_hosts_of_the_fleet_may_have_otherwise(
    tmp_path: Path,
) -> None:
    everywhere = "celery_user: {name: celery}\nrunbooks_ignore: [celery_user]\n"
    fleet = fleet_of(
        tmp_path, everywhere=everywhere, shop="celery_user: www-data\nrunbooks_ignore: []\n"
    )
    assert [(host.name, host.settings.user) for host in fleet.hosts] == [
        ("web1", "www-data"),
        ("web2", "www-data"),
    ]


def test_this_tools_variables_may_stand_in_an_inventory_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("[shop]\nweb1 celery_user=celery\n")
    (tmp_path / "ours").write_text(HOSTS.replace("web1\nweb2\n", "web1 celery_user=www-data\n"))
    inventory = load_inventory(tmp_path / "theirs", tmp_path / "ours")
    (host,) = build_fleet(inventory, tuple(inventory.hosts)).hosts
    assert host.settings.user == "www-data"


def test_for_a_fleet_whose_application_is_misspelt_the_error_says_what_was_meant(
    tmp_path: Path,
) -> None:
    (problem,) = problems(tmp_path, hosts=HOSTS.replace("celery_app", "celery_ap"))
    assert problem.startswith("hosts:8: web1, web2 have celery_broker_url, ")
    assert problem.endswith(" and no celery_app; did you mean 'celery_app' by 'celery_ap'?")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("celery_user", "expected a list of variable names"), ("[1]", "expected a list of variable names"),
     ("[clery_user]", "'clery_user' is not a variable of this tool; did you mean 'celery_user'?")],
)  # fmt: skip
def test_what_is_wrong_with_the_list_is_reported(value: str, expected: str, tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, everywhere=f"runbooks_ignore: {value}\n")
    assert problem == f"group_vars/all.yml:1: runbooks_ignore: {expected}"


def test_of_two_applications_in_one_inventory_the_one_that_is_named_is_meant(
    tmp_path: Path,
) -> None:
    both = f"{HOSTS}[mail]\npost\n[mail:vars]\n" + HOSTS.partition("[shop:vars]\n")[2].replace(
        "shop", "mail"
    )
    (tmp_path / "hosts").write_text(both)
    inventory = load_inventory(tmp_path / "hosts")
    assert applications(inventory) == ("shop", "mail")
    mail = limited_fleet(inventory, None, "mail")
    assert (mail.app.app, [host.name for host in mail.hosts]) == ("mail", ["post"])
    with pytest.raises(
        InventoryError, match="web1 has shop, and post has mail: choose one with -A shop"
    ):
        limited_fleet(inventory, None)


def test_a_host_of_two_groups_has_one_application_and_an_inventory_for_each_gives_it_both(
    tmp_path: Path,
) -> None:
    settings = HOSTS.partition("[shop:vars]\n")[2]
    mail = "[mail]\nweb1\n[mail:vars]\n" + settings.replace("shop", "mail")
    (tmp_path / "both").write_text(HOSTS + mail)
    both = load_inventory(tmp_path / "both")
    assert applications(both) == ("shop",), "of two groups the later name wins"
    (tmp_path / "shop").write_text(HOSTS)
    (tmp_path / "mail").write_text(mail)
    for name in ("shop", "mail"):
        fleet = limited_fleet(load_inventory(tmp_path / name), None)
        assert (fleet.app.app, fleet.hosts[0].name) == (name, "web1")
