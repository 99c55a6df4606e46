"""Decrypts what `ansible-vault` encrypted, by `ansible-vault` itself, which finds its password as
it does for Ansible.

**Source:** "Ansible Vault" in Ansible's documentation; the messages are those of ansible-core 2.19.
The cipher text goes in by stdin and the plain text comes back by stdout: neither is ever in an
argument or in a file.
"""

import os
import subprocess

from runbooks.core.errors import UsageError
from runbooks.inventory.commands import find

SET_BY = "ANSIBLE_VAULT_PASSWORD_FILE or vault_password_file in ansible.cfg"


class VaultError(UsageError):
    """A vault-encrypted text cannot be decrypted."""


def is_encrypted(text: str) -> bool:
    """Whether a text is what `ansible-vault encrypt` makes."""
    return text.startswith("$ANSIBLE_VAULT;")


class Vault:
    """Decrypts each text once: a decryption starts a process, which takes half a second."""

    def __init__(self) -> None:
        self._known: dict[str, str | VaultError] = {}

    def decrypt(self, cipher_text: str) -> str:
        """The plain text. Raises VaultError."""
        if cipher_text not in self._known:
            try:
                self._known[cipher_text] = _decrypt(cipher_text)
            except VaultError as error:
                self._known[cipher_text] = error
        known = self._known[cipher_text]
        if isinstance(known, VaultError):
            raise known
        return known


def _decrypt(cipher_text: str) -> str:
    command = find("ansible-vault")
    if not command:
        raise VaultError(
            "is vault-encrypted, and ansible-vault is not on PATH: install ansible-core"
        )
    done = subprocess.run(
        [command, "decrypt", "--output", "-"],
        input=cipher_text.encode(),
        capture_output=True,
        check=False,
        env=os.environ | {"LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"},
        # Without a terminal it cannot ask for a password again for each text.
        start_new_session=True,
    )
    if done.returncode == 0:
        try:
            return done.stdout.decode()
        except UnicodeDecodeError:
            raise VaultError("is vault-encrypted, and its content is not text") from None
    said = done.stderr.decode(errors="replace")
    if "Vault password" in said:  # the question
        raise VaultError(f"is vault-encrypted, and no password is set by {SET_BY}")
    errors = []
    for line in said.splitlines():
        if "[ERROR]" in line:
            errors.append(line.removeprefix("[ERROR]: ").removesuffix(" for -"))
    reason = (errors or said.splitlines() or [f"exit code {done.returncode}"])[-1]
    raise VaultError(f"cannot be decrypted with the password of {SET_BY}: {reason}")
