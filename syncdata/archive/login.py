"""The settings for logging in at the backup host. Knows keys only, so that reading them imports no SSH."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from syncdata.runtime.settings import PORT, a_host, a_path, a_secret, a_text, setting

_SYSTEM = Path("/etc/ssh")


def _ssh_config(value: object) -> Path:
    return Path(os.devnull) if value == "none" else a_path(value)


def _algorithms(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, Iterable) or not all(
        isinstance(name, str) and re.fullmatch(r"[a-z0-9@.-]+", name.strip()) for name in names
    ):
        raise ValueError('must be a list of names of algorithms, such as ["aes128-cbc"]')
    return tuple(name.strip() for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The backup host, the credentials for it, and the file that its own key is checked against.

    Credentials that are given are the only ones tried; without any, those of ``~/.ssh/config``, the SSH
    agent and the default keys are tried. What is given here counts before ``~/.ssh/config``.
    """

    host: str = field(metadata=setting("archive_host", a_host))
    user: str = field(metadata=setting("archive_user", a_text))
    port: int | None = field(default=None, metadata=setting("archive_port", PORT))
    key_file: Path | None = field(default=None, metadata=setting("archive_key_file", a_path))
    key_passphrase: str | None = field(
        default=None, repr=False, metadata=setting("archive_key_passphrase", a_secret)
    )
    password: str | None = field(default=None, repr=False, metadata=setting("archive_password", a_secret))
    known_hosts: Path | None = field(default=None, metadata=setting("archive_known_hosts", a_path))
    ssh_config: Path | None = field(default=None, metadata=setting("archive_ssh_config", _ssh_config))
    allow_algorithms: tuple[str, ...] = field(
        default=(), metadata=setting("archive_allow_algorithms", _algorithms)
    )


def home() -> Path | None:
    """Return the home directory; None for a user without one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def usual_known_hosts() -> tuple[Path, ...]:
    """Return the files of the user's own known hosts, where no other is named."""
    folder = home()
    return (folder / ".ssh/known_hosts", folder / ".ssh/known_hosts2") if folder else ()


def system_known_hosts() -> tuple[Path, ...]:
    return (_SYSTEM / "ssh_known_hosts", _SYSTEM / "ssh_known_hosts2")


def usual_ssh_configs() -> tuple[Path, ...]:
    folder = home()
    return (*((folder / ".ssh/config",) if folder else ()), _SYSTEM / "ssh_config")
