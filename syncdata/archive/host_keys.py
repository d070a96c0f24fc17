"""Whether the key that a host shows is its own: the known-hosts files, and the words for a refusal.

A host whose key is unknown, changed or revoked is always refused: what it sends is written into a database.
"""

from __future__ import annotations

import logging
from pathlib import Path

import paramiko

from syncdata.archive.host_certificate import certificate_of
from syncdata.archive.known_hosts import (
    CERTIFICATE_SUFFIX,
    Answer,
    KnownHosts,
    KnownKey,
    Verdict,
    fingerprint,
    parse_known_hosts,
)
from syncdata.archive.login import Login
from syncdata.archive.ssh_algorithms import permitted
from syncdata.archive.ssh_route import Hop
from syncdata.archive.ssh_transport import PREFERRED_HOST_KEYS
from syncdata.errors import ArchiveConnectionError

logger = logging.getLogger(__name__)

_SHOWN_LINES = 5


class HostKeys(paramiko.MissingHostKeyPolicy):
    """The judge of one host's key. Broken lines are told once, as those of *told* have been."""

    def __init__(self, login: Login, hop: Hop, told: set[str]) -> None:
        self._login = login
        self._hop = hop
        self._told = told
        self._files = hop.known_hosts(login)
        self._known = KnownHosts(self._read())

    def algorithms(self) -> list[str]:
        """Return the host key algorithms to offer, those before that the host is known by."""
        plain = permitted(PREFERRED_HOST_KEYS, self._login.allow_algorithms)
        certificates = [f"{name}{CERTIFICATE_SUFFIX}" for name in plain]
        return self._known.in_order_of_knowledge(
            self._hop.key_host, self._hop.key_port, [*certificates, *plain]
        )

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Called by paramiko, which knows no key itself, for every host. Raises ArchiveConnectionError."""
        try:
            certificate = certificate_of(key)
        except paramiko.SSHException as error:
            raise ArchiveConnectionError(
                f"host key of {self._hop.known_as} came with a broken certificate: {error}",
                hint="somebody may be in between; ask its administrator to look at HostCertificate there",
            ) from error
        answer = self._known.judge(self._hop.key_host, self._hop.key_port, key.asbytes(), certificate)
        if answer.verdict is not Verdict.KNOWN:
            raise self._refusal(key, answer)

    def _read(self) -> list[KnownKey]:
        keys: list[KnownKey] = []
        for path in self._files:
            try:
                text = path.read_bytes().decode("utf-8", "surrogateescape")
            except FileNotFoundError:
                continue  # Then every host is unknown, and the refusal says how to make it known.
            except OSError as error:
                if path != self._login.known_hosts:
                    logger.debug("%s cannot be read: %s", path, error.strerror)
                    continue
                raise ArchiveConnectionError(
                    f"the known hosts cannot be read: {error.strerror}",
                    hint="let this user read the file, or name another with archive_known_hosts",
                    file=str(path),
                ) from error
            found, broken = parse_known_hosts(text, str(path))
            keys += found
            self._tell([f"{line.file}:{line.line}: {line.reason}" for line in broken])
        return keys

    def _tell(self, broken: list[str]) -> None:
        new = [text for text in broken if text not in self._told]
        self._told.update(new)
        for text in new[:_SHOWN_LINES]:
            logger.warning("%s; the line is left out", text)
        if len(new) > _SHOWN_LINES:
            logger.warning("%d more lines of known hosts are left out", len(new) - _SHOWN_LINES)

    def _refusal(self, key: paramiko.PKey, answer: Answer) -> ArchiveConnectionError:
        known_as, seen = self._hop.known_as, f"{key.get_name()} {fingerprint(key.asbytes())}"
        found, objection = answer.found, f"; {answer.objection}" if answer.objection else ""
        place = f" ({found.file}:{found.line})" if found else ""
        if answer.verdict is Verdict.REVOKED:
            return ArchiveConnectionError(
                f"host key of {known_as} is revoked{place}; it showed {seen}",
                hint="it, or the authority that signed it, is not to be trusted: the host needs another",
            )
        if answer.verdict is Verdict.CHANGED and found is not None:
            return ArchiveConnectionError(
                f"host key of {known_as} has changed; it showed {seen}, known is {found.key_type}"
                f" {fingerprint(found.blob)}{place}{objection}",
                hint="somebody may be in between; only if its administrator confirms the new fingerprint:"
                f" ssh-keygen -R '{known_as}' -f {found.file}; {self._keyscan}",
            )
        if not objection and self._known.authorities_of(self._hop.key_host, self._hop.key_port):
            objection = "; it showed no certificate of the authority that is known for it"
        return ArchiveConnectionError(
            f"host key of {known_as} is not known; it showed {seen}{objection}",
            hint=f"if that is the fingerprint its administrator names, add it: {self._keyscan}",
        )

    @property
    def _keyscan(self) -> str:
        hop = self._hop
        file = self._files[0] if self._files else Path("~/.ssh/known_hosts")
        if hop.config.key_alias or hop.config.jumps or hop.proxy_command:
            # ssh-keyscan goes straight to a host and writes its name; neither is right here.
            return f"ssh -o UserKnownHostsFile={file} {hop.host}"
        return f"ssh-keyscan -p {hop.port} {hop.host} >> {file}"
