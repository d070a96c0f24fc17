"""The certificate of a host: an authority's word that a key is a host's (OpenSSH's PROTOCOL.certkeys).

Knows the format and what makes a certificate count for a host, as OpenSSH has it; knows no files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import paramiko

from syncdata.archive.known_hosts import CERTIFICATE_SUFFIX

# The number of parts that make up the key, by the type of the certificate.
_KEY_PARTS = {
    f"ssh-ed25519{CERTIFICATE_SUFFIX}": 1,
    f"ssh-rsa{CERTIFICATE_SUFFIX}": 2,
    f"ecdsa-sha2-nistp256{CERTIFICATE_SUFFIX}": 2,
    f"ecdsa-sha2-nistp384{CERTIFICATE_SUFFIX}": 2,
    f"ecdsa-sha2-nistp521{CERTIFICATE_SUFFIX}": 2,
}
# The signatures that OpenSSH takes from an authority; its RSA keys sign with SHA-2 alone.
_AUTHORITY_ALGORITHMS = {
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
}
_OF_A_HOST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCertificate:
    """A certificate whose signature is its authority's. The times are seconds since 1970."""

    kind: int
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    has_critical_options: bool
    authority: bytes
    algorithm: str

    def objection(self, host: str) -> str:
        now = time.time()
        if self.kind != _OF_A_HOST:
            return "its certificate is not one for hosts"
        if now < self.valid_after:
            return "its certificate is not valid yet"
        if now >= self.valid_before:
            return "its certificate has expired"
        # One without any names is one for all hosts (PROTOCOL.certkeys).
        if self.principals and host not in self.principals:
            return "its certificate does not name it"
        if self.has_critical_options:
            return "its certificate has conditions that are not understood"
        if self.algorithm not in _AUTHORITY_ALGORITHMS:
            return f"its certificate is signed with {self.algorithm}"
        return ""


def certificate_of(key: paramiko.PKey) -> HostCertificate | None:
    """Return the certificate that *key* was shown with; None without one.

    Raises paramiko.SSHException when it is not signed by the authority that it names.
    """
    if key.public_blob is None:
        return None
    message = paramiko.Message(key.public_blob.key_blob)
    key_type = message.get_text()
    message.get_binary()  # A random number, so that nobody can foresee what is signed.
    for _ in range(_KEY_PARTS.get(key_type, 0)):
        message.get_binary()
    message.get_int64()
    kind = message.get_int()
    message.get_binary()
    principals = _strings(message.get_binary())
    valid_after, valid_before = message.get_int64(), message.get_int64()
    critical_options = message.get_binary()
    message.get_binary()
    message.get_binary()
    authority = message.get_binary()
    signed = message.get_so_far()
    signature = message.get_binary()
    if key_type not in _KEY_PARTS or message.get_remainder():
        raise paramiko.SSHException("the host's certificate is not understood")
    algorithm = paramiko.Message(signature).get_binary().decode("ascii", "replace")
    if algorithm in _AUTHORITY_ALGORITHMS:  # With another it never counts, and paramiko knows no others.
        _verify(authority, signed, signature)
    return HostCertificate(
        kind=kind,
        principals=tuple(principals),
        valid_after=valid_after,
        valid_before=valid_before,
        has_critical_options=bool(critical_options),
        authority=authority,
        algorithm=algorithm,
    )


def _strings(packed: bytes) -> list[str]:
    message, found = paramiko.Message(packed), []
    while message.get_remainder():
        found.append(message.get_binary().decode("utf-8", "surrogateescape"))
    return found


def _verify(authority: bytes, signed: bytes, signature: bytes) -> None:
    key_type = paramiko.Message(authority).get_binary().decode("ascii", "replace")
    key = paramiko.PKey.from_type_string(key_type, authority)
    # A certificate never signs another.
    if key.public_blob is not None or not key.verify_ssh_sig(signed, paramiko.Message(signature)):
        raise paramiko.SSHException("the host's certificate is not signed by the authority that it names")
