"""Signatures of an archive's files: who wrote them. Knows ed25519 and its keys; knows nothing of storages.

The archiver signs, readers hold the public keys. What a signature covers:

- of a change file or snapshot: its name without the ending, so that none is passed off as another one, or as
  another table's; all that the footer says; and the SHA-256 in it, which is that of all lines before, the
  header with its place in the chain and the digests of catalogs included;
- of ``head.json``: all that it says.

A whole file that is missing shows in the chain; that the newest ones are held back, in a head that grows old.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from syncdata.changes.filenames import stem
from syncdata.changes.head import Head
from syncdata.changes.header import REFETCH_HINT, Footer
from syncdata.changes.reader import Inspection
from syncdata.errors import ConfigError, ParseError, shortened

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_TYPE = "ssh-ed25519"

_SIGNING_KEY = "source.signing_key_file"
_UNSIGNED_HINT = (
    "let production sign (source.signing_key_file); where the file is older than that, take snapshots at"
    " production (archive_changes --snapshot) and resync the tables"
)
_FINGERPRINT_LENGTH = 16  # characters of base64: enough to tell a team's keys apart
_MOST_KEY_BYTES = 1 << 16
_MOST_PATH = 300


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key. ``fingerprint`` is the beginning of the one that ``ssh-keygen -l`` shows."""

    _key: Ed25519PrivateKey = field(repr=False)
    fingerprint: str

    def sign_footer(self, name: str, footer: Footer) -> Footer:
        """Return *footer* with the signature of the file that is called *name* in the archive."""
        footer = msgspec.structs.replace(footer, key=self.fingerprint, signature=None)
        return msgspec.structs.replace(footer, signature=self._sign(_footer_statement(name, footer)))

    def sign_head(self, head: Head) -> Head:
        head = msgspec.structs.replace(head, key=self.fingerprint, signature="")
        return msgspec.structs.replace(head, signature=self._sign(_head_statement(head)))

    def _sign(self, statement: bytes) -> str:
        return base64.b64encode(self._key.sign(statement)).decode()


class PublicKeys:
    """The keys whose signatures a reader believes; several, while one takes the place of another."""

    def __init__(self, lines: Iterable[str]) -> None:
        """*lines*: ``ssh-ed25519 AAAA… comment``. Raises ValueError."""
        keys = [_parse_public_key(line) for line in lines]
        self._keys = {_fingerprint(key): key for key in keys}

    @property
    def fingerprints(self) -> list[str]:
        return list(self._keys)

    def checked(self, name: str, inspection: Inspection) -> Inspection:
        """Return *inspection* of the file *name*, with the error where none of the keys has signed it.

        One that is unfinished, or broken already, is returned as it is: nothing of it is applied.
        """
        if inspection.unfinished or inspection.error:
            return inspection
        error = self._find_error(name, inspection.footer)
        return inspection if error is None else replace(inspection, error=error)

    def check_head(self, head: Head, name: str) -> None:
        """Raise ParseError unless one of the keys has signed *head*."""
        problem = self._problem(head.key, head.signature, _head_statement(head))
        if problem:
            raise ParseError(problem, hint="its sign of life is not believed; " + _UNSIGNED_HINT, file=name)

    def _find_error(self, name: str, footer: Footer | None) -> ParseError | None:
        if footer is None:
            return ParseError("it is not signed", hint=_UNSIGNED_HINT, file=name)
        problem = self._problem(footer.key, footer.signature, _footer_statement(name, footer))
        if not problem:
            return None
        hint = REFETCH_HINT if footer.key in self._keys else _UNSIGNED_HINT
        return ParseError(problem, hint=hint, file=name)

    def _problem(self, fingerprint: str | None, signature: str | None, statement: bytes) -> str:
        from cryptography.exceptions import InvalidSignature

        if not fingerprint or not signature:
            return "it is not signed"
        key = self._keys.get(fingerprint)
        if key is None:
            return f"it is signed with {shortened(fingerprint, 60)}, which is not among archive_public_keys"
        try:
            key.verify(base64.b64decode(signature, validate=True), statement)
        except (InvalidSignature, binascii.Error, ValueError):
            return "its signature is wrong: it, or its name, is not what was signed"
        return ""


def read_public_keys(values: Iterable[str]) -> tuple[str, ...]:
    """Return the keys of *values* as lines: each is such a line, or the path of a file that has them.

    Raises ValueError that says what is wrong.
    """
    lines: list[str] = []
    for value in values:
        # Not a path: it may be the private key itself, pasted here, and must not be found in a message.
        is_path = not value.startswith(KEY_TYPE) and value.isprintable() and len(value) < _MOST_PATH
        found = _lines_of(Path(value).expanduser()) if is_path else [value]
        for line in found:
            _parse_public_key(line)
            lines.append(" ".join(line.split()[:2]))
    return tuple(dict.fromkeys(lines))


def load_signer(path: Path) -> Signer:
    """Read the private key in *path*: ed25519, as OpenSSH or PEM, without a passphrase, its owner's alone.

    Raises ConfigError that names the key of the configuration.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise _bad_signing_key(f"{path} is no file", "name the file of the private key")
        if mode & 0o077:
            raise _bad_signing_key(f"{path} can be read by others", f"run: chmod 600 {path}")
        with path.open("rb") as file:
            content = file.read(_MOST_KEY_BYTES)
    except OSError as error:
        raise _bad_signing_key(f"{path} cannot be read: {error.strerror}", "name a readable file") from error
    is_openssh = b"BEGIN OPENSSH PRIVATE KEY" in content
    load = serialization.load_ssh_private_key if is_openssh else serialization.load_pem_private_key
    try:
        key = load(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The library's words are left out: they may quote the file.
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_signing_key(
            f"{path} is no ed25519 private key without a passphrase",
            f"make one: ssh-keygen -t ed25519 -N '' -f {path}",
        )
    return Signer(key, _fingerprint(key.public_key()))


def _footer_statement(name: str, footer: Footer) -> bytes:
    facts = (footer.records, footer.transactions, footer.first_commit_lsn, footer.last_commit_lsn)
    return _statement("file", stem(name), *facts, footer.end_lsn, footer.sha256)


def _head_statement(head: Head) -> bytes:
    facts = msgspec.to_builtins(msgspec.structs.replace(head, key="", signature=""))
    return _statement("head", sorted(facts.items()))


def _statement(kind: str, *facts: object) -> bytes:
    """Return the bytes that are signed: they begin with what they are about, so that a signature of the one
    kind is none of another, nor of another program that uses the same key."""
    return b"syncdata signature 1\n" + msgspec.json.encode([kind, *facts])


def _lines_of(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_KEY_BYTES).decode(errors="replace")
    except OSError as error:
        raise ValueError(f"{shortened(str(path))} cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")] or [""]


def _parse_public_key(line: str) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(" ".join(line.split()[:2]).encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        # Not quoted: who takes the private key for the public one must not find it in a log.
        raise ValueError(
            f"must be public keys, each as its line '{KEY_TYPE} AAAA…' or the path of a file of such lines"
        )
    return key


def _fingerprint(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode()[:_FINGERPRINT_LENGTH]}"


def _bad_signing_key(problem: str, hint: str) -> ConfigError:
    return ConfigError(f"{_SIGNING_KEY}: {problem}", hint=hint)
