"""Host keys judged as OpenSSH judges them; paramiko's own reader knows no wildcard, no revoked key
and no authority.

**Source:** sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; PROTOCOL.certkeys; OpenSSH 9.2's hostfile.c and
sshconnect.c.
"""

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)  # fmt: skip
from msgspec import Struct

CERTIFICATE = "-cert-v01@openssh.com"
DEFAULT_PORT = 22
_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class Verdict(Enum):
    """What the files say of a host's key."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


class Line(Struct, frozen=True):
    """One key of a file: for which names, of which type; `marker` is empty, `@revoked` or
    `@cert-authority`.
    """

    marker: str
    names: str
    key_type: str
    blob: bytes
    where: str

    def matches(self, name: str) -> bool:
        if self.names.startswith("|1|"):
            return _hashed_matches(self.names, name)
        patterns = self.names.lower().split(",")
        if any(pattern[:1] == "!" and _glob(pattern[1:], name) for pattern in patterns):
            return False
        return any(_glob(pattern, name) for pattern in patterns)


class HostKey(Struct, frozen=True):
    """The key a server proved to hold: its type, its plain public blob, and its certificate if it
    showed one.
    """

    key_type: str
    blob: bytes
    certificate: SSHCertificate | None = None

    @classmethod
    def from_blob(cls, blob: bytes) -> "HostKey":
        """From the wire's form, plain or certificate. Raises ValueError."""
        length = int.from_bytes(blob[:4], "big")
        key_type = blob[4 : 4 + length].decode("ascii")
        if not key_type.endswith(CERTIFICATE):
            return cls(key_type, blob)
        identity = load_ssh_public_identity(
            f"{key_type} {base64.b64encode(blob).decode()}".encode()
        )
        assert isinstance(identity, SSHCertificate)
        plain_type, plain = _plain(identity.public_key())
        return cls(plain_type, plain, identity)

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")


class KnownHosts:
    """The lines of the user's and the machine's known_hosts files that concern one host."""

    def __init__(self, paths: Sequence[Path], name: str, port: int) -> None:
        self.name, self.host = known_name(name, port), name.lower()
        lines = [line for path in paths for line in read_lines(path)]
        self._lines = [line for line in lines if line.matches(self.name)]
        self._without_port = (
            [] if port == DEFAULT_PORT else [line for line in lines if line.matches(self.host)]
        )

    def algorithms(self, offered: Iterable[str]) -> tuple[str, ...]:
        """These host key algorithms, those first for which a key is known, so that the server shows
        the known one.
        """
        known = {line.key_type for line in self._lines or self._without_port if not line.marker}
        authority = any(
            line.marker == "@cert-authority" for line in self._lines or self._without_port
        )

        def rank(algorithm: str) -> bool:
            if algorithm.endswith(CERTIFICATE):
                return not authority
            return not ({algorithm} & known or (algorithm in _RSA and "ssh-rsa" in known))

        return tuple(sorted(offered, key=rank))

    def judge(self, key: HostKey) -> tuple[Verdict, str]:
        """The verdict, and the line or the reason it comes from."""
        verdict, why = self._judge(self._lines, key)
        if verdict is Verdict.UNKNOWN and self._without_port:
            without = self._judge(self._without_port, key)
            if without[0] in (Verdict.KNOWN, Verdict.REVOKED):
                return without
        return verdict, why

    def _judge(self, lines: Sequence[Line], key: HostKey) -> tuple[Verdict, str]:
        authority = _authority_of(key.certificate)
        for line in lines:
            if line.marker == "@revoked" and line.blob in (key.blob, authority):
                return Verdict.REVOKED, line.where
        why = ""
        if key.certificate:
            trusted = [
                line
                for line in lines
                if line.marker == "@cert-authority" and line.blob == authority
            ]
            why = (
                _flaw(key.certificate, self.host)
                if trusted
                else "its certificate is of no authority that is known"
            )
            if not why:
                return Verdict.KNOWN, trusted[0].where
        plain = [line for line in lines if not line.marker]
        for line in plain:
            if line.blob == key.blob:
                return Verdict.KNOWN, line.where
        return (Verdict.CHANGED, plain[0].where) if plain else (Verdict.UNKNOWN, why)


def known_name(name: str, port: int) -> str:
    """The name under which a host stands in the files."""
    return name.lower() if port == DEFAULT_PORT else f"[{name.lower()}]:{port}"


def line_for(name: str, port: int, key: HostKey, *, hashed: bool) -> str:
    """The line that makes a key known; with `hashed` the file does not give the host's name away."""
    names = known_name(name, port)
    if hashed:
        salt = hashlib.sha1(f"{names}{time.time_ns()}".encode(), usedforsecurity=False).digest()
        digest = hmac.new(salt, names.encode(), "sha1").digest()
        names = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    return f"{names} {key.key_type} {base64.b64encode(key.blob).decode()}\n"


def read_lines(path: Path) -> Iterable[Line]:
    """A file's readable lines; one that cannot be read counts for nothing, as in OpenSSH."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if marker not in ("", "@revoked", "@cert-authority") or len(words) < 3:
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except binascii.Error:
            continue
        yield Line(marker, words[0], words[1], blob, f"{path}:{number}")


def _hashed_matches(names: str, name: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in names[3:].split("|"))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), digest)


def _glob(pattern: str, name: str) -> bool:
    """`*` and `?` alone mean something; brackets belong to names with a port."""
    if "*" not in pattern and "?" not in pattern:
        return pattern == name  # most are such, and a file is looked through for every host
    expression = "".join(
        {"*": ".*", "?": "."}.get(character, re.escape(character)) for character in pattern
    )
    return re.fullmatch(expression, name) is not None


def _plain(key: object) -> tuple[str, bytes]:
    key_type, encoded = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[:2]  # type: ignore[attr-defined]
    return key_type.decode(), base64.b64decode(encoded)


def _authority_of(certificate: SSHCertificate | None) -> bytes:
    return _plain(certificate.signature_key())[1] if certificate else b""


def _flaw(certificate: SSHCertificate, name: str) -> str:
    """Why a certificate of a known authority does not speak for this host; empty when it does."""
    try:
        certificate.verify_cert_signature()
    except InvalidSignature:
        return "its certificate's signature is wrong"
    principals = [principal.decode(errors="replace") for principal in certificate.valid_principals]
    if certificate.type is not SSHCertificateType.HOST:
        return "its certificate is a user's, not a host's"
    if certificate.critical_options:
        return "its certificate has critical options, which mean nothing for hosts"
    if not certificate.valid_after <= time.time() < certificate.valid_before:
        return "its certificate is not valid now"
    if principals and name not in principals:
        return f"its certificate is for {', '.join(principals)}"
    return ""
