"""Seals texts, so that who has the key can open them again: AES-SIV, RFC 5297. Pure.

The same text has the same seal within a domain, and only there; a seal that was changed, or comes from
another domain, does not open.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from syncdata.privacy.key import MaskKey

_VERSION = b"\x01"  # also makes the empty text one that can be sealed


def sealer(key: MaskKey, domain: str) -> Callable[[str], str]:
    """Return what seals the texts of *domain*: as hex digits, for a text that ignores case keeps them."""
    encrypt, associated = _cipher(key).encrypt, [domain.encode()]
    return lambda text: encrypt(_VERSION + text.encode(), associated).hex()


def unseal(key: MaskKey, domain: str, sealed: str) -> str:
    """Return the text that was sealed, also where it stands as a bytea (``\\x…``). Raises ValueError when
    *sealed* is no seal of this key and domain."""
    try:
        data = _cipher(key).decrypt(bytes.fromhex(sealed.removeprefix("\\x")), [domain.encode()])
    except (InvalidTag, ValueError):
        raise ValueError("not sealed with this key for this domain") from None
    return data.removeprefix(_VERSION).decode()


def _cipher(key: MaskKey) -> AESSIV:
    return AESSIV(key.state(b"seal", size=64).digest())
