"""The key that all masks depend on. It is read here and shown nowhere: not in a repr, not in an error."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from syncdata.runtime.durable import fsync_directory

KEY_BYTES = 32
_PERSON = b"syncdata mask v1"  # 16 bytes: sets these digests apart from all others that the key may make


class MaskKey:
    """32 secret bytes. Two keys are equal when their bytes are; what it prints says nothing of them."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a mask key has {KEY_BYTES} bytes")
        self._secret = bytes(secret)

    def __repr__(self) -> str:
        return "MaskKey(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskKey) and secrets.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> str:
        raise TypeError("a mask key is not pickled")

    @property
    def fingerprint(self) -> str:
        """A short text that tells keys apart, and from which no key can be found."""
        return self.state(b"fingerprint", size=8).hexdigest()

    def state(self, purpose: bytes, *, size: int) -> hashlib.blake2b:
        """Return a keyed hash for *purpose*, to be copied and fed: results of *size* bytes.

        The purpose's length goes first, so no purpose and value together equal another pair's.
        """
        state = hashlib.blake2b(key=self._secret, digest_size=size, person=_PERSON)
        state.update(len(purpose).to_bytes(4, "big") + purpose)
        return state


# For trials: to judge rules, and to see what their masks make. It keeps nothing secret.
TRIAL_KEY = MaskKey(bytes(KEY_BYTES))


def from_text(text: str) -> MaskKey:
    """Read a key of 64 hex digits. Raises ValueError, which does not repeat the text."""
    try:
        secret = bytes.fromhex(text.strip())
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ValueError(f"a mask key is {2 * KEY_BYTES} hex digits") from None
    return MaskKey(secret)


def read_key_file(path: Path) -> MaskKey:
    """Read the key in *path*. Raises OSError, and ValueError when others may read it or it holds no key."""
    # A pipe would be waited for without O_NONBLOCK.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no ordinary file")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError("others than its owner may read it or write to it: chmod 600")
        content = file.read(1_000)
    return from_text(content.decode("ascii", errors="replace"))


def make_key_file(path: Path) -> MaskKey:
    """Make a new key and write it to *path*, readable by its owner alone. Raises FileExistsError: a key that
    is there is never written over, for what it has masked would not fit any more."""
    key = MaskKey(secrets.token_bytes(KEY_BYTES))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key._secret.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(path.parent)
    return key
