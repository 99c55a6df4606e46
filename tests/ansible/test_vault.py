"""Vault-encrypted values and files: decrypted as for Ansible, never shown, and a clear error where
they cannot be.
"""

import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from runbooks.core.errors import InventoryError
from runbooks.core.fleet import Fleet
from runbooks.inventory.build import build_fleet
from runbooks.inventory.read import load_inventory
from runbooks.inventory.values import Renderer
from tests.ansible.conftest import Run, environment
from tests.unit.core.test_settings import BASE

URL = "redis://:hunter2 {{ not jinja }}@broker:6379/0"


@pytest.fixture(autouse=True)
def password_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "password").write_text("correct horse\n")
    (tmp_path / "empty.cfg").touch()
    monkeypatch.setenv("ANSIBLE_CONFIG", str(tmp_path / "empty.cfg"))
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(tmp_path / "password"))
    return tmp_path / "password"


@pytest.fixture
def encrypt(ansible: Run, password_file: Path) -> Run:
    def encrypt(text: str) -> str:
        arguments = ("encrypt", "--output", "-", "--vault-password-file", str(password_file))
        return ansible("ansible-vault", *arguments, stdin=text)

    return encrypt


def with_url(value: str) -> str:
    return BASE.replace(
        "celery_broker_url: redis://:hunter2@broker:6379/0", f"celery_broker_url: {value}"
    )


def fleet_of(tmp_path: Path, text: str) -> Fleet:
    (tmp_path / "inventory.yaml").write_text(text)
    inventory = load_inventory(tmp_path / "inventory.yaml")
    return build_fleet(inventory, tuple(inventory.hosts))


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(InventoryError) as caught:
        fleet_of(tmp_path, text)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def inline(cipher_text: str) -> str:
    return f"!vault |\n{indent(cipher_text, '      ')}"


def test_an_inline_value_is_decrypted_and_not_rendered(tmp_path: Path, encrypt: Run) -> None:
    fleet = fleet_of(tmp_path, with_url(inline(encrypt(URL))))
    assert fleet.app.broker_url.get_secret_value() == URL
    assert "hunter2" not in f"{fleet!r} {fleet.app!r} {fleet.hosts!r} {fleet.hosts[0].variables!r}"


def test_a_whole_file_beside_the_inventory_is_decrypted(tmp_path: Path, encrypt: Run) -> None:
    (tmp_path / "group_vars/all").mkdir(parents=True)
    (tmp_path / "group_vars/all/vault.yml").write_text(encrypt("vault_password: hunter2\n"))
    fleet = fleet_of(tmp_path, with_url('"redis://:{{ vault_password }}@broker/0"'))
    assert fleet.app.broker_url.get_secret_value() == "redis://:hunter2@broker/0"

    assert not [path for path in tmp_path.rglob("*.*") if "hunter2" in path.read_text()]


def test_the_password_may_be_named_in_ansible_cfg(
    tmp_path: Path, encrypt: Run, password_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = with_url(inline(encrypt(URL)))
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE")
    (tmp_path / "empty.cfg").write_text(f"[defaults]\nvault_password_file = {password_file}\n")
    assert fleet_of(tmp_path, text).app.broker_url.get_secret_value() == URL


def test_a_whole_inventory_and_a_file_that_is_looked_up_are_decrypted_too(
    tmp_path: Path, encrypt: Run
) -> None:
    (tmp_path / "url").write_text(encrypt("redis://:hunter2@broker/0"))
    (tmp_path / "inventory.yaml").write_text(
        encrypt("all:\n  hosts: {h: {x: \"{{ lookup('file', inventory_dir ~ '/url') }}\"}}\n")
    )
    assert (
        Renderer(load_inventory(tmp_path / "inventory.yaml")).hosts["h"]["x"]
        == "redis://:hunter2@broker/0"
    )


def test_what_is_encrypted_must_not_come_to_where_it_would_be_shown(
    tmp_path: Path, encrypt: Run
) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all").write_text(
        encrypt("vaulted: hunter2\nbetween: '{{ vaulted }}'\n")
    )
    more = (
        "    celery_env: {GLPI_URL: 'https://glpi/{{ between }}'}\n    ansible_become_password: '{{"
        " vaulted }}'\n"
    )
    (problem,) = problems(tmp_path, BASE + more)
    assert problem.startswith(
        "inventory.yaml:13: celery_env: vault-encrypted text would be shown; move it to"
    )


def test_a_wrong_password_is_reported_with_the_line(
    tmp_path: Path, encrypt: Run, password_file: Path
) -> None:
    text = with_url(inline(encrypt(URL)))
    password_file.write_text("another\n")
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(
        "inventory.yaml:6: celery_broker_url: cannot be decrypted with the password of"
    )
    assert "Decryption failed" in problem


def test_no_password_is_reported_with_how_to_give_one(
    tmp_path: Path, encrypt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all").write_text(encrypt("vaulted: hunter2\n"))
    monkeypatch.delenv("ANSIBLE_VAULT_PASSWORD_FILE")
    (problem,) = problems(tmp_path, BASE)
    assert problem.startswith(
        "group_vars/all:1: is vault-encrypted, and no password is set by ANSIBLE_VAULT"
    )


def test_without_a_password_ansible_vault_asks_for_one_and_takes_the_cipher_text_for_the_answer(
    encrypt: Run, tmp_path: Path
) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-vault")), "decrypt", "--output", "-"],
        input=encrypt("hunter2"), env=environment(tmp_path), start_new_session=True, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "Vault password: " in done.stdout + done.stderr
    assert "Input is not vault encrypted data" in done.stderr


def test_a_password_file_that_is_not_there_is_reported(
    tmp_path: Path, encrypt: Run, password_file: Path
) -> None:
    text = with_url(inline(encrypt(URL)))
    password_file.unlink()
    (problem,) = problems(tmp_path, text)
    assert "was not found" in problem


def test_without_ansible_vault_the_error_says_what_to_install(
    tmp_path: Path, encrypt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = with_url(inline(encrypt(URL)))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    (problem,) = problems(tmp_path, text)
    assert "install ansible-core" in problem


def test_an_error_in_a_decrypted_file_quotes_nothing_of_it(tmp_path: Path, encrypt: Run) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all").write_text(encrypt("a: 1\nb: *hunter2\n"))
    assert problems(tmp_path, BASE) == ["group_vars/all:2: not valid YAML"]
