"""Which algorithms a connection may use: no weak one, unless it is allowed by name. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

# CBC, RC4 and the ciphers before AES; MD5, SHA-1 and 96-bit sums; RSA and DSA signatures over SHA-1.
_WEAK = re.compile(
    r"cbc|3des|arcfour|blowfish|cast128|md5|sha1(?![0-9])|ripemd|-96|^ssh-rsa(?:-cert.*)?$|^ssh-dss"
)

# As a server's offer names them, and as people do.
KINDS = {
    "kex_algo_list": "key exchange",
    "server_key_algo_list": "host key",
    "server_encrypt_algo_list": "cipher",
    "server_mac_algo_list": "checksum (MAC)",
}


def is_weak(algorithm: str) -> bool:
    return _WEAK.search(algorithm) is not None


def permitted(available: Sequence[str], allowed: Collection[str]) -> list[str]:
    """Return those of *available* that may be used, in their order, weak ones that are *allowed* last."""
    strong = [name for name in available if not is_weak(name)]
    return strong + [name for name in available if is_weak(name) and name in allowed]


def nothing_in_common(
    offered: Mapping[str, Sequence[str]],
    ours: Mapping[str, Collection[str]],
    known: Mapping[str, Collection[str]],
) -> tuple[str, Sequence[str], list[str]] | None:
    """Return the first kind with nothing in common, what is offered of it, and what of that could be allowed.

    *ours* is what may be used, *known* what could be if it were allowed. None when there is no such kind.
    """
    for kind, words in KINDS.items():
        names = offered.get(kind, ())
        if not set(names) & set(ours[kind]):
            return words, names, [name for name in names if name in known[kind]]
    return None
