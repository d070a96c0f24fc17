"""Keys that sign change files, and files that are signed with them."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from syncdata.archive.signatures import PublicKeys, Signer, load_signer
from syncdata.changes.header import format_comment, parse_footer


@dataclass
class KeyPair:
    """``line`` is the public half, as OpenSSH writes it."""

    private: Ed25519PrivateKey
    path: Path

    @property
    def signer(self) -> Signer:
        return load_signer(self.path)

    @property
    def line(self) -> str:
        return self.private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    @property
    def public(self) -> PublicKeys:
        return PublicKeys([self.line])

    def sign(self, path: Path, archive: Path) -> Path:
        """Put a signed footer in the place of the one of the file *path* in *archive*."""
        content = path.read_bytes()
        is_gzip = path.name.endswith(".gz")
        text = gzip.decompress(content) if is_gzip else content
        cut = text.rindex(b"# {")
        footer = parse_footer(text[cut:])
        assert footer is not None
        text = text[:cut] + format_comment(self.signer.sign_footer(str(path.relative_to(archive)), footer))
        path.write_bytes(gzip.compress(text) if is_gzip else text)
        return path


def make_key(path: Path) -> KeyPair:
    private = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return KeyPair(private, path)
