"""`--limit`: which hosts are touched, and that a mistake never means all of them, or none in
silence.
"""

from pathlib import Path

import pytest

from runbooks.core.errors import ExitCode, UsageError
from runbooks.inventory.patterns import select_hosts
from runbooks.inventory.read import Inventory, load_inventory

TEXT = """\
all:
  hosts: {lone: }
  children:
    web: {hosts: {web1: , web2: , web3: }}
    db: {hosts: {db1: , db2: }}
    canary: {hosts: {web2: , db1: }}
    empty:
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    path = tmp_path / "inventory.yaml"
    path.write_text(TEXT)
    return load_inventory(path)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (None, "lone web1 web2 web3 db1 db2"),
        ("all", "lone web1 web2 web3 db1 db2"),
        ("*", "lone web1 web2 web3 db1 db2"),
        ("web2", "web2"),
        ("web", "web1 web2 web3"),
        ("db2,web1", "web1 db2"),
        ("db2:web1", "web1 db2"),
        (" db2 , web1 ,", "web1 db2"),
        ("web:&canary", "web2"),
        ("web:!canary", "web1 web3"),
        ("!canary", "lone web1 web3 db2"),
        ("&canary", "web2 db1"),
        ("!web2:web:&all", "web1 web3"),
        ("!db1,canary", "web2"),
        ("web?", "web1 web2 web3"),
        ("*1", "web1 db1"),
        ("w*:!web?[1]", "web1 web3"),
        ("web[0]", "web1"),
        ("web[-1]", "web3"),
        ("web[1:2]", "web2 web3"),
        ("web[1:]:&canary", "web2"),
        ("db[0],web[0:0]", "web1 db1"),
        ("ca*", "web2 db1"),
        ("~web[13]", "web1 web3"),
        ("~(web|db)2$", "web2 db2"),
        ("~eb1|db2", "db2"),
        ("ungrouped", "lone"),
    ],
)
def test_a_pattern_selects_hosts_in_the_inventorys_order(
    inventory: Inventory, pattern: str | None, names: str
) -> None:
    assert select_hosts(inventory, pattern) == tuple(names.split())


@pytest.mark.parametrize("pattern", ["", " ", ",", ":", " , , "])
def test_an_empty_pattern_is_an_error_and_not_all_hosts(inventory: Inventory, pattern: str) -> None:
    with pytest.raises(UsageError, match="--limit is empty") as caught:
        select_hosts(inventory, pattern)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "pattern", ["web9", "web1,web9", "web:!web9", "web:&dbs", "~^eb", "web9*", "&", "!", "WEB"]
)
def test_a_term_that_matches_nothing_is_an_error_and_not_ignored(
    inventory: Inventory, pattern: str
) -> None:
    with pytest.raises(UsageError, match="matches no host or group") as caught:
        select_hosts(inventory, pattern)
    assert "inv hosts" in caught.value.advice


@pytest.mark.parametrize("pattern", ["web[3]", "web[-4]", "web[2:1]", "web[12]", "all:!web[7]"])
def test_a_subscript_beyond_the_hosts_is_an_error(inventory: Inventory, pattern: str) -> None:
    with pytest.raises(UsageError, match=r"'web' has 3 hosts, the first is \[0\]"):
        select_hosts(inventory, pattern)


def test_a_file_names_a_term_in_each_line(inventory: Inventory, tmp_path: Path) -> None:
    (tmp_path / "retry").write_text("web\n\n db1 \n!web2\n")
    assert select_hosts(inventory, f"@{tmp_path}/retry") == ("web1", "web3", "db1")
    assert select_hosts(inventory, f"@{tmp_path}/retry,db2") == ("web1", "web3", "db1", "db2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\n \n", "the file is empty"), ("web9\n", "did you mean"), (None, "No such")],
)
def test_a_file_that_names_no_hosts_is_an_error(
    inventory: Inventory, tmp_path: Path, text: str | None, expected: str
) -> None:
    if text is not None:
        (tmp_path / "retry").write_text(text)
    with pytest.raises(UsageError, match=expected):
        select_hosts(inventory, f"@{tmp_path}/retry")


def test_an_address_is_one_term_whatever_its_colons(tmp_path: Path) -> None:
    (tmp_path / "i.yaml").write_text('all:\n  hosts:\n    "2001:db8::1":\n    other:\n')
    assert select_hosts(load_inventory(tmp_path / "i.yaml"), "2001:db8::1") == ("2001:db8::1",)


def test_a_misspelt_term_is_reported_with_the_nearest_name(inventory: Inventory) -> None:
    with pytest.raises(UsageError, match="did you mean 'canary'"):
        select_hosts(inventory, "cannary")


@pytest.mark.parametrize("pattern", ["web:!web", "web1:&db", "empty", "web:&empty", "all:!all"])
def test_a_pattern_that_leaves_no_host_is_an_error(inventory: Inventory, pattern: str) -> None:
    with pytest.raises(UsageError, match="selects no host"):
        select_hosts(inventory, pattern)


def test_an_empty_group_adds_nothing_to_the_others(inventory: Inventory) -> None:
    assert select_hosts(inventory, "empty,db1") == ("db1",)
    assert select_hosts(inventory, "db:!empty") == ("db1", "db2")


def test_a_broken_regular_expression_is_reported_as_one(inventory: Inventory) -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        select_hosts(inventory, "~web(")
