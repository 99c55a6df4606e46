"""Judge host keys as OpenSSH does.

paramiko's own reader does not support wildcards, revoked keys and certificate authorities.

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
)
from msgspec import Struct

CERTIFICATE = "-cert-v01@openssh.com"
DEFAULT_PORT = 22
_AUTHORITY = "@cert-authority"
_REVOKED = "@revoked"
_RSA = ("rsa-sha2-512", "rsa-sha2-256")
_WILDCARDS = {"*": ".*", "?": "."}


class Verdict(Enum):
    """The judgement of a host's key by the files."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


class Line(Struct, frozen=True):
    """One key of a file, with the names that it is valid for."""

    marker: str
    """Empty, `@revoked` or `@cert-authority`."""
    names: str
    key_type: str
    blob: bytes
    where: str

    def matches(self, name: str) -> bool:
        if self.names.startswith("|1|"):
            return _hashed_matches(self.names, name)
        matches = False
        for pattern in self.names.lower().split(","):
            if pattern[:1] == "!" and _glob(pattern[1:], name):
                return False
            if _glob(pattern, name):
                matches = True
        return matches


class HostKey(Struct, frozen=True):
    """The key that a server has proved to hold."""

    key_type: str
    blob: bytes
    """The plain public key."""
    certificate: SSHCertificate | None = None
    """The certificate, if the server showed one."""

    @classmethod
    def from_blob(cls, blob: bytes) -> "HostKey":
        """Parse a plain key or certificate in its wire format. Raises ValueError."""
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
        """The fingerprint, as `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


class KnownHosts:
    """The lines of the user's and the machine's known_hosts files that concern one host."""

    def __init__(self, paths: Sequence[Path], name: str, port: int) -> None:
        self.name = known_name(name, port)
        self.host = name.lower()
        self._lines: list[Line] = []
        self._without_port: list[Line] = []
        for path in paths:
            for line in read_lines(path):
                if line.matches(self.name):
                    self._lines.append(line)
                if port != DEFAULT_PORT and line.matches(self.host):
                    self._without_port.append(line)

    def algorithms(self, offered: Iterable[str]) -> tuple[str, ...]:
        """Sort host key algorithms: those with a known key first, so that the server shows it."""
        lines = self._lines or self._without_port
        known = set()
        for line in lines:
            if not line.marker:
                known.add(line.key_type)
        if "ssh-rsa" in known:
            known.update(_RSA)
        authority = any(line.marker == _AUTHORITY for line in lines)

        def is_unknown(algorithm: str) -> bool:
            if algorithm.endswith(CERTIFICATE):
                return not authority
            return algorithm not in known

        return tuple(sorted(offered, key=is_unknown))

    def judge(self, key: HostKey) -> tuple[Verdict, str]:
        """Return the verdict, and the line or the reason for it."""
        verdict, why = self._judge(self._lines, key)
        if verdict is Verdict.UNKNOWN and self._without_port:
            without = self._judge(self._without_port, key)
            if without[0] in (Verdict.KNOWN, Verdict.REVOKED):
                return without
        return verdict, why

    def _judge(self, lines: Sequence[Line], key: HostKey) -> tuple[Verdict, str]:
        authority = _authority_of(key.certificate)
        for line in lines:
            if line.marker == _REVOKED and line.blob in (key.blob, authority):
                return Verdict.REVOKED, line.where
        why = ""
        if key.certificate:
            trusted = _first_of_authority(lines, authority)
            if trusted is None:
                why = "the authority of its certificate is not known"
            else:
                why = _flaw(key.certificate, self.host)
                if not why:
                    return Verdict.KNOWN, trusted.where
        plain = []
        for line in lines:
            if not line.marker:
                plain.append(line)
        for line in plain:
            if line.blob == key.blob:
                return Verdict.KNOWN, line.where
        if plain:
            return Verdict.CHANGED, plain[0].where
        return Verdict.UNKNOWN, why


def known_name(name: str, port: int) -> str:
    """Return the name of a host in the files."""
    if port == DEFAULT_PORT:
        return name.lower()
    return f"[{name.lower()}]:{port}"


def line_for(name: str, port: int, key: HostKey, *, hashed: bool) -> str:
    """Return the line that makes a key known; with `hashed`, it does not show the host's name."""
    names = known_name(name, port)
    if hashed:
        salt = hashlib.sha1(f"{names}{time.time_ns()}".encode(), usedforsecurity=False).digest()
        digest = hmac.new(salt, names.encode(), "sha1").digest()
        names = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    return f"{names} {key.key_type} {base64.b64encode(key.blob).decode()}\n"


def read_lines(path: Path) -> Iterable[Line]:
    """Yield a file's valid lines; ignore a file that cannot be read, as OpenSSH does."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = ""
        if words[0].startswith("@"):
            marker = words.pop(0)
        if marker not in ("", _REVOKED, _AUTHORITY) or len(words) < 3:
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except binascii.Error:
            continue
        yield Line(marker, words[0], words[1], blob, f"{path}:{number}")


def _hashed_matches(names: str, name: str) -> bool:
    try:
        salt_text, digest_text = names[3:].split("|")
        salt = base64.b64decode(salt_text, validate=True)
        digest = base64.b64decode(digest_text, validate=True)
    except (ValueError, binascii.Error):
        return False
    own = hmac.new(salt, name.encode(), "sha1").digest()
    return hmac.compare_digest(own, digest)


def _glob(pattern: str, name: str) -> bool:
    """Match a name; only `*` and `?` are wildcards, brackets belong to names with a port."""
    if "*" not in pattern and "?" not in pattern:
        return pattern == name  # the usual case, and fast: each file is searched for every host
    expression = ""
    for character in pattern:
        expression += _WILDCARDS.get(character, re.escape(character))
    return re.fullmatch(expression, name) is not None


def _plain(key: object) -> tuple[str, bytes]:
    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)  # type: ignore[attr-defined]
    key_type, encoded = line.split()[:2]
    return key_type.decode(), base64.b64decode(encoded)


def _authority_of(certificate: SSHCertificate | None) -> bytes:
    if certificate is None:
        return b""
    _, blob = _plain(certificate.signature_key())
    return blob


def _first_of_authority(lines: Iterable[Line], authority: bytes) -> Line | None:
    for line in lines:
        if line.marker == _AUTHORITY and line.blob == authority:
            return line
    return None


def _flaw(certificate: SSHCertificate, name: str) -> str:
    """Say why a certificate of a known authority is not valid for this host; "" if it is."""
    try:
        certificate.verify_cert_signature()
    except InvalidSignature:
        return "its certificate's signature is wrong"
    principals = [principal.decode(errors="replace") for principal in certificate.valid_principals]
    if certificate.type is not SSHCertificateType.HOST:
        return "its certificate is a user's, not a host's"
    if certificate.critical_options:
        return "its certificate has critical options, which are not valid for hosts"
    if not certificate.valid_after <= time.time() < certificate.valid_before:
        return "its certificate has expired or is not valid yet"
    if principals and name not in principals:
        return f"its certificate is for {', '.join(principals)}"
    return ""
