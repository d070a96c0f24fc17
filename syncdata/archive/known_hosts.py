"""The keys that a host is known by, judged as OpenSSH judges them. Pure: lines go in, an answer comes out.

Knows the format of ``known_hosts`` (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT) and OpenSSH's order of looking
(its sshconnect.c and hostfile.c); knows nothing of files, connections or key types.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

SSH_PORT = 22
CERTIFICATE_SUFFIX = "-cert-v01@openssh.com"


class Marker(enum.Enum):
    NONE = ""
    AUTHORITY = "@cert-authority"
    REVOKED = "@revoked"


class Verdict(enum.Enum):
    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """One line: the hosts that *names* stands for have this key, or trust or refuse it."""

    marker: Marker
    names: str
    key_type: str
    blob: bytes
    file: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenLine:
    """A line that says nothing: it is left out, and the others count."""

    file: str
    line: int
    reason: str


class Certificate(Protocol):
    """What a host shows beside its key when an authority has signed it."""

    @property
    def authority(self) -> bytes:
        """The authority's key."""
        ...

    def objection(self, host: str) -> str:
        """Return why the certificate does not prove that this is *host*; empty when it does."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The verdict on a key, the line that it rests on, and why a certificate did not count."""

    verdict: Verdict
    found: KnownKey | None = None
    objection: str = ""


class KnownHosts:
    """All lines of all files that count for a connection."""

    def __init__(self, keys: Iterable[KnownKey]) -> None:
        self._keys = tuple(keys)

    def judge(self, host: str, port: int, key: bytes, certificate: Certificate | None = None) -> Answer:
        """Return whether *key*, shown by *host* at *port*, is that host's.

        A key that is unknown under ``[host]:port`` may be known under the host's name alone. A certificate
        that does not count leaves the key, which may be known itself. An alias has the port 22.
        """
        host = host.lower()
        return self._judge(name_of(host, port), host, key, certificate)

    def in_order_of_knowledge(self, host: str, port: int, algorithms: Sequence[str]) -> list[str]:
        """Return host key *algorithms*, best first, those before that the host is known by.

        A host with several keys then shows the one that can be judged.
        """
        known = self._keys_of(name_of(host.lower(), port))
        revoked = {key.blob for key in known if key.marker is Marker.REVOKED}
        first_of_type = {key.key_type: key.blob for key in reversed(known) if key.marker is Marker.NONE}
        types = {key_type for key_type, blob in first_of_type.items() if blob not in revoked}
        has_authority = any(key.marker is Marker.AUTHORITY for key in known)
        if algorithms and _key_type(algorithms[0]) in types:
            return list(algorithms)

        def is_known(algorithm: str) -> bool:
            is_certificate = algorithm.endswith(CERTIFICATE_SUFFIX)
            return (is_certificate and has_authority) or _key_type(algorithm) in types

        return sorted(algorithms, key=lambda algorithm: not is_known(algorithm))

    def authorities_of(self, host: str, port: int) -> list[KnownKey]:
        """Return the authorities whose certificates count for the host."""
        names = {name_of(host.lower(), port), host.lower()}
        return [key for name in names for key in self._keys_of(name) if key.marker is Marker.AUTHORITY]

    def _judge(self, name: str, host: str, key: bytes, certificate: Certificate | None) -> Answer:
        known = self._keys_of(name)
        objection = ""
        if certificate is not None:
            if revoked := _find(known, Marker.REVOKED, {key, certificate.authority}):
                return Answer(verdict=Verdict.REVOKED, found=revoked)
            if authority := _find(known, Marker.AUTHORITY, {certificate.authority}):
                objection = certificate.objection(host)
                if not objection:
                    return Answer(verdict=Verdict.KNOWN, found=authority)
            elif name != host:
                answer = self._judge(host, host, key, certificate)
                if answer.verdict is Verdict.KNOWN:
                    return answer
                objection = answer.objection
        if revoked := _find(known, Marker.REVOKED, {key}):
            return Answer(verdict=Verdict.REVOKED, found=revoked)
        if same := _find(known, Marker.NONE, {key}):
            return Answer(verdict=Verdict.KNOWN, found=same)
        if others := [entry for entry in known if entry.marker is Marker.NONE]:
            return Answer(verdict=Verdict.CHANGED, found=others[-1], objection=objection)
        if name != host:
            answer = self._judge(host, host, key, None)
            if answer.verdict in (Verdict.KNOWN, Verdict.REVOKED):
                return answer
        return Answer(verdict=Verdict.UNKNOWN, objection=objection)

    def _keys_of(self, name: str) -> list[KnownKey]:
        return [key for key in self._keys if _names_match(key.names, name)]


def parse_known_hosts(text: str, file: str) -> tuple[list[KnownKey], list[BrokenLine]]:
    """Return what the lines of *file*'s *text* say, and those that are no lines of such a file."""
    keys, broken = [], []
    # Not splitlines(), nor strip() or split() without characters: they know more ends of a line and more
    # blanks than OpenSSH, so that a comment with a form feed in it would become a line that counts.
    for number, line in enumerate(text.split("\n"), 1):
        content = line.strip(" \t\r")
        if not content or content.startswith("#"):
            continue
        try:
            keys.append(_parse_line(content, file, number))
        except ValueError as error:
            broken.append(BrokenLine(file=file, line=number, reason=str(error)))
    return keys, broken


def name_of(host: str, port: int) -> str:
    """Return the host's name as it stands in a file."""
    return host if port == SSH_PORT else f"[{host}]:{port}"


def matches(pattern: str, text: str) -> bool:
    """Tell whether *text* is what *pattern* stands for; only ``*`` and ``?`` are special (ssh_config(5))."""
    return _regex(pattern).fullmatch(text) is not None


def matches_list(patterns: Iterable[str], text: str) -> bool:
    """Tell whether one of *patterns* matches, and none of those that begin with ``!``."""
    found = False
    for pattern in patterns:
        if matches(pattern.removeprefix("!"), text):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def fingerprint(key: bytes) -> str:
    """Return the key's fingerprint, as ``ssh-keygen -l`` prints it."""
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")
    return f"SHA256:{digest}"


def _parse_line(text: str, file: str, line: int) -> KnownKey:
    fields = re.split(r"[ \t]+", text, maxsplit=4)
    marker = Marker.NONE
    if text.startswith("@"):
        try:
            marker = Marker(fields.pop(0))
        except ValueError:
            raise ValueError("the marker is neither @cert-authority nor @revoked") from None
    if len(fields) < 3:
        raise ValueError("it has no name, type and key")
    names, key_type, encoded = fields[:3]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the key is not base64") from None
    if _type_inside(blob) != key_type.encode("utf-8", "surrogateescape"):
        raise ValueError("the key is not of the type that stands before it")
    return KnownKey(marker=marker, names=names, key_type=key_type, blob=blob, file=file, line=line)


def _type_inside(blob: bytes) -> bytes:
    length = int.from_bytes(blob[:4], "big")
    # A key has parts behind its type, each with its length before it, and nothing behind the last.
    position, parts = 0, 0
    while position < len(blob):
        position += 4 + int.from_bytes(blob[position : position + 4], "big")
        parts += 1
    if position != len(blob) or parts < 2:
        raise ValueError("the key is cut off")
    return blob[4 : 4 + length]


def _find(keys: Iterable[KnownKey], marker: Marker, blobs: set[bytes]) -> KnownKey | None:
    return next((key for key in keys if key.marker is marker and key.blob in blobs), None)


def _names_match(names: str, name: str) -> bool:
    if names.startswith("|"):
        return _is_hash_of(names, name)
    return matches_list(names.lower().split(","), name)


def _is_hash_of(hashed: str, name: str) -> bool:
    _, _, rest = hashed.partition("|1|")
    salt, _, digest = rest.partition("|")
    try:
        expected = base64.b64decode(digest, validate=True)
        found = hmac.digest(base64.b64decode(salt, validate=True), name.encode(), "sha1")
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(expected, found)


def _key_type(algorithm: str) -> str:
    """Return the type of the keys that sign by *algorithm*: RSA keys have several."""
    plain = algorithm.removesuffix(CERTIFICATE_SUFFIX)
    return "ssh-rsa" if plain.startswith("rsa-sha2-") else plain


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    # What stands between two stars is sought once, at its first place: to try the others too would take hours
    # for "*a*a*a*a*a*b". Test: test_a_pattern_of_many_stars_takes_no_time.
    first, *others = (
        "".join("." if char == "?" else re.escape(char) for char in part) for part in pattern.split("*")
    )
    if not others:
        return re.compile(first, re.DOTALL)
    middle = "".join(f"(?>.*?{part})" for part in others[:-1])
    return re.compile(f"{first}{middle}.*{others[-1]}", re.DOTALL)
