"""The settings for logging in at the backup host. Knows keys only, so that reading them imports no SSH."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from syncdata.runtime.settings import PORT, a_host, a_path, a_secret, a_text, expanded, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The backup host, the credentials for it, and the file that its own key is checked against.

    Credentials that are given are the only ones tried; without any, the SSH agent and then the default
    keys are tried.
    """

    host: str = field(metadata=setting("archive_host", a_host))
    user: str = field(metadata=setting("archive_user", a_text))
    port: int = field(default=22, metadata=setting("archive_port", PORT))
    key_file: Path | None = field(default=None, metadata=setting("archive_key_file", a_path))
    key_passphrase: str | None = field(
        default=None, repr=False, metadata=setting("archive_key_passphrase", a_secret)
    )
    password: str | None = field(default=None, repr=False, metadata=setting("archive_password", a_secret))
    known_hosts: Path = field(
        default_factory=lambda: _own_known_hosts(),
        metadata=setting("archive_known_hosts", a_path),
    )


def _own_known_hosts() -> Path:
    path = Path("~/.ssh/known_hosts")
    try:
        return expanded(path)
    except ValueError:  # a user without a home has no such file: no host is known then
        return path
